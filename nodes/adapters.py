"""LoRAs and learned words: use them, look into them, convert, merge and extract them."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..cascade.adapters import WRITABLE, Lora, chart, norms_by_block, summary
from ..cascade.images import from_pillow
from .host import adapters, checkpoint_sets, folders
from .types import LORA, LoraType, field, schema

NONE = "none"
SLOTS = 5
TOKENS_TIP = (
    "Only for files that do not tell their words, such as the released trainer's: one line a word, with the text it "
    "starts from, as its YAML has them: [fernando] = ^dog</w>"
)
WINS_TIP = "A LoRA from Train LoRA or Extract LoRA. It is taken in the place of the file."


def strength_field(name: str, tip: str) -> Any:
    return field(
        io.Float, name, default=1.0, min=-20.0, max=20.0, step=0.05, round=0.001, tooltip=f"{tip} 0: as without it."
    )


def tokens_field() -> Any:
    return field(io.String, "tokens", default="", multiline=True, optional=True, advanced=True, tooltip=TOKENS_TIP)


def targets() -> list[Any]:
    return [
        field(io.Model, "model", optional=True, tooltip="Stage C. Leave it open for a LoRA of the text encoder alone."),
        field(io.Clip, "clip", optional=True, tooltip="The text encoder, which then knows the words of the LoRA."),
    ]


def target_outputs() -> list[Any]:
    return [
        io.Model.Output("model_out", display_name="model", tooltip="Stage C with the LoRA."),
        io.Clip.Output("clip_out", display_name="clip", tooltip="The text encoder with the LoRA and its words."),
        io.String.Output("report", display_name="report", tooltip="What matched, and which words prompts can use now."),
    ]


def chosen(file: str, tokens: str = "", model: Any = None, lora: Lora | None = None, kind: str = "lora") -> Lora:
    """The LoRA that is connected, else that of the file."""
    return adapters.read(folders.find(kind, file), tokens, model) if lora is None else lora


class CascadeLoadLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeLoadLora",
            display_name="Load LoRA (Stable Cascade)",
            category=LORA,
            description=(
                "Puts a LoRA of any trainer on Stage C and the text encoder; its learned words then work in prompts. "
                "The report says how much of it matched."
            ),
            inputs=[
                *targets(),
                folders.file_field("lora", "A LoRA from models/loras, of any trainer."),
                strength_field("strength_model", "How strongly it acts on Stage C."),
                strength_field("strength_clip", "How strongly it acts on the text encoder; words are whole or not."),
                field(LoraType, "lora", optional=True, tooltip=WINS_TIP),
                tokens_field(),
            ],
            outputs=target_outputs(),
            search_aliases=["lora", "lora loader"],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None, **_: Any) -> Any:
        return checkpoint_sets.fingerprint("lora", file)

    @classmethod
    def execute(
        cls,
        file: str,
        strength_model: float,
        strength_clip: float,
        model: Any = None,
        clip: Any = None,
        lora: Lora | None = None,
        tokens: str = "",
    ) -> io.NodeOutput:
        found = chosen(file, tokens, model, lora)
        return io.NodeOutput(*adapters.apply(model, clip, found, strength_model, strength_clip))


class CascadeLoraStack(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        options = [NONE, *folders.choices("lora")]
        slots = [
            each
            for number in range(1, SLOTS + 1)
            for each in (
                field(
                    io.Combo,
                    f"file_{number}",
                    options=options,
                    default=NONE,
                    tooltip="A LoRA of models/loras.",
                ),
                strength_field(f"strength_{number}", "How strongly it acts on Stage C and on the text encoder."),
            )
        ]
        return schema(
            node_id="CascadeLoraStack",
            display_name="LoRA Stack (Stable Cascade)",
            category=LORA,
            description="Several LoRAs at once. Their order does not matter; for more than five put stacks in a row.",
            inputs=[*targets(), *slots],
            outputs=target_outputs(),
            search_aliases=["lora stacker"],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> Any:
        files = [inputs.get(f"file_{number}", NONE) for number in range(1, SLOTS + 1)]
        return [checkpoint_sets.fingerprint("lora", file) for file in files if file != NONE]

    @classmethod
    def execute(cls, model: Any = None, clip: Any = None, **slots: Any) -> io.NodeOutput:
        reports = []
        for number in range(1, SLOTS + 1):
            file, strength = slots[f"file_{number}"], slots[f"strength_{number}"]
            if file != NONE:
                model, clip, report = adapters.apply(model, clip, chosen(file, model=model), strength, strength)
                reports.append(report)
        return io.NodeOutput(model, clip, "\n\n".join(reports))


class CascadeLoadEmbedding(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeLoadEmbedding",
            display_name="Load Embedding (Stable Cascade)",
            category=LORA,
            description="Teaches the text encoder learned words: an embedding's, or a LoRA's without its rest.",
            inputs=[
                field(io.Clip, "clip", tooltip="The text encoder."),
                folders.file_field("embedding", "An embedding from models/embeddings, or a LoRA that has words."),
                field(
                    io.String,
                    "word",
                    default="",
                    tooltip="How prompts are to call it, such as [owl]. Empty: as the file does, else [file name].",
                ),
                tokens_field(),
            ],
            outputs=[
                io.Clip.Output("clip_out", display_name="clip", tooltip="The text encoder that knows the words."),
                io.String.Output("words", display_name="words", tooltip="The words, as prompts write them."),
            ],
            search_aliases=["textual inversion"],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None, **_: Any) -> Any:
        return checkpoint_sets.fingerprint("embedding", file)

    @classmethod
    def execute(cls, clip: Any, file: str, word: str, tokens: str = "") -> io.NodeOutput:
        lora = adapters.read_tokens(folders.find("embedding", file), word.strip(), tokens)
        words = ", ".join(token.text for token in lora.tokens)
        return io.NodeOutput(adapters.with_tokens(clip, lora), words)


class CascadeLoraInfo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeLoraInfo",
            display_name="LoRA Info (Stable Cascade)",
            category=LORA,
            description="What a LoRA is: made for what, its rank, words and training, and where it acts how much.",
            inputs=[
                folders.file_field("lora", "A LoRA from models/loras."),
                field(LoraType, "lora", optional=True, tooltip=WINS_TIP),
                tokens_field(),
            ],
            outputs=[
                io.String.Output("info", display_name="info", tooltip="Lines of text; Preview as Text shows them."),
                io.Image.Output("norms", display_name="norms", tooltip="How much each block is changed, as bars."),
            ],
            search_aliases=["lora metadata"],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None, **_: Any) -> Any:
        return checkpoint_sets.fingerprint("lora", file)

    @classmethod
    def execute(cls, file: str, lora: Lora | None = None, tokens: str = "") -> io.NodeOutput:
        found = chosen(file, tokens, lora=lora)
        image = from_pillow(chart(norms_by_block(found))).movedim(1, -1)
        return io.NodeOutput("\n".join(summary(found)), image)


class CascadeSaveLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeSaveLora",
            display_name="Save LoRA (Stable Cascade)",
            category=LORA,
            description="Writes a LoRA into models/loras in the form of any trainer: converts files, keeps new ones.",
            inputs=[
                folders.file_field("lora", "The LoRA to convert, from models/loras."),
                field(
                    io.String,
                    "name",
                    default="converted",
                    tooltip="The new file, without ending; a / makes a subfolder. A file of that name is replaced.",
                ),
                field(
                    io.Combo,
                    "format",
                    options=list(WRITABLE),
                    default="cascade",
                    tooltip="cascade keeps everything. kohya and onetrainer: for ComfyUI's own LoRA loader and others. "
                    "released: for the released code. embedding: one word alone.",
                ),
                field(LoraType, "lora", optional=True, tooltip=WINS_TIP),
                field(io.Model, "model", optional=True, tooltip="Stage C; only for sizes that were not released."),
                field(
                    io.Clip,
                    "clip",
                    optional=True,
                    tooltip="The text encoder; only where words start from a text.",
                ),
                tokens_field(),
            ],
            outputs=[io.String.Output("path", display_name="path", tooltip="The file that was written.")],
            is_output_node=True,
            search_aliases=["convert lora"],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None, **_: Any) -> Any:
        return checkpoint_sets.fingerprint("lora", file)

    @classmethod
    def execute(
        cls,
        file: str,
        name: str,
        format: str,
        lora: Lora | None = None,
        model: Any = None,
        clip: Any = None,
        tokens: str = "",
    ) -> io.NodeOutput:
        path = folders.new_file("lora", name)
        adapters.write(chosen(file, tokens, model, lora), path, format, model, clip)
        return io.NodeOutput(str(path))


class CascadeMergeLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeMergeLora",
            display_name="Merge LoRA into Stage C (Stable Cascade)",
            category=LORA,
            description=(
                "Saves Stage C with all LoRAs that are on it as a file of its own. Words are not merged: a checkpoint "
                "has none; keep the LoRA for them."
            ),
            inputs=[
                field(io.Model, "model", tooltip="Stage C with LoRAs on it."),
                field(
                    io.String,
                    "name",
                    default="merged",
                    tooltip="The new file in models/diffusion_models, without ending. A file of that name is replaced.",
                ),
            ],
            outputs=[io.String.Output("path", display_name="path", tooltip="The file that was written.")],
            is_output_node=True,
            search_aliases=["save model", "bake lora"],
        )

    @classmethod
    def execute(cls, model: Any, name: str) -> io.NodeOutput:
        path = folders.new_file("stage_c", name)
        adapters.save_merged(model, path)
        return io.NodeOutput(str(path))


class CascadeExtractLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeExtractLora",
            display_name="Extract LoRA (Stable Cascade)",
            category=LORA,
            description=(
                "The difference of two Stage Cs as a LoRA: of a finetune and what it came from, or of a model with "
                "several LoRAs and without, which makes one of them."
            ),
            inputs=[
                field(io.Model, "base", tooltip="The Stage C without what is to be extracted."),
                field(io.Model, "tuned", tooltip="The Stage C with it."),
                field(
                    io.Int,
                    "rank",
                    default=16,
                    min=1,
                    max=4096,
                    tooltip="Of the new LoRA. More keeps more of the difference and makes a larger file.",
                ),
            ],
            outputs=[LoraType.Output("lora", display_name="lora", tooltip="For Save LoRA, Load LoRA and LoRA Info.")],
            search_aliases=["lora extraction", "svd"],
        )

    @classmethod
    def execute(cls, base: Any, tuned: Any, rank: int) -> io.NodeOutput:
        return io.NodeOutput(adapters.difference(base, tuned, rank))


NODES = [
    CascadeLoadLora,
    CascadeLoraStack,
    CascadeLoadEmbedding,
    CascadeLoraInfo,
    CascadeSaveLora,
    CascadeMergeLora,
    CascadeExtractLora,
]
