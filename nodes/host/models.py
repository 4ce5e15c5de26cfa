"""MODEL: the host's own machinery (sampling, LoRA, hooks, offloading) around our Stage C and Stage B."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.sd
import comfy.supported_models
import comfy.utils
import torch
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

from ...cascade.checkpoints.loading import without_collector
from ...cascade.errors import CascadeError
from ...cascade.models.blocks import resize
from ...cascade.pipelines.memory import step_bytes
from ...cascade.pipelines.sizes import STAGE_B_FACTOR
from . import checks
from .attention import around_attention, with_additions
from .compat import build_base_model, known_model
from .files import QUANTIZED, read
from .networks import HostStageB, HostStageC, around_inner
from .previews import LatentC, Previewer
from .prompt_images import image_prompts
from .prompts import REGIONS
from .regions import seen

logger = logging.getLogger("cascade")

KEY = "cascade"
"""The key of our callbacks and wrappers in the host's lists."""

DTYPES: dict[str, torch.dtype | None] = {
    "default": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
}


class LatentB(comfy.latent_formats.SC_B):
    spacial_downscale_ratio = STAGE_B_FACTOR


class CondKept(comfy.conds.CONDRegular):
    """A condition that is the same tensor at every step of a run, so that the network knows it without a comparison.

    On a graphics card a comparison would wait until all work is done.
    """

    def __init__(self, cond: Tensor) -> None:
        super().__init__(cond)
        self.made: dict[Any, Any] = {}

    def _kept(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def process_cond(self, batch_size: int, area: Any = None, **kwargs: Any) -> Any:
        def make() -> Any:
            return self._copy_with(comfy.utils.repeat_to_batch_size(self._part(area), batch_size))

        return self._kept((batch_size, None if area is None else tuple(area)), make)

    def _part(self, area: Any) -> Tensor:
        """What an area of the image gets."""
        return self.cond

    def concat(self, others: Sequence[Any]) -> Any:
        return self._kept(tuple(others), lambda: super(CondKept, self).concat(others))


class CondSpatial(CondKept):
    """A condition with a position for each part of the image: where the host crops the image, it is cropped too."""

    def __init__(self, cond: Tensor, size: tuple[int, ...]) -> None:
        super().__init__(cond)
        self.image = size

    def _copy_with(self, cond: Tensor) -> CondSpatial:
        return CondSpatial(cond, self.image)

    def _part(self, area: Any) -> Tensor:
        return self.cond if area is None else self._cropped(area)

    def _cropped(self, area: Sequence[int]) -> Tensor:
        """The part under an area of the image: its height, width, top and left."""
        part = self.cond
        for side in (0, 1):
            have, whole = part.shape[side + 2], self.image[side]
            first = area[side + 2] * have // whole
            last = min(have, -(-(area[side + 2] + area[side]) * have // whole))
            part = part.narrow(side + 2, first, max(1, last - first))
        return part


class _Prepared:
    """Does before the network is called what is no part of a graph of torch.compile."""

    def _apply_model(
        self,
        x: Tensor,
        t: Tensor,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: Any = {},  # noqa: B006  the host's
        **given: Any,
    ) -> Tensor:
        net, dtype = self.diffusion_model, self.get_dtype_inference()  # type: ignore[attr-defined]
        conditions = with_additions(given, transformer_options)
        found = {
            "conditions": net.prepared(x, conditions, dtype),
            "around_inner": around_inner(transformer_options),
            "around_attention": around_attention(self, t, conditions, transformer_options),
        }
        return super()._apply_model(x, t, c_concat, c_crossattn, control, transformer_options, **found)  # type: ignore[misc]


class CascadeC(_Prepared, comfy.model_base.StableCascade_C):
    """Stage C. Conditions have no padding: prompts of unequal length run one after the other."""

    def __init__(self, model_config: Any, device: Any = None) -> None:
        build_base_model(self, model_config, device, HostStageC)

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        config, device = self.diffusion_model.config, kwargs["device"]
        checks.channels(kwargs["noise"], "Stage C")
        inputs, control = seen(
            _embedding(kwargs.get("cross_attn"), config.clip_text, "Stage C", "text"),
            _embedding(kwargs.get("pooled_output"), config.clip_text_pooled, "Stage C", "pooled text"),
            image_prompts(kwargs.get("unclip_conditioning", ())),
            kwargs.get(REGIONS, ()),
            config.clip_img,
        )
        found = {**inputs.as_kwargs(), **_timesteps(kwargs, "sca", "crp")}
        kept = {name: CondKept(value.to(device)) for name, value in found.items()}
        return kept if control is None else {**kept, REGIONS: comfy.conds.CONDConstant(control)}

    def memory_required(self, input_shape: list[int], cond_shapes: Any = {}) -> float:  # noqa: B006  the host's
        return _memory(self, input_shape)


class CascadeB(_Prepared, comfy.model_base.StableCascade_B):
    """Stage B. Stage C's latents are resized to the whole image first, so that a crop of it gets the right part."""

    def __init__(self, model_config: Any, device: Any = None) -> None:
        build_base_model(self, model_config, device, HostStageB)

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        config, device, noise = self.diffusion_model.config, kwargs["device"], kwargs["noise"]
        checks.channels(noise, "Stage B")
        size = tuple(noise.shape[-2:])
        grid = tuple(-(-side // config.patch_size) for side in size)
        effnet = kwargs.get("stable_cascade_prior")
        if effnet is None:
            if kwargs.get("prompt_type") == "positive":
                checks.warn(checks.NO_STAGE_C)
            effnet = torch.zeros(1, config.effnet, *grid)
        elif effnet.shape[1] != config.effnet:
            raise CascadeError(
                f"Stage B reads Stage C's latents of {config.effnet} channels; these have {effnet.shape[1]}."
            )
        pooled = _embedding(kwargs.get("pooled_output"), config.clip, "Stage B", "pooled text")
        regular = {"clip": pooled, **_timesteps(kwargs, "sca")}
        out = {name: CondKept(value.to(device)) for name, value in regular.items()}
        out["effnet"] = CondSpatial(resize(effnet.to(device), grid), size)
        if "stable_cascade_pixels" in kwargs:
            out["pixels"] = CondSpatial(kwargs["stable_cascade_pixels"].to(device), size)
        return out

    def memory_required(self, input_shape: list[int], cond_shapes: Any = {}) -> float:  # noqa: B006  the host's
        return _memory(self, input_shape)


def _embedding(value: Tensor | None, width: int, stage: str, what: str) -> Tensor:
    if value is None:
        raise CascadeError(f"{stage} needs a conditioning with {what}: encode the prompt with Stable Cascade's CLIP.")
    if value.shape[-1] != width:
        raise CascadeError(
            f"This {stage} reads {what} embeddings of width {width}, the conditioning has {value.shape[-1]}: "
            f"the encoder belongs to another model. Load the one that was trained with this {stage}."
        )
    return value


def _timesteps(kwargs: dict[str, Any], *names: str) -> dict[str, Tensor]:
    """The extra timestep conditions, 0 unless the conditioning names one (`stable_cascade_sca`)."""
    return {name: torch.tensor([float(kwargs.get(f"stable_cascade_{name}", 0.0))]) for name in names}


def _memory(model: Any, input_shape: list[int]) -> float:
    size = comfy.model_management.dtype_size(model.get_dtype_inference())
    return step_bytes(model.diffusion_model.config, input_shape, size)


class _ConfigC(comfy.supported_models.Stable_Cascade_C):
    latent_format = LatentC
    # float16 is safe here: values beyond its range are kept in float32 (see cascade/models/blocks.py).
    supported_inference_dtypes = [torch.bfloat16, torch.float16, torch.float32]

    def get_model(self, state_dict: Any, prefix: str = "", device: Any = None) -> CascadeC:
        return CascadeC(self, device=device)


class _ConfigB(comfy.supported_models.Stable_Cascade_B):
    latent_format = LatentB

    def get_model(self, state_dict: Any, prefix: str = "", device: Any = None) -> CascadeB:
        return CascadeB(self, device=device)


CONFIGS = {"stage_c": _ConfigC, "stage_b": _ConfigB}


def load_stage(
    kind: str, path: Path, dtype: str = "default", previewer: Path | None = None, disable_dynamic: bool = False
) -> Any:
    """The MODEL of a Stage C or Stage B file.

    Args:
        kind: stage_c or stage_b.
        dtype: one of `DTYPES`.
        previewer: file of the network for Stage C's live previews.
        disable_dynamic: set by newer hosts when they load the model again.

    Raises:
        CheckpointError: see `files.read`.
    """
    options = {} if DTYPES[dtype] is None else {"dtype": DTYPES[dtype]}
    options_of_load = {"model_options": options, **({"disable_dynamic": True} if disable_dynamic else {})}
    with torch.inference_mode(False), without_collector():
        # Quantized layers stay as they are unless a type was chosen.
        config, state = read(path, kind, quantized=dtype == "default")
        # The host moves its quantized layers in inference mode alone. All others may be trained, so they are not in it.
        quantized = any(name.endswith(QUANTIZED) for name in state)
        with known_model(CONFIGS[kind], config), torch.inference_mode(quantized):
            patcher = comfy.sd.load_diffusion_model_state_dict(state, **options_of_load)
    patcher.cached_patcher_init = (load_stage, (kind, path, dtype, previewer))
    for event in (CallbacksMP.ON_PRE_RUN, CallbacksMP.ON_CLEANUP, CallbacksMP.ON_APPLY_HOOKS):
        patcher.add_callback_with_key(event, KEY, _forget)
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _checked)
    if previewer is not None:
        patcher.model.latent_format.previewer = made = Previewer(previewer)
        patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, made.release)
    return patcher


def _checked(executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Wraps a whole sampling run of a MODEL."""
    patcher = executor.class_obj.model_patcher
    checks.schedule(patcher)
    checks.patches(patcher.model_options["transformer_options"])
    checks.areas(executor.class_obj.conds, "Stage B" if checks.is_stage_b(patcher) else "Stage C", noise.shape)
    return executor(noise, *args, **kwargs)


def _forget(patcher: Any, *_: Any, **__: Any) -> None:
    """Clears what was computed from the weights: a run begins or ends, or the weights have changed."""
    patcher.model.diffusion_model.cache.clear()
