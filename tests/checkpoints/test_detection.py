from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cascade.checkpoints import inspect_file, load_model, save_model
from cascade.checkpoints.detection import FOREIGN
from cascade.checkpoints.layouts import reading_rules, to_ours
from cascade.checkpoints.network_kinds import KINDS, empty_network
from cascade.errors import IncompatibleCheckpoint, UnknownCheckpoint
from cascade.models import ControlNet, ControlNetConfig, initialize
from tests.checkpoints.files import CONFIGS, comfyui_state, hollow_file, network, released_state, save
from tests.support import manifest

RELEASED = {
    "stage_c_3_6b": ("stage_c", "Stage C, 3.6B", "3.6B", "diffusion_models"),
    "stage_c_1b": ("stage_c", "Stage C, 1B", "1B", "diffusion_models"),
    "stage_b_1_5b": ("stage_b", "Stage B, 1.5B", "1.5B", "diffusion_models"),
    "stage_b_700m": ("stage_b", "Stage B, 700M", "700M", "diffusion_models"),
    "stage_a": ("stage_a", "Stage A", "", "vae"),
    "effnet_encoder": ("effnet", "EfficientNet encoder", "", "vae"),
    "previewer": ("previewer", "Previewer", "", "vae"),
    "controlnet_canny": ("controlnet", "ControlNet, canny", "canny", "controlnet"),
    "controlnet_inpainting": ("controlnet", "ControlNet, inpainting", "inpainting", "controlnet"),
    "controlnet_super_resolution": ("controlnet", "ControlNet, super resolution", "super resolution", "controlnet"),
    "controlnet_identity": ("controlnet", "ControlNet, identity", "identity", "controlnet"),
    "ultrapixel_t2i": ("high_res_guides", "High-res guides, UltraPixel", "UltraPixel", "model_patches"),
    "text_encoder": ("text_encoder", "Text encoder, CLIP bigG/14", "CLIP bigG/14", "text_encoders"),
    "image_encoder": ("image_encoder", "Image encoder, CLIP ViT-L/14", "CLIP ViT-L/14", "clip_vision"),
}
PARAMETERS = {
    "stage_c_3_6b": 3_589_103_632,
    "stage_b_700m": 699_471_248,
    "effnet_encoder": 20_197_968,
    "ultrapixel_t2i": 105_524_224,
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_files_are_named(name: str, tmp_path: Path) -> None:
    kind, variant, size, folder = RELEASED[name]
    # The file's name says nothing, and nothing of 14 GB is written or read: the tensors are a hole.
    found = inspect_file(hollow_file(tmp_path / "download.safetensors", manifest(name)))
    assert (found.kind, found.variant, found.folder) == (kind, variant, folder)
    assert (found.layout, found.dtype) == ("released", "bfloat16")
    assert found.config == KINDS[kind].released[size].to_dict()
    assert found.uncertain == ()
    assert found.parameters == PARAMETERS.get(name, found.parameters)


@pytest.mark.parametrize("name", RELEASED)
def test_released_names_and_shapes_are_the_networks(name: str) -> None:
    kind, _, size, _ = RELEASED[name]
    net = empty_network(kind, KINDS[kind].released[size])
    expected = {name: list(tensor.shape) for name, tensor in net.state_dict().items()}
    shapes = manifest(name)
    ours = {}
    for our_name, piece in to_ours(shapes, reading_rules("released", kind, shapes)).items():
        first, *rest = shapes[piece.name] or [None]
        ours[our_name] = [] if first is None else [first // piece.count, *rest]
    assert ours == expected


@pytest.mark.parametrize("kind", CONFIGS)
def test_configs_of_other_sizes_come_from_shapes(kind: str) -> None:
    assert inspect_file(released_state(kind)).config == CONFIGS[kind].to_dict()


SMALL_CONTROLNETS = [
    ControlNetConfig(
        in_channels=1,
        width=16,
        blocks=(0, 4, 8, 12, 51, 55, 59, 63),
        features=20,
        stem=8,
        stages=CONFIGS["effnet"].stages,
    ),
    ControlNetConfig(
        in_channels=16,
        width=16,
        blocks=(0, 4, 8, 12, 51, 55, 59, 63),
        backbone="large",
        features=20,
        inside=(24, 12),
        depth=2,
    ),
]


@pytest.mark.parametrize("config", SMALL_CONTROLNETS, ids=lambda config: config.backbone)
def test_a_small_controlnets_sizes_come_from_shapes(config: ControlNetConfig) -> None:
    shapes = empty_network("controlnet", config).state_dict()
    assert inspect_file({name: torch.empty(tensor.shape) for name, tensor in shapes.items()}).config == config.to_dict()


@pytest.mark.parametrize("config", [replace(config, blocks=(1, 5)) for config in SMALL_CONTROLNETS])
def test_a_small_controlnets_blocks_come_from_its_metadata(tmp_path: Path, config: ControlNetConfig) -> None:
    save_model(initialize(ControlNet(config)), tmp_path / "net.safetensors")
    assert load_model(tmp_path / "net.safetensors").config == config


def test_a_level_of_blocks_in_another_order_is_found() -> None:
    from cascade.models import Level, StageCConfig

    config = StageCConfig(
        levels=(Level(64, 0, 3, "CT"), Level(64, 1, 2, "CATF"), Level(64, 1, 1, "CTA")),
        condition_channels=64,
        switch_level=(False, False),
        timestep_conditions=("crp",),
        kernel_size=5,
        timestep_channels=32,
    )
    state = {name: torch.empty(tensor.shape) for name, tensor in empty_network("stage_c", config).state_dict().items()}
    assert inspect_file(state).config == config.to_dict()


def test_merged_files_name_their_parts(tmp_path: Path) -> None:
    kinds = ("stage_c", "effnet", "previewer", "text_encoder", "image_encoder")
    found = inspect_file(save(tmp_path / "merged.safetensors", comfyui_state(*kinds)))
    assert (found.kind, found.layout, found.folder) == ("checkpoint", "comfyui", "checkpoints")
    assert {part.kind for part in found.parts} == set(kinds)
    assert found.parameters == sum(part.parameters for part in found.parts)


def test_comfyuis_stage_c_vae_is_two_parts(tmp_path: Path) -> None:
    state = {name.removeprefix("vae."): tensor for name, tensor in comfyui_state("effnet", "previewer").items()}
    found = inspect_file(save(tmp_path / "vae.safetensors", state))
    assert ([part.kind for part in found.parts], found.folder) == (["effnet", "previewer"], "vae")


def test_a_wrong_part_says_what_it_is_and_where_it_belongs(tmp_path: Path) -> None:
    path = hollow_file(tmp_path / "model.safetensors", manifest("stage_b_700m"))
    with pytest.raises(IncompatibleCheckpoint) as caught:
        load_model(path, part="stage_c")
    assert str(caught.value) == (
        f"{path}: this is Stage B, 700M, bfloat16; it belongs in diffusion_models. Wanted here: Stage C"
    )


def test_several_parts_want_one_to_be_named(tmp_path: Path) -> None:
    path = save(tmp_path / "merged.safetensors", comfyui_state("stage_b", "stage_a"))
    with pytest.raises(IncompatibleCheckpoint, match=r"several networks.*stage_b, stage_a"):
        load_model(path)
    with pytest.raises(IncompatibleCheckpoint, match="belongs in checkpoints"):
        load_model(path, part="effnet")
    with pytest.raises(ValueError, match="part must be one of"):
        load_model(path, part="stage_d")


FOREIGN_NAMES = {
    "SDXL": ("model.diffusion_model.input_blocks.0.0.weight", "conditioner.embedders.1.model.ln_final.weight"),
    "Stable Diffusion 1.5": ("model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.transformer.x.weight"),
    "Stable Diffusion 2": ("model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.model.ln_final.weight"),
    "Stable Diffusion 3": ("model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight",),
    "an SDXL ControlNet": ("control_model.input_hint_block.0.weight", "control_model.label_emb.0.0.weight"),
    "a Stable Diffusion ControlNet": ("input_hint_block.0.weight", "input_blocks.0.0.weight"),
    "a T2I adapter": ("body.0.block1.weight", "conv_in.weight"),
    "Flux": ("double_blocks.0.img_attn.norm.key_norm.scale",),
    "LoRA": ("lora_unet_down_blocks_0_2_attention_attn_to_q.lora_down.weight",),
    "T5": ("encoder.block.0.layer.0.SelfAttention.k.weight",),
    "VAE": ("encoder.conv_in.weight", "decoder.conv_in.weight"),
    "without the projection": ("text_model.embeddings.token_embedding.weight",),
}


@pytest.mark.parametrize("title", FOREIGN_NAMES)
def test_other_architectures_are_named(title: str) -> None:
    with pytest.raises(UnknownCheckpoint, match=title):
        load_model({name: torch.zeros(1) for name in FOREIGN_NAMES[title]})


def test_something_else_is_unknown() -> None:
    with pytest.raises(UnknownCheckpoint, match=r"no part of Stable Cascade \(1 tensors, the first some.weight\)"):
        load_model({"some.weight": torch.zeros(1)})
    with pytest.raises(UnknownCheckpoint, match="no tensors"):
        load_model({})


def test_templates_of_other_architectures_can_match() -> None:
    assert all(template.count("{}") <= 2 for _, templates in FOREIGN for template in templates)


def test_heads_that_cannot_be_known_are_asked_for() -> None:
    from tests.small import part

    with pytest.raises(IncompatibleCheckpoint, match=r"does not define its heads: .* argument config"):
        load_model(part("stage_c").state_dict())


def test_heads_that_are_guessed_are_mentioned(caplog: pytest.LogCaptureFixture) -> None:
    load_model(network("stage_c").state_dict())
    assert "assuming the released rule for heads" in caplog.text
