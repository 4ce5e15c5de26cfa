"""High-res guides on a MODEL: what they read, and how they act on any Stage C of ours, with any sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...cascade.diffusion import Guidance, Interval, SamplingSettings
from ...cascade.errors import CascadeError
from ...cascade.images.resize import COMPRESSION
from ...cascade.models import Features, HighResGuideConfig, HighResGuides, StageC
from ...cascade.models.high_res import POSITIONS, FeatureRecorder, GuidedRun
from ...cascade.pipelines import StagePlan, Start
from ...cascade.pipelines.high_res import SOURCE_TIME, first_size
from ...cascade.pipelines.sizes import latent_sizes
from . import checks
from .files import read
from .networks import AFTER_ATTENTION, LayerFactory
from .sampling import percent_of, run, seeds_of

KEY = "cascade_high_res"
NAMES = {2048: "3.6B", 1536: "1B"}
"""Width of a released Stage C -> its name."""

READING = SamplingSettings(
    steps=1, shift=1.0, start_percent=1 - SOURCE_TIME, sampler_name="ddim", guidance=Guidance(cfg=1.0)
)
"""The one step in which a finished latent is read."""


@dataclass(frozen=True)
class Guide:
    """The guides of a file, and the host's object that places them."""

    net: HighResGuides
    patcher: Any

    @property
    def config(self) -> HighResGuideConfig:
        return self.net.config


def load_guide(path: Path) -> tuple[Guide, str]:
    """The guides of a file, and a line of text that describes them. Raises CheckpointError for another kind of file."""
    with torch.inference_mode(False):
        config, state = read(path, "high_res_guides")
        with torch.device("meta"):
            net = HighResGuides(config, ops=LayerFactory(comfy.ops.manual_cast, torch.float32))
        net.load_state_dict(state, assign=True)
        net.eval().requires_grad_(False)
        patcher = comfy.model_patcher.CoreModelPatcher(
            net,
            load_device=comfy.model_management.get_torch_device(),
            offload_device=comfy.model_management.unet_offload_device(),
        )
    size = sum(tensor.nbytes for tensor in state.values())
    return Guide(net, patcher), f"high-res guides for a {_described(config.stage_c_width)}, {size / 1e6:,.1f} MB"


def _described(width: int) -> str:
    return f"Stage C of width {width}" + (f" ({NAMES[width]})" if width in NAMES else "")


class _Recording:
    """Keeps the features of the latest call with the prompt."""

    def __init__(self) -> None:
        self._recorder: FeatureRecorder | None = None
        self._rows = slice(None)

    def __call__(self, net: StageC, x: Tensor, r: Tensor, options: Any) -> Any:
        parts = options.get("cond_or_uncond", [0])
        if 0 not in parts:
            return None
        rows, place = len(x) // len(parts), parts.index(0)
        self._recorder, self._rows = FeatureRecorder(net.places()), slice(place * rows, (place + 1) * rows)
        return self._recorder.after_attention

    def features(self) -> Features:
        if self._recorder is None:
            raise CascadeError("High-res guides need the features of a step with the prompt, and there was none.")
        found = self._recorder.features(self._rows)
        return Features(*(tuple(x.float().cpu() for x in path) for path in found))


class _Guiding:
    """Guides with the features that they read, in one run after another."""

    def __init__(self, guide: Guide, features: Features, weight: float, interval: Interval) -> None:
        self.guide, self.features, self.weight, self.interval = guide, features, weight, interval
        self._run: GuidedRun | None = None
        self._size: tuple[int, ...] = ()
        self._schedule: Any = None

    def around(self, executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Wraps a whole sampling run."""
        there = len(self.features.down[0])
        if there not in (1, len(noise)):
            raise CascadeError(
                f"The high-res guides follow {there} images, and {len(noise)} are sampled: use the same batch_size for "
                "the small and the large latent."
            )
        patcher = executor.class_obj.model_patcher
        self._run, self._size, self._schedule = None, tuple(noise.shape[-2:]), checks.schedule(patcher)
        try:
            return executor(noise, *args, **kwargs)
        finally:
            self._run = None

    def __call__(self, net: StageC, x: Tensor, r: Tensor, options: Any) -> Any:
        # A part of the image alone (a condition for an area) has no features of its own.
        if tuple(x.shape[-2:]) != self._size:
            return None
        if self._run is None:
            features = Features(*(tuple(each.to(x.device, x.dtype) for each in path) for path in self.features))
            self._run = GuidedRun(self.guide.net, features, net.places())
        percent = percent_of(float(options["sigmas"][0]), self._schedule)
        return self._run.after_attention(r, self.weight if percent in self.interval else 0.0)


@dataclass(frozen=True)
class Strength:
    """How strongly guides act, and in which part of a run."""

    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if self.start > self.end:
            raise CascadeError(
                f"High-res guides: start_percent {self.start:g} is after end_percent {self.end:g}; they would not act."
            )

    @property
    def interval(self) -> Interval:
        return Interval(self.start, self.end)


def guided(model: Any, guide: Guide, features: Features, strength: Strength) -> Any:
    """The MODEL with guides that read these features. Raises CascadeError for guides of another Stage C."""
    changed = _with(model, _Guiding(guide, features, strength.weight, strength.interval))
    changed.set_additional_models(KEY, [guide.patcher])
    return changed


def _with(model: Any, acting: Callable[..., Any]) -> Any:
    changed = model.clone()
    changed.model_options["transformer_options"][AFTER_ATTENTION] = acting
    changed.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    if isinstance(acting, _Guiding):
        changed.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, acting.around)
    return changed


def check(model: Any, guide: Guide) -> None:
    """Raises CascadeError where the guides do not fit the MODEL."""
    net = checks.model(model, "Stage C").model.diffusion_model
    if not isinstance(net, StageC):
        raise CascadeError(
            "High-res guides act on a Stage C that Load Stage C (Stable Cascade) or Load Checkpoint (Stable Cascade) "
            "has loaded; this one was loaded by ComfyUI's own node."
        )
    width, wanted = net.config.levels[0].width, guide.config.stage_c_width
    if width != wanted or len(net.places().down) != guide.config.levels:
        raise CascadeError(
            f"These high-res guides were made for a {_described(wanted)}; the one that is connected is a "
            f"{_described(width)}. Load the guides or the Stage C that belongs to the other."
        )


def _check_small(samples: Tensor) -> None:
    height, width = samples.shape[-2:]
    if height * width > POSITIONS:
        pixels = f"{round(width * COMPRESSION)} x {round(height * COMPRESSION)}"
        raise CascadeError(
            f"The small latent is that of an image of {pixels} pixels, {height * width} positions; high-res guides "
            f"read at most {POSITIONS}. Make it at about 1024 x 1024 pixels."
        )


def features_of(model: Any, positive: Any, latent: dict[str, Any], guide: Guide, seed: int) -> Features:
    """What the guides read of a finished small LATENT, with its prompt. Raises CascadeError."""
    check(model, guide)
    samples = checks.latents(latent, "Stage C")
    _check_small(samples)
    return _read(model, positive, samples, seeds_of(latent, len(samples), seed))


def _read(model: Any, positive: Any, samples: Tensor, seeds: Sequence[int]) -> Features:
    recording = _Recording()
    run(
        _with(model, recording),
        StagePlan(
            stage="stage_c",
            size=samples.shape[1:],
            seeds=seeds,
            settings=READING,
            cond=positive,
            uncond=positive,
            start=Start(latents=samples),
        ),
    )
    return recording.features()


@dataclass(frozen=True)
class TwoPasses:
    """Both passes of an image: a small one, and a large one that the guides hold to it.

    resolution: of the small one, the pixels along the side of a square image.
    """

    model: Any
    guide: Guide
    positive: Any
    negative: Any
    settings: SamplingSettings
    strength: Strength
    resolution: int

    def __call__(
        self, latent: dict[str, Any], small: dict[str, Any] | None, seed: int
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Stage C's large and small LATENT.

        latent: what the large one starts from. small: an image to follow instead of a first pass.

        Raises CascadeError for inputs of another kind, and for a size that does not fit into memory.
        """
        check(self.model, self.guide)
        start = checks.latents(latent, "Stage C")
        seeds = seeds_of(latent, len(start), seed)
        checks.step_fits(self.model, start.shape)
        if small is None:
            samples, features = self._first(start, seeds)
        else:
            samples = checks.latents(small, "Stage C")
            _check_small(samples)
            features = _read(self.model, self.positive, samples, seeds[: len(samples)])
        model = guided(self.model, self.guide, features, self.strength)
        plan = self._plan(start.shape[1:], seeds, Start(latents=start, mask=latent.get("noise_mask")))
        # ControlNets act at the size that they were trained at; the second pass follows the first.
        plan = replace(plan, cond=without_control(plan.cond), uncond=without_control(plan.uncond))
        large = checks.finite(run(model, plan), "Stage C")
        kept = {name: latent[name] for name in ("noise_mask", "batch_index") if name in latent}
        return {**kept, "samples": large}, {"samples": samples}

    def _first(self, large: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Features]:
        size = latent_sizes(*first_size(large.shape[-2], large.shape[-1], self.resolution)).stage_c
        empty = large.new_zeros(len(large), *size)
        _check_small(empty)
        recording = _Recording()
        plan = self._plan(size, seeds, Start(latents=empty))
        plan = replace(plan, settings=replace(plan.settings, start_percent=0.0))
        samples = checks.finite(run(_with(self.model, recording), plan), "Stage C")
        return samples, recording.features()

    def _plan(self, size: Sequence[int], seeds: Sequence[int], start: Start) -> StagePlan[Any]:
        return StagePlan(
            stage="stage_c",
            size=size,
            seeds=seeds,
            settings=self.settings,
            cond=self.positive,
            uncond=self.negative,
            start=start,
        )


def without_control(conditioning: Any) -> Any:
    """The conditioning without its ControlNets."""
    return [
        [embedding, {name: value for name, value in extras.items() if name != "control"}]
        for embedding, extras in conditioning
    ]
