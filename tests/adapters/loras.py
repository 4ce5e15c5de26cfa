"""LoRA files as each trainer writes them, by rules of its own that share nothing with the tables under test."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from cascade import models
from cascade.adapters import Lora, attaching
from cascade.checkpoints.network_kinds import KINDS, config_of, empty_network
from tests.support import INDEX, SHAPES, assigned, golden, manifest, meta, reference_weights, split_attention

GOLDEN = INDEX["lora_official"]
SMALL = models.StageCConfig.from_reference(**GOLDEN["config"]["model_config"])
MANIFESTS = {"3.6B": "stage_c_3_6b", "1B": "stage_c_1b"}
ORIGINAL, DIFFUSERS, OMI = range(3)
ATTENTION = {
    "to_q": ("attn.to_q", "to_q", "attn.in_proj.0"),
    "to_k": ("attn.to_k", "to_k", "attn.in_proj.1"),
    "to_v": ("attn.to_v", "to_v", "attn.in_proj.2"),
    "out_proj": ("attn.out_proj", "to_out.0", "attn.out_proj"),
}


def small_stage_c() -> nn.Module:
    weights = reference_weights(SHAPES[GOLDEN["config"]["model"]], GOLDEN["seed"])
    return assigned(meta("stage_c", SMALL), split_attention(weights))


def official() -> dict[str, Tensor]:
    """The golden file of the released trainer."""
    return {name.removeprefix("lora."): value for name, value in golden("lora_official").items() if "lora." in name}


@torch.no_grad()
def golden_output(net: nn.Module) -> Tensor:
    data = golden("lora_official")
    return net(*(data[f"input.{name}"] for name in ("x", "r", "clip_text", "clip_text_pooled", "clip_img")))


def check_fits(lora: Lora, kind: str, net: nn.Module) -> None:
    shapes = {name: parameter.shape for name, parameter in net.named_parameters()}
    attaching.check_fits(lora, kind, shapes, config_of(net))


@cache
def stage_c(size: str) -> nn.Module:
    """A released Stage C, or the text encoder, without memory."""
    kind = "text_encoder" if size == "text" else "stage_c"
    name = "CLIP bigG/14" if size == "text" else size
    return empty_network(kind, KINDS[kind].released[name])


@cache
def matrices(size: str, spelling: int) -> dict[str, tuple[int, ...]]:
    """Every linear layer and convolution of a released Stage C as a trainer names it, with its weight's shape."""
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in manifest(MANIFESTS[size]).items():
        stem = name.removesuffix(".weight").removesuffix("_weight")
        if len(shape) < 2 or name.endswith((".gamma", ".beta")):
            continue
        if stem.endswith("attn.in_proj"):
            start = stem.removesuffix("attn.in_proj")
            for matrix in ("to_q", "to_k", "to_v"):
                found[start + ATTENTION[matrix][spelling]] = (shape[0] // 3, shape[1])
        elif stem.endswith("attn.out_proj"):
            found[stem.removesuffix("attn.out_proj") + ATTENTION["out_proj"][spelling]] = tuple(shape)
        else:
            found[stem] = tuple(shape)
    return found


@cache
def text_matrices(projection: bool) -> dict[str, tuple[int, ...]]:
    names = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", *(["text_projection"] if projection else []))
    shapes = {name.removesuffix(".weight"): tuple(shape) for name, shape in manifest("text_encoder").items()}
    return {name: shape for name, shape in shapes.items() if name.endswith(names) and len(shape) == 2}


def factors(shape: tuple[int, ...], rank: int = 1) -> tuple[Tensor, Tensor]:
    """down and up for a weight of this shape; a depthwise convolution's as OneTrainer makes them."""
    depthwise = len(shape) == 4 and shape[1] == 1
    out, inner = (1, shape[0]) if depthwise else shape[:2]
    ones = (1,) * (len(shape) - 2)
    return torch.randn(rank, inner, *shape[2:]), torch.randn(out, rank, *ones)


def kohya(size: str, prefix: str = "lora_unet_", text: str = "lora_te_", spelling: int = ORIGINAL) -> dict[str, Tensor]:
    """kohya's form, which OneTrainer's two older forms share but for prefix and spelling."""
    ours = "prior" in prefix
    tensors: dict[str, Tensor] = {}
    named = {
        prefix + name.replace(".", "_"): shape
        for name, shape in matrices(size, spelling).items()
        # kohya's full convolution has no meaning for a depthwise one.
        if ours or not name.endswith("depthwise")
    }
    named |= {text + name.replace(".", "_"): shape for name, shape in text_matrices(ours).items()}
    for name, shape in named.items():
        down, up = factors(shape)
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(0.5)}
    return tensors


def onetrainer(size: str) -> dict[str, Tensor]:
    return kohya(size, "lora_prior_unet_", "lora_prior_te_") | {"bundle_emb.<thing>.clip_g": torch.randn(3, 1280)}


def onetrainer_diffusers(size: str) -> dict[str, Tensor]:
    return kohya(size, "lora_prior_unet_", "lora_prior_te_", DIFFUSERS)


def omi(size: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {"bundle_emb.<thing>.clip_g": torch.randn(1, 1280)}
    for prefix, shapes in (("unet", matrices(size, OMI)), ("clip_g", text_matrices(True))):
        for name, shape in shapes.items():
            stem, (down, up) = f"{prefix}.{name}", factors(shape)
            tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.ones(())}
    return tensors


def dora(size: str) -> dict[str, Tensor]:
    """OneTrainer's DoRA: a length for each column, or on request for each row."""
    tensors = onetrainer(size)
    for place, (name, shape) in enumerate(matrices(size, ORIGINAL).items()):
        ones = (1,) * (len(shape) - 2)
        lengths = torch.rand(1, shape[1], *ones) if place % 2 else torch.rand(shape[0], 1, *ones)
        tensors[f"lora_prior_unet_{name.replace('.', '_')}.dora_scale"] = lengths + 0.5
    return tensors


def peft(size: str, prefix: str = "prior.", text: str = "text_encoder.", infix: str = "") -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    named = {prefix + name: shape for name, shape in matrices(size, DIFFUSERS).items() if "depthwise" not in name}
    named |= {text + name: shape for name, shape in text_matrices(True).items()}
    for name, shape in named.items():
        down, up = factors(shape)
        tensors |= {f"{name}.lora_A{infix}.weight": down, f"{name}.lora_B{infix}.weight": up}
    for name, shape in named.items():
        if name.endswith("to_q"):
            tensors[f"{name}.lora_magnitude_vector{infix}.weight"] = torch.rand(shape[0]) + 0.5
    return tensors


def peft_wrapped(size: str) -> dict[str, Tensor]:
    return peft(size, "base_model.model.", "base_model.model.", ".default")


def released(size: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    index = 0
    for name, shape in manifest(MANIFESTS[size]).items():
        if name.endswith("attn.in_proj_weight"):
            for out in (shape[0] // 3, shape[0]):
                tensors[f"weights.{index}.lora_down"] = torch.randn(1, shape[1])
                tensors[f"weights.{index}.lora_up"] = torch.randn(out, 1)
                index += 1
    tensors["embeddings.embeddings"] = torch.randn(2, 1280)
    tensors["embeddings.indices"] = torch.tensor([49408, 320])
    return tensors


TRAINERS: dict[str, Callable[[str], dict[str, Tensor]]] = {
    "kohya": kohya,
    "onetrainer": onetrainer,
    "onetrainer_diffusers": onetrainer_diffusers,
    "omi": omi,
    "dora": dora,
    "peft": peft,
    "peft_wrapped": peft_wrapped,
    "released": released,
}
