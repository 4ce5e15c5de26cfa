"""LoRAs and learned tokens: use, inspect, convert, merge and extract them."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..cascade.adapters import WRITABLE, Lora, chart, norms_by_block, summary
from ..cascade.images import from_pillow
from .host import adapters, checkpoint_sets, folders
from .types import LORA, LoraType, field, schema

NONE = "none"
SLOTS = 5
TOKEN_NAMES_TIP = (
    "Only for files without the names of their tokens, such as the released trainer's: one line for each token, with "
    "the text it starts from, as in the trainer's YAML: [fernando] = ^dog</w>"
)
WINS_TIP = "A LoRA from Train LoRA or Extract LoRA. It is used instead of lora_name."


def strength_field(name: str, tip: str) -> Any:
    return field(
        io.Float,
        name,
        default=1.0,
        min=-20.0,
        max=20.0,
        step=0.05,
        round=0.001,
        tooltip=f"{tip} 1: as trained; 0: no effect.",
    )


def token_names_field() -> Any:
    return field(
        io.String, "token_names", default="", multiline=True, optional=True, advanced=True, tooltip=TOKEN_NAMES_TIP
    )


def filename_prefix_field(default: str, folder: str) -> Any:
    tip = f"Start of the new file's name in {folder}; a number is added, and no file is replaced. / makes a subfolder."
    return field(io.String, "filename_prefix", default=default, tooltip=tip)


def targets() -> list[Any]:
    return [
        field(io.Model, "model", optional=True, tooltip="Stage C. Not needed for a LoRA of the text encoder only."),
        field(io.Clip, "clip", optional=True, tooltip="The text encoder, for the LoRA's changes of it and its tokens."),
    ]


def target_outputs() -> list[Any]:
    return [
        io.Model.Output("model_out", display_name="model", tooltip="Stage C with the LoRA."),
        io.Clip.Output("clip_out", display_name="clip", tooltip="The text encoder with the LoRA and its tokens."),
        io.String.Output(
            "report", display_name="report", tooltip="What matched, and which tokens prompts can use now."
        ),
    ]


def chosen(lora_name: str, token_names: str = "", model: Any = None, lora: Lora | None = None) -> Lora:
    """The connected LoRA, else the one in the file."""
    return adapters.read(folders.find("lora", lora_name), token_names, model) if lora is None else lora


class CascadeLoadLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeLoadLora",
            display_name="Load LoRA (Stable Cascade)",
            category=LORA,
            description=(
                "Applies a LoRA of any trainer to Stage C and the text encoder; its learned tokens then work in "
                "prompts. The report says how much of it matched."
            ),
            inputs=[
                *targets(),
                folders.file_field("lora", "A LoRA from models/loras, of any trainer.", name="lora_name"),
                strength_field("strength_model", "Strength on Stage C."),
                strength_field(
                    "strength_clip", "Strength on the text encoder; tokens are added as a whole at any strength but 0."
                ),
                field(LoraType, "lora", optional=True, tooltip=WINS_TIP),
                token_names_field(),
            ],
            outputs=target_outputs(),
            search_aliases=["lora", "load lora", "lora loader", "dora"],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str | None, **_: Any) -> Any:
        return checkpoint_sets.fingerprint("lora", lora_name)

    @classmethod
    def execute(
        cls,
        lora_name: str,
        strength_model: float,
        strength_clip: float,
        model: Any = None,
        clip: Any = None,
        lora: Lora | None = None,
        token_names: str = "",
    ) -> io.NodeOutput:
        found = chosen(lora_name, token_names, model, lora)
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
                    f"lora_name{number}",
                    options=options,
                    default=NONE,
                    tooltip="A LoRA from models/loras.",
                ),
                strength_field(f"strength{number}", "Strength on Stage C and on the text encoder."),
            )
        ]
        return schema(
            node_id="CascadeLoraStack",
            display_name="LoRA Stack (Stable Cascade)",
            category=LORA,
            description="Applies several LoRAs. Their order does not matter. For more than five, connect stacks in a "
            "row.",
            inputs=[*targets(), *slots],
            outputs=target_outputs(),
            search_aliases=["lora stacker", "multiple loras"],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> Any:
        names = [inputs.get(f"lora_name{number}", NONE) for number in range(1, SLOTS + 1)]
        return [checkpoint_sets.fingerprint("lora", name) for name in names if name != NONE]

    @classmethod
    def execute(cls, model: Any = None, clip: Any = None, **slots: Any) -> io.NodeOutput:
        reports = []
        for number in range(1, SLOTS + 1):
            name, strength = slots[f"lora_name{number}"], slots[f"strength{number}"]
            if name != NONE:
                model, clip, report = adapters.apply(model, clip, chosen(name, model=model), strength, strength)
                reports.append(report)
        return io.NodeOutput(model, clip, "\n\n".join(reports))


class CascadeLoadEmbedding(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeLoadEmbedding",
            display_name="Load Embedding (Stable Cascade)",
            category=LORA,
            description="Adds learned tokens to the text encoder: those of an embedding, or only the tokens of a LoRA.",
            inputs=[
                field(io.Clip, "clip", tooltip="The text encoder."),
                folders.file_field(
                    "embedding", "An embedding from models/embeddings, or a LoRA with tokens.", name="embedding_name"
                ),
                field(
                    io.String,
                    "token",
                    default="",
                    tooltip="How prompts write the token, such as [owl]. Empty: its name in the file, else [file "
                    "name].",
                ),
                token_names_field(),
            ],
            outputs=[
                io.Clip.Output("clip_out", display_name="clip", tooltip="The text encoder with the tokens."),
                io.String.Output("tokens", display_name="tokens", tooltip="The tokens, as prompts write them."),
            ],
            search_aliases=["textual inversion", "token"],
        )

    @classmethod
    def fingerprint_inputs(cls, embedding_name: str | None, **_: Any) -> Any:
        return checkpoint_sets.fingerprint("embedding", embedding_name)

    @classmethod
    def execute(cls, clip: Any, embedding_name: str, token: str, token_names: str = "") -> io.NodeOutput:
        lora = adapters.read_tokens(folders.find("embedding", embedding_name), token.strip(), token_names)
        return io.NodeOutput(adapters.with_tokens(clip, lora), ", ".join(each.text for each in lora.tokens))


class CascadeLoraInfo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeLoraInfo",
            display_name="LoRA Info (Stable Cascade)",
            category=LORA,
            description="Shows what a LoRA is for, its rank, tokens and training, and how much it changes each block.",
            inputs=[
                folders.file_field("lora", "A LoRA from models/loras.", name="lora_name"),
                field(LoraType, "lora", optional=True, tooltip=WINS_TIP),
                token_names_field(),
            ],
            outputs=[
                io.String.Output("info", display_name="info", tooltip="Lines of text; Preview as Text shows them."),
                io.Image.Output("norms", display_name="norms", tooltip="How much it changes each block, as bars."),
            ],
            search_aliases=["lora metadata"],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str | None, **_: Any) -> Any:
        return checkpoint_sets.fingerprint("lora", lora_name)

    @classmethod
    def execute(cls, lora_name: str, lora: Lora | None = None, token_names: str = "") -> io.NodeOutput:
        found = chosen(lora_name, token_names, lora=lora)
        image = from_pillow(chart(norms_by_block(found))).movedim(1, -1)
        return io.NodeOutput("\n".join(summary(found)), image)


class CascadeSaveLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeSaveLora",
            display_name="Save LoRA (Stable Cascade)",
            category=LORA,
            description="Saves a LoRA to models/loras in the format of any trainer: a converted file, or a new LoRA.",
            inputs=[
                folders.file_field("lora", "The LoRA to convert, from models/loras.", name="lora_name"),
                filename_prefix_field("cascade_lora", "models/loras"),
                field(
                    io.Combo,
                    "format",
                    options=list(WRITABLE),
                    default=WRITABLE[0],
                    tooltip="comfyui: for ComfyUI's own LoRA loader, OneTrainer and this pack. cascade: our own names. "
                    "released: for the released code. embedding: only one token, for ComfyUI's embeddings.",
                ),
                field(LoraType, "lora", optional=True, tooltip=WINS_TIP),
                field(
                    io.Model, "model", optional=True, tooltip="Stage C; only needed for sizes that were not released."
                ),
                field(
                    io.Clip,
                    "clip",
                    optional=True,
                    tooltip="The text encoder; only needed for tokens with a start text.",
                ),
                token_names_field(),
            ],
            outputs=[io.String.Output("path", display_name="path", tooltip="The file that was written.")],
            is_output_node=True,
            search_aliases=["convert lora", "export lora"],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str | None, **_: Any) -> Any:
        return checkpoint_sets.fingerprint("lora", lora_name)

    @classmethod
    def execute(
        cls,
        lora_name: str,
        filename_prefix: str,
        format: str,
        lora: Lora | None = None,
        model: Any = None,
        clip: Any = None,
        token_names: str = "",
    ) -> io.NodeOutput:
        path = folders.numbered_file("lora", filename_prefix)
        adapters.write(chosen(lora_name, token_names, model, lora), path, format, model, clip)
        return io.NodeOutput(str(path))


class CascadeMergeLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeMergeLora",
            display_name="Merge LoRA into Stage C (Stable Cascade)",
            category=LORA,
            description=(
                "Saves Stage C with all its LoRAs merged as a checkpoint. Learned tokens are not merged, because a "
                "checkpoint cannot hold them: keep the LoRA."
            ),
            inputs=[
                field(io.Model, "model", tooltip="Stage C with LoRAs on it."),
                filename_prefix_field("stage_c_merged", "models/diffusion_models"),
            ],
            outputs=[io.String.Output("path", display_name="path", tooltip="The file that was written.")],
            is_output_node=True,
            search_aliases=["save model", "bake lora"],
        )

    @classmethod
    def execute(cls, model: Any, filename_prefix: str) -> io.NodeOutput:
        path = folders.numbered_file("stage_c", filename_prefix)
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
                "The difference of two Stage C models as a LoRA: of a finetune and its base model, or of a model with "
                "several LoRAs and without them, which combines them into one."
            ),
            inputs=[
                field(io.Model, "base_model", tooltip="The Stage C before the changes."),
                field(io.Model, "tuned_model", tooltip="The Stage C with the changes, of the same size."),
                field(
                    io.Int,
                    "rank",
                    default=16,
                    min=1,
                    max=4096,
                    tooltip="Rank of the new LoRA. More keeps more of the difference and makes a larger file.",
                ),
            ],
            outputs=[LoraType.Output("lora", display_name="lora", tooltip="For Save LoRA, Load LoRA and LoRA Info.")],
            search_aliases=["lora extraction", "svd"],
        )

    @classmethod
    def execute(cls, base_model: Any, tuned_model: Any, rank: int) -> io.NodeOutput:
        return io.NodeOutput(adapters.difference(base_model, tuned_model, rank))


NODES = [
    CascadeLoadLora,
    CascadeLoraStack,
    CascadeLoadEmbedding,
    CascadeLoraInfo,
    CascadeSaveLora,
    CascadeMergeLora,
    CascadeExtractLora,
]
