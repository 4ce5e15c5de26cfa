"""Files for the tests of checkpoints: small networks of sizes that tell their heads, in every layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cascade import models
from cascade.checkpoints import ClipTextConfig, ClipVisionConfig, StyleDescriptorConfig
from cascade.checkpoints.header import TensorInfo, header_bytes
from cascade.checkpoints.network_kinds import KINDS
from cascade.models import Level
from tests.support import relative_error

CONFIGS: dict[str, Any] = {
    "stage_c": models.StageCConfig(
        condition_channels=64,
        clip_text=20,
        clip_text_pooled=12,
        clip_img=8,
        levels=(Level(64, 1, 1), Level(128, 2, 2, down_repeats=2, up_repeats=2)),
    ),
    "stage_b": models.StageBConfig(
        condition_channels=32,
        clip=12,
        levels=(Level(8, 0, 2, "CT", up_repeats=2), Level(16, 0, 1, "CT"), Level(64, 1, 2, up_repeats=3)),
    ),
    "stage_a": models.StageAConfig(width=16, bottleneck_blocks=2, codebook_size=16),
    "effnet": models.EffnetConfig(
        stem=4,
        stages=(
            models.EffnetStage(True, 1, 1, 4, 2),
            models.EffnetStage(True, 4, 2, 8, 2),
            models.EffnetStage(True, 4, 2, 8, 1),
            models.EffnetStage(False, 1, 2, 12, 2),
            models.EffnetStage(False, 6, 1, 12, 1),
            models.EffnetStage(False, 4, 2, 16, 2),
        ),
        head=24,
    ),
    "previewer": models.PreviewerConfig(width=16),
    "controlnet": models.ControlNetConfig(
        in_channels=3, width=8, blocks=(0, 4, 8, 12, 51, 55, 59, 63), backbone="simple"
    ),
    "high_res_guide": models.HighResGuideConfig(stage_c_width=16, width=64, heads=2, groups=8, timestep_channels=16),
    "high_res_guides": models.HighResGuideConfig(stage_c_width=16, width=64, heads=2, groups=8, levels=3),
    "prior": models.PriorConfig(
        clip_img=8, clip_text=20, clip_text_pooled=12, width=64, heads=1, depth=2, timestep_channels=16
    ),
    "ip_adapter": models.IPAdapterConfig(encoder=16, blocks=(16, 24), tokens=3, width=64, heads=1, depth=2),
    "text_encoder": ClipTextConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=1,
        projection_dim=12,
        vocab_size=40,
        max_position_embeddings=9,
    ),
    "image_encoder": ClipVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=1,
        projection_dim=8,
        image_size=28,
    ),
    "style_descriptor": StyleDescriptorConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=1,
        projection_dim=8,
        image_size=28,
    ),
}


@cache
@torch.random.fork_rng(devices=[])
def network(kind: str) -> nn.Module:
    """A network with random numbers everywhere, the same every time."""
    torch.manual_seed(sum(map(ord, kind)))
    net = KINDS[kind].network(CONFIGS[kind], nn)
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            tensor.normal_(std=0.2)
            if name.endswith("running_var"):
                tensor.abs_().add_(0.5)
        else:
            tensor.zero_()
    return net.eval().requires_grad_(False)


@torch.no_grad()
def outputs(kind: str, net: Any) -> list[Tensor]:
    """What a network makes of fixed inputs."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    config = CONFIGS[kind]
    match kind:
        case "stage_c":
            args = (noise(2, 16, 4, 5), torch.tensor([0.2, 0.9]), noise(2, 7, 20), noise(2, 1, 12), noise(2, 1, 8))
            return [net(*args)]
        case "stage_b":
            return [net(noise(2, 4, 8, 8), torch.tensor([0.2, 0.9]), noise(2, 16, 2, 2), noise(2, 1, 12))]
        case "stage_a":
            return [net.encode(noise(1, 3, 16, 16)), net.decode(noise(1, 4, 4, 4))]
        case "effnet":
            return [net(noise(1, 3, 64, 64))]
        case "previewer":
            return [net(noise(1, 16, 3, 3))]
        case "controlnet":
            return [x for x in net(noise(1, config.in_channels, 4, 4)) if x is not None]
        case "high_res_guide":
            return [net(noise(1, 16, 4, 5), noise(1, 16, 2, 3), torch.tensor([0.2]))]
        case "high_res_guides":
            return [
                guide(noise(1, 16, 4, 5), noise(1, 16, 2, 3), torch.tensor([0.2])) for guide in (*net.down, *net.up)
            ]
        case "prior":
            conditions = net.conditions(noise(2, 7, 20), noise(2, 1, 12))
            return [net.embeddings(net.denoise(noise(2, 8), torch.tensor([0.2, 0.9]), conditions))]
        case "ip_adapter":
            return [x for pair in net(noise(2, 5, 16)) for x in pair]
        case "text_encoder":
            result = net(torch.arange(9)[None] % 40, output_hidden_states=True)
            return [result.text_embeds, result.hidden_states[-1]]
        case "style_descriptor":
            return list(net(pixel_values=noise(1, 3, 28, 28)))
        case _:
            return [net(pixel_values=noise(1, 3, 28, 28)).image_embeds]


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Bit for bit."""
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def same_outputs(kind: str, one: nn.Module, other: nn.Module) -> bool:
    """But for rounding: kernels add in another order where the same weights lie at another address."""
    pairs = zip(outputs(kind, one), outputs(kind, other), strict=True)
    return all(relative_error(a, b) < 1e-5 for a, b in pairs)


def released_state(kind: str) -> dict[str, Tensor]:
    """A network's tensors under the released names, written down here a second time on purpose."""
    if kind == "style_descriptor":
        return csd_state()
    state: dict[str, Tensor] = {}
    if kind == "prior":  # there is no released one, only ours
        return dict(network(kind).state_dict())
    for name, tensor in network(kind).state_dict().items():
        if kind == "high_res_guides":
            state[name.replace("down.", "agg_net.").replace("up.", "agg_net_up.")] = tensor
        elif ".attn.to_q." in name:
            parts = [network(kind).state_dict()[name.replace(".to_q.", f".to_{m}.")] for m in "qkv"]
            state[name.replace(".to_q.", ".in_proj_")] = torch.cat(parts)
        elif ".attn.to_k." not in name and ".attn.to_v." not in name:
            state[name] = tensor
    return state


def csd_state(start: str = "") -> dict[str, Tensor]:
    """A style descriptor's tensors under the names of CSD."""
    ours = network("style_descriptor").state_dict()
    state = {
        f"{start}last_layer_style": ours["style"],
        f"{start}last_layer_content": ours["content"],
        f"{start}backbone.class_embedding": ours["vision_model.embeddings.class_embedding"],
        f"{start}backbone.positional_embedding": ours["vision_model.embeddings.position_embedding.weight"],
        f"{start}backbone.conv1.weight": ours["vision_model.embeddings.patch_embedding.weight"],
    }
    for part in ("weight", "bias"):
        state[f"{start}backbone.ln_pre.{part}"] = ours[f"vision_model.pre_layrnorm.{part}"]
        state[f"{start}backbone.ln_post.{part}"] = ours[f"vision_model.post_layernorm.{part}"]
        for i in range(CONFIGS["style_descriptor"].num_hidden_layers):
            block, layer = f"{start}backbone.transformer.resblocks.{i}", f"vision_model.encoder.layers.{i}"
            matrices = [ours[f"{layer}.self_attn.{matrix}_proj.{part}"] for matrix in "qkv"]
            state[f"{block}.attn.in_proj_{part}"] = torch.cat(matrices)
            state[f"{block}.attn.out_proj.{part}"] = ours[f"{layer}.self_attn.out_proj.{part}"]
            for theirs, name in (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2")):
                state[f"{block}.{theirs}.{part}"] = ours[f"{layer}.{name}.{part}"]
            for theirs, name in (("c_fc", "fc1"), ("c_proj", "fc2")):
                state[f"{block}.mlp.{theirs}.{part}"] = ours[f"{layer}.mlp.{name}.{part}"]
    return state


def comfyui_state(*kinds: str) -> dict[str, Tensor]:
    """Several networks as ComfyUI merges them."""
    prefixes = {
        "stage_c": "model.diffusion_model.",
        "stage_b": "model.diffusion_model.",
        "stage_a": "vae.",
        "effnet": "vae.encoder.",
        "previewer": "vae.previewer.",
        "text_encoder": "text_encoder.clip_g.transformer.",
        "image_encoder": "clip_l_vision.",
    }
    return {prefixes[kind] + name: tensor for kind in kinds for name, tensor in released_state(kind).items()}


def save(path: Path, state: Mapping[str, Tensor]) -> Path:
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, path)
    return path


def hollow_file(path: Path, shapes: Mapping[str, list[int]], dtype: torch.dtype = torch.bfloat16) -> Path:
    """A file of the right size with the right header, and a hole where its tensors should be."""
    infos = {
        name: TensorInfo(tuple(shape), torch.int64 if name.endswith("num_batches_tracked") else dtype)
        for name, shape in shapes.items()
    }
    infos = dict(sorted(infos.items(), key=lambda item: -item[1].dtype.itemsize))
    start = header_bytes(infos, {})
    with path.open("wb") as file:
        file.write(start)
        file.truncate(len(start) + sum(info.bytes for info in infos.values()))
    return path


def raw_file(path: Path, header: Any, body: bytes = b"") -> Path:
    """A safetensors file whose header says whatever it is told to say."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path
