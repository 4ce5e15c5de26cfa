"""Names in files and names in our networks: one table of rules for each layout, used for reading and writing.

Ours are the released names, except that attention's `in_proj` is three matrices. Names without a rule stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """One renaming; `{}` stands for the same text in all its templates.

    Args:
        theirs: the name in the file.
        ours: our name; several if the file's tensor contains them one after another; none if it is not needed.
        transposed: the file has the matrix transposed. Such names are read, never written.
    """

    theirs: str
    ours: tuple[str, ...] = ()
    transposed: bool = False


@dataclass(frozen=True)
class Piece:
    """The place of one of our tensors: part `index` of `count` equal parts of the file's `name`, along dimension 0."""

    name: str
    index: int = 0
    count: int = 1
    transposed: bool = False


FUSED_ATTENTION = tuple(
    Rule(f"{{}}attn.in_proj_{part}", tuple(f"{{}}attn.to_{matrix}.{part}" for matrix in "qkv"))
    for part in ("weight", "bias")
)
DIFFUSERS_ATTENTION = (
    *(
        Rule(f"{{}}.attention.to_{m}.{part}", (f"{{}}.attention.attn.to_{m}.{part}",))
        for m in "qkv"
        for part in ("weight", "bias")
    ),
    *(
        Rule(f"{{}}.attention.to_out.0.{part}", (f"{{}}.attention.attn.out_proj.{part}",))
        for part in ("weight", "bias")
    ),
)
CLIP_EXTRAS = (Rule("{}position_ids"), Rule("logit_scale"))


def _csd(start: str) -> Iterator[Rule]:
    """The names of CSD, whose vision model is OpenAI's; trained in several processes they begin with `module.`."""
    backbone, ours, block = f"{start}backbone.", "vision_model.", "transformer.resblocks.{}"
    yield Rule(f"{backbone}class_embedding", (f"{ours}embeddings.class_embedding",))
    yield Rule(f"{backbone}positional_embedding", (f"{ours}embeddings.position_embedding.weight",))
    yield Rule(f"{backbone}conv1.weight", (f"{ours}embeddings.patch_embedding.weight",))
    yield from (Rule(f"{start}last_layer_{head}", (head,)) for head in ("style", "content"))
    names = {"attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    names |= {"ln_1": "layer_norm1", "ln_2": "layer_norm2"}
    for part in ("weight", "bias"):
        yield Rule(f"{backbone}ln_pre.{part}", (f"{ours}pre_layrnorm.{part}",))
        yield Rule(f"{backbone}ln_post.{part}", (f"{ours}post_layernorm.{part}",))
        matrices = tuple(f"{ours}encoder.layers.{{}}.self_attn.{matrix}_proj.{part}" for matrix in "qkv")
        yield Rule(f"{backbone}{block}.attn.in_proj_{part}", matrices)
        yield from (
            Rule(f"{backbone}{block}.{theirs}.{part}", (f"{ours}encoder.layers.{{}}.{name}.{part}",))
            for theirs, name in names.items()
        )


CSD = (*_csd(""), *_csd("module."))

GUIDES = (Rule("agg_net.{}", ("down.{}",)), Rule("agg_net_up.{}", ("up.{}",)))
"""The lists of high-res guides as they are written; files that are read call them by many names."""

LAYOUTS: Mapping[str, Mapping[str, tuple[Rule, ...]]] = {
    "released": {
        "high_res_guides": GUIDES,
        "stage_c": FUSED_ATTENTION,
        "stage_b": FUSED_ATTENTION,
        "text_encoder": CLIP_EXTRAS,
        "image_encoder": CLIP_EXTRAS,
        "style_descriptor": CSD,
    },
    "diffusers": {
        "stage_c": DIFFUSERS_ATTENTION,
        "stage_b": (*DIFFUSERS_ATTENTION, Rule("clip_txt_pooled_mapper.{}", ("clip_mapper.{}",))),
        "stage_a": (Rule("vquantizer.embedding.weight", ("vquantizer.codebook.weight",)),),
        "text_encoder": CLIP_EXTRAS,
        "image_encoder": CLIP_EXTRAS,
    },
    "comfyui": {
        "stage_c": FUSED_ATTENTION,
        "stage_b": FUSED_ATTENTION,
        "effnet": (Rule("mean"), Rule("std")),
        "text_encoder": (
            *CLIP_EXTRAS,
            Rule("transformer.{}position_ids"),
            Rule("transformer.{}", ("{}",)),
            Rule("text_projection", ("text_projection.weight",), transposed=True),
        ),
        "image_encoder": CLIP_EXTRAS,
    },
}
"""layout -> kind -> rules, tried in order. Our own files are the released layout with metadata."""

COMFYUI_PREFIXES: Mapping[str, tuple[str, ...]] = {
    "model.diffusion_model.": ("stage_c", "stage_b"),
    "vae.encoder.": ("effnet",),
    "vae.previewer.": ("previewer",),
    "vae.": ("stage_a",),
    "text_encoder.clip_g.": ("text_encoder",),
    "clip_l_vision.": ("image_encoder",),
    # A file that ComfyUI saves of Stage C's VAE alone
    "encoder.": ("effnet",),
    "previewer.": ("previewer",),
}
"""Prefix in a checkpoint of ComfyUI -> the kinds of network that it can mean; the first prefix that fits counts."""

DIFFUSERS_FOLDERS: Mapping[str, str] = {
    "stage_c": "prior",
    "stage_b": "decoder",
    "stage_a": "vqgan",
    "text_encoder": "text_encoder",
    "image_encoder": "image_encoder",
}


def rules(layout: str, kind: str) -> tuple[Rule, ...]:
    """The rules of a layout for one kind of network."""
    return LAYOUTS[layout].get(kind, ())


def reading_rules(layout: str, kind: str, names: Iterable[str]) -> tuple[Rule, ...]:
    """The rules by which a file with these names is read."""
    return _guide_rules(names) if kind == "high_res_guides" else rules(layout, kind)


def _guide_rules(names: Iterable[str]) -> tuple[Rule, ...]:
    """High-res guides are two lists, whatever their names: first those of the way down (`agg_net` and `agg_net_up`,
    `module.64` and `module.65`, or these with a prefix)."""
    token = ".wtokens"
    lists = {name.removesuffix(token).rpartition(".")[0] for name in names if name.endswith(token)}
    if lists == {"down", "up"}:
        return ()
    ordered = sorted(lists, key=lambda name: (len(name), name))
    return tuple(Rule(f"{theirs}.{{}}", (f"{ours}.{{}}",)) for theirs, ours in zip(ordered, ("down", "up")))


def prefix(kind: str) -> str:
    """A network's prefix in a checkpoint of ComfyUI; "" for kinds that such files do not contain."""
    return next((start for start, kinds in COMFYUI_PREFIXES.items() if kind in kinds), "")


def split_prefixes(names: Iterable[str]) -> dict[str, list[str]]:
    """Names grouped by the first of `COMFYUI_PREFIXES` that each begins with; "" for names that begin with none."""
    found: dict[str, list[str]] = {}
    for name in names:
        start = next((start for start in COMFYUI_PREFIXES if name.startswith(start)), "")
        found.setdefault(start, []).append(name)
    return found


def matches(template: str, name: str) -> str | None:
    """The text in place of `{}` if the name matches the template, else None; "" for a template without `{}`."""
    start, braces, end = template.partition("{}")
    if not braces:
        return "" if name == template else None
    fits = len(name) >= len(start) + len(end) and name.startswith(start) and name.endswith(end)
    return name[len(start) : len(name) - len(end)] if fits else None


def to_ours(names: Iterable[str], table: Sequence[Rule]) -> dict[str, Piece]:
    """Our name -> its place in the file, for the names of a file.

    Raises:
        ValueError: two names of the file mean the same tensor.
    """
    found: dict[str, Piece] = {}
    for name in names:
        for ours, piece in _ours(name, table):
            if ours in found:
                raise ValueError(f"{found[ours].name} and {name} both mean {ours}")
            found[ours] = piece
    return found


def _ours(name: str, table: Sequence[Rule]) -> list[tuple[str, Piece]]:
    for rule in table:
        text = matches(rule.theirs, name)
        if text is not None:
            count = len(rule.ours)
            return [
                (ours.replace("{}", text), Piece(name, index, count, rule.transposed))
                for index, ours in enumerate(rule.ours)
            ]
    return [(name, Piece(name))]


def from_ours(names: Iterable[str], table: Sequence[Rule]) -> dict[str, tuple[str, ...]]:
    """Name in a file -> our tensors that it contains one after another; the inverse of `to_ours`."""
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        for rule in table:
            text = (
                None if rule.transposed else next((t for o in rule.ours if (t := matches(o, name)) is not None), None)
            )
            if text is not None:
                found[rule.theirs.replace("{}", text)] = tuple(ours.replace("{}", text) for ours in rule.ours)
                break
        else:
            found[name] = (name,)
    return found
