from __future__ import annotations

import weakref

import pytest
import torch

from cascade import tiny
from cascade.conditioning import StageBInputs, StageCInputs, TextEncoder
from cascade.diffusion import Guidance, SeededNoise, sample
from cascade.errors import MissingPart
from cascade.pipelines import SamplingSettings, Settings, generate
from cascade.pipelines.networks import Parts
from tests.small import small_cascade
from tests.support import relative_error

pytestmark = pytest.mark.numeric

FEW = Settings(
    width=96,
    height=70,
    stage_c=SamplingSettings(steps=3, guidance=Guidance(cfg=4.0), shift=2.0),
    stage_b=SamplingSettings(steps=2, guidance=Guidance(cfg=1.1), shift=1.0),
)
LONG = "a red circle, " * 30


@pytest.fixture(scope="module")
def nets():
    return small_cascade()


@pytest.fixture(scope="module")
def parts(nets):
    return Parts(nets)


def test_defaults_are_the_released_settings():
    settings = Settings()
    assert (settings.width, settings.height) == (1024, 1024)
    assert (settings.stage_c.steps, settings.stage_c.guidance.cfg, settings.stage_c.shift) == (20, 4.0, 2.0)
    assert (settings.stage_b.steps, settings.stage_b.guidance.cfg, settings.stage_b.shift) == (10, 1.1, 1.0)
    assert settings.stage_c.guidance.cfg_rescale == settings.stage_b.guidance.cfg_rescale == 0.7


def test_images_and_latents(parts):
    result = generate(parts, ["a cat", "a dog"], seeds=[1, 2], settings=FEW)
    assert result.images.shape == (2, 3, 70, 96)
    assert result.images.min() >= 0
    assert result.images.max() <= 1
    assert result.stage_c.shape == (2, 16, 2, 3)
    assert result.stage_b.shape == (2, 4, 18, 24)
    assert relative_error(result.images[0], result.images[1]) > 1e-2


@torch.no_grad()
def test_it_is_the_stages_one_after_another(nets, parts):
    """The same image from the networks' plain forward, with nothing cached, batched or shared."""
    result = generate(parts, ["a cat"], seeds=[3], negative="red", settings=FEW)
    encoder = TextEncoder(nets["text_encoder"])
    text, negative = encoder.encode(["a cat"]), encoder.encode(["red"])
    zeros = torch.zeros(1, 1, 8)
    x = sample(
        nets["stage_c"],
        SeededNoise([3], "stage_c").start(16, 2, 3),
        FEW.stage_c,
        cond=StageCInputs.of(text, zeros).as_kwargs(),
        uncond=StageCInputs.of(negative, zeros).as_kwargs(),
        noise=SeededNoise([3], "stage_c"),
    )
    assert relative_error(result.stage_c, x) < 1e-5
    y = sample(
        nets["stage_b"],
        SeededNoise([3], "stage_b").start(4, 18, 24),
        FEW.stage_b,
        cond=StageBInputs(x, text.pooled).as_kwargs(),
        uncond=StageBInputs(torch.zeros_like(x), negative.pooled).as_kwargs(),
        noise=SeededNoise([3], "stage_b"),
    )
    assert relative_error(result.stage_b, y) < 1e-5
    images = nets["stage_a"].decode(y).clamp(0, 1)[..., :70, :96]
    assert relative_error(result.images, images) < 1e-4


def test_an_image_is_the_same_alone_as_among_others(parts):
    """Other prompts, longer ones too, and other seeds beside it change nothing but the rounding."""
    among = generate(parts, [LONG, "a cat", "a dog"], seeds=[4, 5, 6], settings=FEW)
    for i, prompt in enumerate([LONG, "a cat", "a dog"]):
        alone = generate(parts, [prompt], seeds=[4 + i], settings=FEW)
        assert relative_error(among.images[i : i + 1], alone.images) < 1e-4


@pytest.mark.skipif(not tiny.path("stage_c").exists(), reason="the tiny cascade's weights are not here")
def test_a_batch_changes_pixels_by_no_more_than_is_said():
    """The bound of docs/library.md and of `generate`, at the released numbers of steps; bit for bit at equal sizes."""
    prompts = ["a large red circle on a blue background, left", "a small green square on a white background, right"]
    parts, sizes = Parts(tiny.parts()), Settings(width=256, height=256)
    among, again = (generate(parts, prompts, seeds=[4, 5], settings=sizes).images for _ in range(2))
    assert torch.equal(among, again)
    for i, prompt in enumerate(prompts):
        alone = generate(parts, [prompt], seeds=[4 + i], settings=sizes).images
        assert (among[i : i + 1] - alone).abs().max() < 0.005


def test_negative_prompt_and_variation_change_the_image(parts):
    plain = generate(parts, ["a cat"], seeds=[1], settings=FEW).stage_c
    negative = generate(parts, ["a cat"], seeds=[1], negative="blue", settings=FEW).stage_c
    varied = generate(parts, ["a cat"], seeds=[1], variation_of=torch.rand(1, 3, 40, 40), settings=FEW).stage_c
    assert relative_error(plain, negative) > 1e-3
    assert relative_error(plain, varied) > 1e-3


def test_progress_counts_every_step_once(parts):
    steps = []
    generate(
        parts,
        ["a cat", LONG],
        seeds=[1, 2],
        settings=FEW,
        on_progress=lambda stage, i, n, x0: steps.append((stage, i, n, x0.shape[1])),
    )
    assert steps == [("stage_c", i, 6, 16) for i in range(6)] + [("stage_b", i, 2, 4) for i in range(2)]


def test_one_network_in_memory_at_a_time(nets):
    alive: list[weakref.ref] = []

    def loader(kind):
        def load():
            assert not [ref for ref in alive if ref() is not None], f"something is still there when {kind} is loaded"
            net = torch.nn.ModuleList([nets[kind]])
            wrapped = _Wrapped(nets[kind])
            alive.append(weakref.ref(wrapped))
            del net
            return wrapped

        return load

    parts = Parts({kind: loader(kind) for kind in ("text_encoder", "stage_c", "stage_b", "stage_a")})
    generate(parts, ["a cat"], seeds=[0], settings=FEW)
    assert len(alive) == 4


class _Wrapped(torch.nn.Module):
    """A network that can be counted: everything it has is its inner network's."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inner, name)

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(nets, dtype):
    import copy

    halves = {kind: copy.deepcopy(net).to(dtype) for kind, net in nets.items()}
    half = generate(Parts(halves), ["a cat"], seeds=[1], settings=FEW)
    full = generate(Parts(nets), ["a cat"], seeds=[1], settings=FEW)
    assert half.images.dtype == torch.float32
    assert (half.images - full.images).abs().mean() < 0.05


def test_what_is_wrong_is_said(parts, nets):
    with pytest.raises(ValueError, match="2 prompts, 1 seeds"):
        generate(parts, ["a", "b"], seeds=[1])
    with pytest.raises(ValueError, match="0 prompts"):
        generate(parts, [], seeds=[])
    with pytest.raises(MissingPart, match="stage_c"):
        generate(Parts({"text_encoder": nets["text_encoder"]}), ["a"], seeds=[1])
