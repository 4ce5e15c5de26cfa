"""Names in LoRA files and names in our networks, as tables for reading and writing.

A name in a file is a prefix (which network), a module's path, and an ending (which tensor of the change). Paths are
ours with `.` or `_` between their parts, except those of attention, which differ between families of trainers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

OURS, DIFFUSERS, OMI = range(3)
"""Columns of `Module.spellings`."""

ATTENTION = (
    ("attention.attn.to_q", "attention.to_q", "attention.attn.in_proj.0"),
    ("attention.attn.to_k", "attention.to_k", "attention.attn.in_proj.1"),
    ("attention.attn.to_v", "attention.to_v", "attention.attn.in_proj.2"),
    ("attention.attn.out_proj", "attention.to_out.0", "attention.attn.out_proj"),
)
FUSED = tuple(f"attention.attn.to_{matrix}" for matrix in "qkv")
"""The layers whose weights `attention.attn.in_proj` holds one after another."""
BLOCK = ("depthwise", "channelwise.0", "channelwise.4", "mapper", "mapper_sca", "mapper_crp", "kv_mapper.1")
TEXT_LAYER = (
    *(f"self_attn.{matrix}_proj" for matrix in ("q", "k", "v", "out")),
    "mlp.fc1",
    "mlp.fc2",
    "layer_norm1",
    "layer_norm2",
)
NORM = re.compile(r"(down|up)_blocks\.\d{1,4}\.\d{1,4}\.channelwise\.2\.(gamma|beta)")
"""Parameters of Stage C that are neither a weight nor a bias."""


@dataclass(frozen=True)
class Module:
    """One kind of module; `{}` stands for a number.

    ours: its path in our network; three paths where a file has the three as one matrix.
    spellings: its path in files, by column.
    """

    ours: tuple[str, ...]
    spellings: tuple[str, ...]


def _same(path: str) -> Module:
    return Module((path,), (path,) * 3)


def _blocks(start: str) -> list[Module]:
    return [
        *(Module((f"{start}.{names[OURS]}",), tuple(f"{start}.{name}" for name in names)) for names in ATTENTION),
        Module(tuple(f"{start}.{name}" for name in FUSED), (f"{start}.attention.attn.in_proj",)),
        *(_same(f"{start}.{name}") for name in BLOCK),
    ]


MODULES: Mapping[str, tuple[Module, ...]] = {
    "stage_c": (
        *_blocks("down_blocks.{}.{}"),
        *_blocks("up_blocks.{}.{}"),
        *(_same(name) for name in ("clip_txt_mapper", "clip_txt_pooled_mapper", "clip_img_mapper")),
        *(_same(name) for name in ("embedding.1", "clf.1")),
        *(_same(name) for name in ("down_downscalers.{}.1.blocks.{}", "up_upscalers.{}.1.blocks.{}")),
        *(_same(name) for name in ("down_repeat_mappers.{}.{}", "up_repeat_mappers.{}.{}")),
    ),
    "stage_b": (
        *_blocks("down_blocks.{}.{}"),
        *_blocks("up_blocks.{}.{}"),
        *(_same(name) for name in ("clip_mapper", "embedding.1", "clf.1")),
        *(_same(f"{mapper}_mapper.{{}}") for mapper in ("effnet", "pixels")),
        *(_same(name) for name in ("down_downscalers.{}.1", "up_upscalers.{}.1")),
        *(_same(name) for name in ("down_repeat_mappers.{}.{}", "up_repeat_mappers.{}.{}")),
    ),
    "text_encoder": (
        *(_same(f"text_model.encoder.layers.{{}}.{name}") for name in TEXT_LAYER),
        *(_same(f"text_model.embeddings.{name}_embedding") for name in ("token", "position")),
        _same("text_model.final_layer_norm"),
        _same("text_projection"),
    ),
}

PREFIXES: Mapping[str, tuple[str, ...]] = {
    "lora_prior_unet_": ("stage_c",),
    "lora_prior_unet.": ("stage_c",),
    "lora_prior_te_": ("text_encoder",),
    "lora_prior_te.": ("text_encoder",),
    "lora_unet_": ("stage_c",),
    "lora_te_": ("text_encoder",),
    "unet.": ("stage_c",),
    "clip_g.": ("text_encoder",),
    "prior.": ("stage_c",),
    "diffusion_model.": ("stage_c",),
    "text_encoders.clip_g.transformer.": ("text_encoder",),
    "stage_c.": ("stage_c",),
    "stage_b.": ("stage_b",),
    "text_encoder.": ("text_encoder",),
    "base_model.model.": ("stage_c", "text_encoder"),
    "": ("stage_c", "text_encoder"),
}
"""Prefix of a name -> the networks that it may mean. The prefix's last character separates the parts of the path."""

ENDINGS: Mapping[str, str] = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".alpha": "alpha",
    ".dora_scale": "dora",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector.default.weight": "magnitude",
    ".lora_mid.weight": "mid",
    ".hada_w1_a": "hada_w1_a",
    ".hada_w1_b": "hada_w1_b",
    ".hada_w2_a": "hada_w2_a",
    ".hada_w2_b": "hada_w2_b",
    ".hada_t1": "hada_t1",
    ".hada_t2": "hada_t2",
    ".lokr_w1": "lokr_w1",
    ".lokr_w1_a": "lokr_w1_a",
    ".lokr_w1_b": "lokr_w1_b",
    ".lokr_w2": "lokr_w2",
    ".lokr_w2_a": "lokr_w2_a",
    ".lokr_w2_b": "lokr_w2_b",
    ".lokr_t2": "lokr_t2",
    ".oft_blocks": "oft_blocks",
    ".rescale": "rescale",
    ".diff": "full",
    ".diff_b": "full_bias",
    ".delta": "delta",
    ".rows": "rows",
    ".row_indices": "indices",
}
"""Ending of a name -> the part of a change that it means. `delta` follows a parameter, the others a module."""


@dataclass(frozen=True)
class Format:
    """How a format is written. Its prefixes and endings are among those that are read.

    title: for messages.
    prefixes: kind of network -> prefix.
    spelling: column of `Module.spellings`.
    endings: part of a change -> ending; the format cannot hold other parts.
    rest: kind of network -> prefix of what has no place under the other names: full changes and embedding tables.
    """

    title: str
    prefixes: Mapping[str, str]
    spelling: int
    endings: Mapping[str, str]
    rest: Mapping[str, str] | None = None


_KOHYA_ENDINGS = {"down": ".lora_down.weight", "up": ".lora_up.weight", "alpha": ".alpha", "dora": ".dora_scale"}
_LYCORIS_ENDINGS = {
    part: f".{part}"
    for part in (
        *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "oft_blocks", "rescale"),
        *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"),
    )
}
_WHOLE_ENDINGS = _KOHYA_ENDINGS | _LYCORIS_ENDINGS
_FULL_ENDINGS = {"full": ".diff", "full_bias": ".diff_b"}

FORMATS: Mapping[str, Format] = {
    "kohya": Format(
        "kohya",
        {"stage_c": "lora_unet_", "text_encoder": "lora_te_"},
        OURS,
        _WHOLE_ENDINGS | _FULL_ENDINGS,
    ),
    "onetrainer": Format(
        "OneTrainer",
        {"stage_c": "lora_prior_unet_", "text_encoder": "lora_prior_te_"},
        OURS,
        _WHOLE_ENDINGS,
    ),
    "onetrainer_diffusers": Format(
        "OneTrainer, names of diffusers",
        {"stage_c": "lora_prior_unet_", "text_encoder": "lora_prior_te_"},
        DIFFUSERS,
        _KOHYA_ENDINGS,
    ),
    "omi": Format("OneTrainer, OMI", {"stage_c": "unet.", "text_encoder": "clip_g."}, OMI, _KOHYA_ENDINGS),
    "peft": Format(
        "PEFT",
        {"stage_c": "prior.", "text_encoder": "text_encoder."},
        DIFFUSERS,
        {"down": ".lora_A.weight", "up": ".lora_B.weight", "magnitude": ".lora_magnitude_vector.weight"},
    ),
    "comfyui": Format(
        "ComfyUI",
        {"stage_c": "lora_prior_unet_", "text_encoder": "lora_prior_te_"},
        OURS,
        _WHOLE_ENDINGS | _FULL_ENDINGS,
        rest={"stage_c": "diffusion_model.", "text_encoder": "text_encoders.clip_g.transformer."},
    ),
    "cascade": Format(
        "our own",
        {"stage_c": "stage_c.", "stage_b": "stage_b.", "text_encoder": "text_encoder."},
        OURS,
        _WHOLE_ENDINGS | {"delta": ".delta", "rows": ".rows", "indices": ".row_indices"},
    ),
}
"""The formats that name modules. `comfyui` has OneTrainer's names for what OneTrainer can hold, and ComfyUI's own for
the rest, so that ComfyUI's loader reads all of it. `released` numbers its tensors and `embedding` has tokens only: see
`released`, `reading` and `writing`."""


@dataclass(frozen=True)
class Place:
    """Where a tensor of a file belongs.

    kind: of the network.
    parameters: our names; several if the tensor is to be split along dimension 0.
    part: of the change: down, up, alpha, ...
    """

    kind: str
    parameters: tuple[str, ...]
    part: str


@cache
def _pattern(path: str, separator: str) -> re.Pattern[str]:
    pieces = (re.escape(piece.replace(".", separator)) for piece in path.split("{}"))
    return re.compile(r"(\d{1,4})".join(pieces))


def find_place(name: str) -> Place | None:
    """Where the tensor of this name in a file belongs; None if the name is unknown."""
    ending = next((ending for ending in ENDINGS if name.endswith(ending)), None)
    if ending is None:
        return None
    part, stem = ENDINGS[ending], name.removesuffix(ending)
    for prefix, kinds in PREFIXES.items():
        if stem.startswith(prefix):
            for kind in kinds:
                if part == "delta":
                    return Place(kind, (stem.removeprefix(prefix),), "full")
                if part == "full" and NORM.fullmatch(stem.removeprefix(prefix)):
                    return Place(kind, (stem.removeprefix(prefix),), part)
                modules = _find_modules(kind, stem.removeprefix(prefix), prefix[-1:] or ".")
                if modules:
                    kept, parameter = ("full", "bias") if part == "full_bias" else (part, "weight")
                    return Place(kind, tuple(f"{module}.{parameter}" for module in modules), kept)
    return None


def _find_modules(kind: str, path: str, separator: str) -> tuple[str, ...]:
    for module in MODULES[kind]:
        for spelling in module.spellings:
            if match := _pattern(spelling, separator).fullmatch(path):
                return tuple(ours.format(*match.groups()) for ours in module.ours)
    return ()


def name_of(kind: str, module: str, format: Format) -> str | None:
    """The name in a file, without its ending, of a module of ours; None if the format has no name for it."""
    for row in MODULES[kind]:
        match = _pattern(row.ours[0], ".").fullmatch(module) if len(row.ours) == 1 else None
        if match:
            prefix = format.prefixes[kind]
            path = row.spellings[format.spelling].format(*match.groups())
            return prefix + path.replace(".", prefix[-1])
    return None


def format_of(names: Sequence[str]) -> str:
    """The format that could have written most of these names; among equals the one with more of their endings."""
    plain = [name.replace(".default.", ".") for name in names]
    counts = {
        key: (
            sum(_could_write(format, name) for name in plain),
            sum(name.endswith(tuple(format.endings.values())) for name in plain),
        )
        for key, format in FORMATS.items()
    }
    return max(counts, key=lambda key: counts[key])


def _could_write(format: Format, name: str) -> bool:
    ending = next((ending for ending in format.endings.values() if name.endswith(ending)), None)
    prefix = next(((k, p) for k, p in format.prefixes.items() if name.startswith(p)), None)
    if ending is None or prefix is None:
        return False
    path = name.removesuffix(ending).removeprefix(prefix[1])
    return bool(_spelled(prefix[0], format.spelling, prefix[1][-1]).fullmatch(path))


@cache
def _spelled(kind: str, column: int, separator: str) -> re.Pattern[str]:
    """Matches any path of one spelling."""
    rows = (row.spellings[column] for row in MODULES[kind] if len(row.spellings) > column)
    return re.compile("|".join(_pattern(path, separator).pattern for path in rows))


FOREIGN: Sequence[tuple[str, str]] = (
    ("a LoRA for Flux", r"double_blocks[._]\d+[._](img|txt)_|single_transformer_blocks[._]\d"),
    ("a LoRA for Stable Diffusion 3", r"joint_blocks[._]\d|transformer[._]transformer_blocks[._]\d+[._]attn[._]add_"),
    ("a LoRA for SDXL", r"^lora_te2_|text_encoder_2\.|_transformer_blocks_[2-9]_|\.transformer_blocks\.[2-9]\."),
    ("a LoRA for SDXL", r"(input|output)_blocks_[4578]_1_transformer_blocks_"),
    ("a LoRA for Stable Diffusion 1.5 or 2", r"attentions[._]\d+[._]transformer_blocks[._]0|(put|dle)_block"),
    ("a LyCORIS file of a kind that is not read here", r"\.(a1\.weight|on_input|oft_diag|w_norm|b_norm)$"),
)
"""LoRA files for other networks, and a pattern of one of their names; the first that matches counts."""


def recognize_foreign(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """What a file with other names is; None if that is unknown too."""
    for title, pattern in FOREIGN:
        if any(re.search(pattern, name) for name in shapes):
            if "1.5 or 2" not in title:
                return title
            # The keys of its cross attention have the text encoder's width: 768 in 1.5, 1024 in 2, 2048 in SDXL.
            widths = {shape[1] for name, shape in shapes.items() if _reads_text(name) and len(shape) > 1}
            known = {768: "a LoRA for Stable Diffusion 1.5", 1024: "a LoRA for Stable Diffusion 2"}
            return next(
                (known[width] for width in known if width in widths), "a LoRA for SDXL" if 2048 in widths else title
            )
    return None


def _reads_text(name: str) -> bool:
    return bool(re.search(r"attn2[._](processor[._])?to_k", name)) and ENDINGS.get(_ending(name)) == "down"


def _ending(name: str) -> str:
    return next((ending for ending in ENDINGS if name.endswith(ending)), "")
