"""Style descriptors: CSD's file as its training writes it, what the heads compute, and what is refused."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cascade.checkpoints import StyleDescriptorConfig, inspect_file, load_model
from cascade.checkpoints.layouts import from_ours, rules
from cascade.checkpoints.network_kinds import empty_network
from cascade.errors import IncompatibleCheckpoint, UnknownCheckpoint
from tests.checkpoints.files import csd_state, hollow_file, network, released_state, same_weights, save


def training_state(path: Path, start: str = "module.") -> Path:
    """As CSD's training writes it: beside the network the states of its optimizers, numbers of NumPy, its settings."""
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": np.float64(0.1)}]}
    torch.save(
        {
            "model_state_dict": csd_state(start),
            "opt_bb": optimizer,
            "iter": 5,
            "args": Namespace(arch="vit_large", lr=np.float64(0.1), eval_k=[1, 5], gpu=None, seed=42),
        },
        path,
    )
    return path


@pytest.mark.parametrize("start", ["", "module."])
def test_a_trainings_file_is_read_without_running_code(start: str, tmp_path: Path) -> None:
    path = training_state(tmp_path / "checkpoint.pth", start)
    assert inspect_file(path).kind == "style_descriptor"
    assert same_weights(load_model(path, part="style_descriptor"), network("style_descriptor"))


def test_the_released_size_is_known_by_its_shapes(tmp_path: Path) -> None:
    net = empty_network("style_descriptor", StyleDescriptorConfig())
    names = from_ours(net.state_dict(), rules("released", "style_descriptor"))
    shapes = {name: list(net.state_dict()[ours[0]].shape) for name, ours in names.items()}
    shapes = {name: [3 * shape[0], *shape[1:]] if len(names[name]) == 3 else shape for name, shape in shapes.items()}
    assert len(shapes) == 297
    assert shapes["last_layer_style"] == shapes["last_layer_content"] == [1024, 768]
    assert shapes["backbone.transformer.resblocks.23.attn.in_proj_weight"] == [3072, 1024]
    found = inspect_file(hollow_file(tmp_path / "download.safetensors", shapes))
    assert (found.variant, found.folder) == ("Style descriptor, CSD ViT-L/14", "clip_vision")


def vision_of_openai(state: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """CLIP's vision model as OpenAI defines it, with torch's attention: its summary token before a projection."""
    width = state["backbone.class_embedding"].shape[0]
    x = F.conv2d(pixels, state["backbone.conv1.weight"], stride=14).flatten(2).transpose(1, 2)
    x = torch.cat([state["backbone.class_embedding"].expand(len(x), 1, -1), x], dim=1)
    x = x + state["backbone.positional_embedding"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (width,), state[f"backbone.{name}.weight"], state[f"backbone.{name}.bias"])

    x = norm(x, "ln_pre")
    for i in range(2):
        block = f"transformer.resblocks.{i}"
        own = {name: state[f"backbone.{block}.{name}"] for name in ("attn.in_proj_weight", "attn.in_proj_bias")}
        attention = nn.MultiheadAttention(width, 1, batch_first=True)
        attention.load_state_dict(
            {
                "in_proj_weight": own["attn.in_proj_weight"],
                "in_proj_bias": own["attn.in_proj_bias"],
                "out_proj.weight": state[f"backbone.{block}.attn.out_proj.weight"],
                "out_proj.bias": state[f"backbone.{block}.attn.out_proj.bias"],
            }
        )
        y = norm(x, f"{block}.ln_1")
        x = x + attention(y, y, y, need_weights=False)[0]
        y = norm(x, f"{block}.ln_2")
        first, second = (
            (state[f"backbone.{block}.mlp.{name}.weight"], state[f"backbone.{block}.mlp.{name}.bias"])
            for name in ("c_fc", "c_proj")
        )
        y = F.linear(y, *first)
        x = x + F.linear(y * torch.sigmoid(1.702 * y), *second)
    return norm(x[:, 0], "ln_post")


@torch.no_grad()
def test_its_heads_compute_what_csd_defines() -> None:
    state, pixels = csd_state(), torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    feature = vision_of_openai(state, pixels)
    found = load_model(state, part="style_descriptor")(pixels)
    for name, each in zip(("style", "content"), found, strict=True):
        expected = F.normalize(feature @ state[f"last_layer_{name}"], dim=1)
        assert torch.allclose(each, expected, atol=1e-5)


def test_another_network_or_head_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "encoder.safetensors", released_state("image_encoder"))
    with pytest.raises(IncompatibleCheckpoint, match=r"this is Image encoder.*Wanted here: Style descriptor"):
        load_model(path, part="style_descriptor")
    other = {name: tensor for name, tensor in csd_state().items() if name != "last_layer_content"}
    other |= {f"last_layer_content.{part}.weight": torch.ones(8, 8) for part in ("projection", "fc")}
    with pytest.raises(UnknownCheckpoint, match="a style descriptor whose content head is not that of CSD's"):
        load_model(other, part="style_descriptor")
    with pytest.raises(IncompatibleCheckpoint, match="missing: "):
        load_model({name: tensor for name, tensor in csd_state().items() if "ln_post" not in name})
