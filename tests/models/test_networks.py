"""What every network promises beside its numbers: sizes, types, cached conditions, construction without weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cascade import models
from cascade.models import Level, StageB, StageBConfig, StageC, StageCConfig, initialize
from tests.support import NETWORKS, golden, golden_network, manifest, meta, randomised, relative_error, split_attention

RELEASED = {
    "stage_c_3_6b": ("stage_c", models.STAGE_C_3_6B),
    "stage_c_1b": ("stage_c", models.STAGE_C_1B),
    "stage_b_1_5b": ("stage_b", models.STAGE_B_1_5B),
    "stage_b_700m": ("stage_b", models.STAGE_B_700M),
    "stage_a": ("stage_a", models.STAGE_A),
    "effnet_encoder": ("effnet", models.EFFNET_V2_S),
    "previewer": ("previewer", models.PREVIEWER),
    "controlnet_canny": ("controlnet", models.CONTROLNET_CANNY),
    "controlnet_inpainting": ("controlnet", models.CONTROLNET_INPAINTING),
    "controlnet_super_resolution": ("controlnet", models.CONTROLNET_SUPER_RESOLUTION),
    "controlnet_identity": ("controlnet", models.CONTROLNET_IDENTITY),
}
SMALL_C = StageCConfig(
    condition_channels=16, clip_text=12, clip_text_pooled=12, clip_img=8, levels=(Level(16, 2, 1), Level(24, 3, 2))
)
SMALL_B = StageBConfig(
    condition_channels=16, clip=12, levels=(Level(8, 0, 1, "CT"), Level(12, 2, 1), Level(16, 2, 1, up_repeats=2))
)


SMALL = {
    "stage_c": SMALL_C,
    "stage_b": SMALL_B,
    "stage_a": models.StageAConfig(width=8, bottleneck_blocks=1, codebook_size=4),
    "controlnet": models.ControlNetConfig(in_channels=8, width=16, blocks=(0, 3), backbone="simple"),
}


def inputs_c(config: StageCConfig, batch: int, size: tuple[int, int], tokens: int = 5, images: int = 1) -> list[Any]:
    return [
        torch.randn(batch, config.latent_channels, *size),
        torch.rand(batch),
        torch.randn(batch, tokens, config.clip_text),
        torch.randn(batch, 1, config.clip_text_pooled),
        torch.randn(batch, images, config.clip_img),
    ]


def inputs_b(config: StageBConfig, batch: int, size: tuple[int, int]) -> list[Any]:
    effnet = torch.randn(batch, config.effnet, 2, 3)
    return [torch.randn(batch, 4, *size), torch.rand(batch), effnet, torch.randn(batch, 1, config.clip)]


@pytest.mark.parametrize("name", RELEASED)
def test_released_names_and_shapes(name: str) -> None:
    kind, config = RELEASED[name]
    net = meta(kind, config)
    expected = {
        key: torch.empty(shape, dtype=torch.int64 if key.endswith("num_batches_tracked") else None, device="meta")
        for key, shape in manifest(name).items()
    }
    net.load_state_dict(split_attention(expected), assign=True)
    assert all(tensor.is_meta for tensor in net.state_dict().values())


@pytest.mark.parametrize("name", RELEASED)
def test_configs_survive_plain_data(name: str) -> None:
    config = RELEASED[name][1]
    assert type(config).from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="color"):
        type(config).from_dict({"color": "red"})


def test_released_sizes_are_the_reference_defaults() -> None:
    assert StageCConfig.from_reference() == models.STAGE_C_3_6B
    assert StageBConfig.from_reference() == models.STAGE_B_1_5B
    assert models.StageAConfig.from_reference() == models.STAGE_A
    assert models.PreviewerConfig.from_reference() == models.PREVIEWER
    assert models.EffnetConfig.from_reference() == models.EFFNET_V2_S


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"c_hidden": [32, 32, 32]}, "3 levels"),
        ({"blocks": [[1, 2], [1, 2]]}, "other depths"),
        ({"c_out": 8}, "c_out"),
        ({"level_config": ["CTX", "CTA"]}, "X"),
        ({"nhead": [32, 5]}, "5 attention heads"),
        ({"switch_level": [True, False]}, "switch_level"),
    ],
)
def test_impossible_sizes_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StageCConfig.from_reference(**arguments)


@settings(max_examples=25)
@given(
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    batch=st.integers(1, 3),
    tokens=st.integers(0, 90),
    images=st.integers(0, 3),
    switch=st.booleans(),
)
def test_stage_c_takes_any_size(height: int, width: int, batch: int, tokens: int, images: int, switch: bool) -> None:
    config = replace(SMALL_C, switch_level=(switch,))
    net = randomised(StageC(config))
    x, *rest = inputs_c(config, batch, (height, width), tokens, images)
    out = net(x, *rest)
    assert out.shape == x.shape
    assert out.isfinite().all()


@settings(max_examples=25)
@given(height=st.integers(1, 21), width=st.integers(1, 21), batch=st.integers(1, 2))
def test_stage_b_takes_any_size(height: int, width: int, batch: int) -> None:
    net = randomised(StageB(SMALL_B))
    x, *rest = inputs_b(SMALL_B, batch, (height, width))
    out = net(x, *rest)
    assert out.shape == x.shape
    assert out.isfinite().all()


@settings(max_examples=10)
@given(height=st.integers(1, 33), width=st.integers(1, 33))
def test_stage_a_takes_any_size(height: int, width: int) -> None:
    net = randomised(models.StageA(models.StageAConfig(width=8, bottleneck_blocks=1, codebook_size=4)))
    latents = net.encode(torch.rand(1, 3, height, width))
    assert latents.shape == (1, 4, -(-height // 4), -(-width // 4))
    assert net.decode(latents).shape == (1, 3, latents.shape[-2] * 4, latents.shape[-1] * 4)


@pytest.mark.numeric
def test_stage_a_in_parts_is_stage_a(monkeypatch: pytest.MonkeyPatch) -> None:
    net = randomised(models.StageA(models.StageAConfig(width=8, bottleneck_blocks=2, codebook_size=4)))
    latents = torch.randn(2, 4, 7, 5)
    whole = net.decode(latents)
    monkeypatch.setattr("cascade.models.stage_a.AT_ONCE_CPU", 12)
    with torch.inference_mode():
        parts = net.decode(latents)
        assert parts.stride() == whole.stride()
        assert relative_error(parts, whole) < 1e-6
        # The middle of an MLP at full size is what decoding would spend its memory on.
        sizes = []
        net.up_blocks[-1].channelwise[0].register_forward_hook(lambda _net, _given, made: sizes.append(made.numel()))
        net.decode(latents)
    assert max(sizes) < whole[:, 0].numel()


@pytest.mark.numeric
def test_an_image_does_not_depend_on_its_batch() -> None:
    net = randomised(StageC(SMALL_C))
    inputs = inputs_c(SMALL_C, 3, (4, 5))
    together = net(*inputs)
    for i in range(3):
        assert relative_error(net(*(value[i : i + 1] for value in inputs)), together[i : i + 1]) < 1e-5


@pytest.mark.numeric
def test_pooled_embeddings_may_come_without_their_token_dimension() -> None:
    net = randomised(StageC(SMALL_C))
    x, r, text, pooled, image = inputs_c(SMALL_C, 2, (4, 4))
    assert torch.equal(net(x, r, text, pooled[:, 0], image[:, 0]), net(x, r, text, pooled, image))


@pytest.mark.numeric
def test_conditions_once_equal_conditions_every_step() -> None:
    net = randomised(StageC(SMALL_C))
    x, r, *embeddings = inputs_c(SMALL_C, 2, (4, 5))
    extra = {"sca": torch.rand(2), "crp": torch.rand(2)}
    conditions = net.conditions(*embeddings, **extra)
    for step in (r, r * 0.5):
        assert torch.equal(net.denoise(x, step, conditions), net(x, step, *embeddings, **extra))
    net = randomised(StageB(SMALL_B))
    x, r, effnet, clip = inputs_b(SMALL_B, 2, (9, 12))
    pixels = torch.rand(2, 3, 8, 8)
    conditions = net.conditions(effnet, clip, size=x.shape[-2:], pixels=pixels)
    assert torch.equal(net.denoise(x, r, conditions), net(x, r, effnet, clip, pixels=pixels))


@pytest.mark.numeric
def test_control_reaches_the_block_it_is_for() -> None:
    net = randomised(StageC(SMALL_C))
    inputs = inputs_c(SMALL_C, 1, (4, 4))
    blocks = net.blocks(models.blocks.ResBlock)
    seen: dict[int, torch.Tensor] = {}
    for index, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda _, args, index=index: seen.__setitem__(index, args[0]))
    net(*inputs)
    plain = dict(seen)
    for target, block in enumerate(blocks):
        width = block.depthwise.weight.shape[0]
        net(*inputs, control=[*[None] * target, torch.ones(1, width, 2, 2)])
        assert all(torch.equal(seen[i], plain[i]) for i in range(target))
        assert relative_error(seen[target], plain[target] + 1) < 1e-5


def test_attention_is_the_callers() -> None:
    calls = []

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
        calls.append((q.shape, k.shape, v.shape, heads))
        return models.scaled_dot_product_attention(q, k, v, heads)

    net = randomised(StageC(SMALL_C, attention=attention))
    net(*inputs_c(SMALL_C, 2, (3, 3), tokens=5))
    # 5 text tokens, 4 from each of the pooled and the image embedding, and the image's own.
    assert calls[0] == ((2, 9, 16), (2, 22, 16), (2, 22, 16), 2)
    assert len(calls) == 2 * sum(level.depth for level in SMALL_C.levels)


@pytest.mark.parametrize("kind", NETWORKS)
def test_constructors_touch_no_weights(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*_: Any, **__: Any) -> None:
        raise AssertionError("a constructor filled a weight")

    for name in ("kaiming_uniform_", "uniform_", "xavier_uniform_", "normal_", "zeros_"):
        monkeypatch.setattr(nn.init, name, touched)
    network, config = NETWORKS[kind]
    network(SMALL.get(kind) or config())


def test_layers_are_the_callers() -> None:
    made = []

    class Ops:
        Linear, LayerNorm, ConvTranspose2d = nn.Linear, nn.LayerNorm, nn.ConvTranspose2d

        @staticmethod
        def Conv2d(*args: Any, **kwargs: Any) -> nn.Conv2d:
            made.append(args)
            return nn.Conv2d(*args, **kwargs)

    for network, config in ((StageC, SMALL_C), (StageB, SMALL_B), (models.StageA, models.STAGE_A)):
        made.clear()
        with torch.device("meta"):
            net = network(config, ops=Ops)
        assert len(made) == sum(isinstance(module, nn.Conv2d) for module in net.modules())


def test_training_starts_from_zero_output_and_zero_control() -> None:
    torch.manual_seed(0)
    net = initialize(StageC(SMALL_C))
    assert all(value.isfinite().all() for value in net.state_dict().values())
    assert net(*inputs_c(SMALL_C, 1, (4, 4))).abs().max() == 0
    control = initialize(
        models.ControlNet(models.ControlNetConfig(in_channels=8, width=16, blocks=(0, 3), backbone="simple"))
    )
    residuals = control(torch.randn(1, 8, 4, 4))
    assert [r is None for r in residuals] == [False, True, True, False]
    assert all(r.abs().max() == 0 for r in residuals if r is not None)


@pytest.mark.numeric
def test_codebook_entries_are_fixed_points_of_the_quantizer() -> None:
    net = randomised(models.StageA(models.StageAConfig(width=8, bottleneck_blocks=1, codebook_size=16)))
    rows = net.vquantizer.entries.detach()[torch.randint(16, (6,))]
    latents = rows.T.reshape(1, 4, 2, 3) / net.config.scale_factor
    assert relative_error(net.quantize(latents), latents) < 1e-5
    assert relative_error(net.quantize(latents + 10), latents + 10) > 0.1


@pytest.mark.numeric
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["stage_c_small", "stage_b_small"])
def test_half_precision_stays_close(case: str, dtype: torch.dtype) -> None:
    data = golden(case)
    names = (
        ("x", "r", "clip_text", "clip_text_pooled", "clip_img") if "clip_text" in data else ("x", "r", "effnet", "clip")
    )
    inputs = [data[name] if name == "r" else data[name].to(dtype) for name in names]
    out = golden_network(case).to(dtype)(*inputs)
    assert out.dtype == dtype
    assert relative_error(out, data["out"]) < (0.01 if dtype == torch.float16 else 0.08)
