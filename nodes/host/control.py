"""CONTROL_NET: our ControlNets, for any Stage C that the host samples."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import comfy.controlnet
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
from torch import Tensor

from ...cascade.checkpoints.network_kinds import variant
from ...cascade.diffusion import Interval
from ...cascade.errors import CascadeError, IncompatibleCheckpoint
from ...cascade.models import ControlNet, ControlNetConfig
from ...cascade.pipelines.control import added, check_fit, for_batch, read_hint
from .files import read
from .networks import LayerFactory
from .sampling import percent_of

HINTS = {
    1: "Canny Hint (Stable Cascade)",
    4: "Inpaint Hint (Stable Cascade) or Outpaint Hint (Stable Cascade)",
    16: "Super Resolution Hint (Stable Cascade)",
    512: "Identity Hint (Stable Cascade)",
}
"""Channels that a ControlNet reads -> the nodes that make such a hint."""
SKETCH_HINT = "Sketch Hint (Stable Cascade)"
READS = {1: "edges", 3: "images", 4: "images with their mask", 16: "the encoder's latents", 512: "faces"}


class CascadeControl(comfy.controlnet.ControlBase):
    """A ControlNet of ours. It reads only the hint, so its residuals are computed once, not at every step: the next run
    with this hint, such as one of the host's queue with another seed, uses them again."""

    def __init__(self, net: Any, patcher: Any) -> None:
        super().__init__()
        self.net, self.patcher = net, patcher
        self.residuals: dict[tuple[int, ...], list[Tensor | None]] = {}
        self.hint_read: Tensor | None = None
        """The hint that the residuals belong to."""
        self.length: int | None = 0
        self.model_sampling: Any = None

    @property
    def config(self) -> Any:
        return self.net.config

    def set_cond_hint(self, cond_hint: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The host's, for hints [B, c, H, W]. Raises CascadeError for one of another kind."""
        return super().set_cond_hint(checked_hint(cond_hint, self.config.in_channels), *args, **kwargs)

    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        super().pre_run(model, percent_to_timestep_function)
        self.length = self._length(model)
        self.model_sampling = model.model_sampling

    def _length(self, model: Any) -> int | None:
        """The residual blocks of the model, or None for Stage B, which is not controlled. Raises CascadeError."""
        if isinstance(model, comfy.model_base.StableCascade_B):
            return None
        if not isinstance(model, comfy.model_base.StableCascade_C):
            raise CascadeError(
                f"This ControlNet ({variant('controlnet', self.config)}) was made for a Stage C; the model that is "
                f"sampled is {type(model).__name__}, another model."
            )
        net = model.diffusion_model
        blocks = sum(type(module).__name__ == "ResBlock" for module in net.modules())
        check_fit(self.config, net.embedding[1].out_channels, blocks)
        return blocks

    def get_control(
        self, x_noisy: Tensor, t: Tensor, cond: Any, batched_number: int, transformer_options: Any = None, **kwargs: Any
    ) -> dict[str, list[Tensor | None]] | None:
        """The host's lists: the last is for the first block, as many as the network has blocks."""
        previous = None
        if self.previous_controlnet is not None:
            previous = self.previous_controlnet.get_control(
                x_noisy, t, cond, batched_number, transformer_options, **kwargs
            )
        if self.length is None or not self._acts(t):
            return previous
        ours = [
            None if residual is None else self.strength * for_batch(residual, len(x_noisy), batched_number)
            for residual in self._residuals(x_noisy)
        ]
        return {"input": merged(ours, previous, self.length), "middle": [], "output": []}

    def _acts(self, t: Tensor) -> bool:
        """Whether the net acts at the step with sigma t [B]."""
        if self.timestep_range is None:
            return True
        return percent_of(float(t[0]), self.model_sampling) in Interval(*self.timestep_percent_range)

    def _residuals(self, x: Tensor) -> list[Tensor | None]:
        """The residuals [hints, width, h, w] for latents of this size, in order of execution."""
        hint, size = self.cond_hint_original, tuple(x.shape[-2:])
        if self.hint_read is not hint:
            self.hint_read, self.residuals = hint, {}
        if size not in self.residuals:
            self.residuals[size] = self._read_hint(hint, size, x.device)
        self.residuals[size] = _placed(self.residuals[size], x.device)
        return self.residuals[size]

    def _read_hint(self, hint: Tensor, size: tuple[int, ...], device: torch.device) -> list[Tensor | None]:
        height, width = size
        return read_hint(self.net, hint, height, width, device=device, dtype=torch.float32)

    def cleanup(self) -> None:
        super().cleanup()
        self.residuals = {size: _placed(kept, torch.device("cpu")) for size, kept in self.residuals.items()}

    def copy(self) -> CascadeControl:
        made = type(self)(self.net, self.patcher)
        self.copy_to(made)
        return made

    def deepclone_multigpu(self, load_device: torch.device, autoregister: bool = False) -> CascadeControl:
        """For newer hosts that sample on several devices: a copy with a network of its own there."""
        made = self.copy()
        made.net = copy.deepcopy(self.net)
        made.patcher = _patcher(made.net, load_device)
        if autoregister:
            self.multigpu_clones[load_device] = made
        return made

    def get_models(self) -> list[Any]:
        return [*super().get_models(), self.patcher]


def _placed(residuals: list[Tensor | None], device: torch.device) -> list[Tensor | None]:
    return [None if residual is None else residual.to(device) for residual in residuals]


def merged(ours: list[Tensor | None], previous: Any, length: int) -> list[Tensor | None]:
    """The sum of residuals in order of execution and the host's lists of another net, as the host's list.

    If the other net's list is shorter, it controls no later block: the host's own lists end at the first block.
    """
    before = [] if previous is None else list(reversed(previous.get("input", ())))
    return added([before, ours, [None] * length])[::-1]


def checked_hint(hint: Tensor, channels: int) -> Tensor:
    """The hint [B, c, H, W] with as many channels as the net reads; gray images count as one channel.

    Raises:
        CascadeError: a hint of another kind.
    """
    found = hint.shape[1]
    if (
        channels == 1
        and found in (3, 4)
        and torch.equal(hint[:, 0], hint[:, 1])
        and torch.equal(hint[:, 1], hint[:, 2])
    ):
        return hint[:, :1]
    if found == channels:
        return hint
    color = "a color image" if found == 3 else READS.get(found, f"{found} channels")
    make = HINTS.get(channels)
    raise CascadeError(
        f"This ControlNet reads {READS.get(channels, f'{channels} channels')}; the hint that is connected is {color}. "
        + (f"Make the hint with {make}." if make else f"It must have {channels} channels.")
    )


def load_control(path: Path, blocks: tuple[int, ...] = ()) -> tuple[CascadeControl, str]:
    """The CONTROL_NET of a file, and a line of text that describes it.

    Args:
        blocks: the residual blocks that it controls, if the file does not name them.

    Raises:
        CheckpointError: another kind of file, or blocks that do not fit.
    """
    with torch.inference_mode(False):
        config, state = _read(path, blocks)
        control = built(CascadeControl, config, state)
    reads = READS.get(config.in_channels, f"{config.in_channels} channels")
    node = SKETCH_HINT if config.hint == "sketch" else HINTS.get(config.in_channels)
    make = f", made by {node}" if node else ""
    report = f"{variant('controlnet', config)}, reads {reads}{make}; for a Stage C of width {config.width}"
    return control, f"{report}, blocks {', '.join(map(str, config.blocks))}"


C = TypeVar("C", bound=CascadeControl)


def built(kind: type[C], config: ControlNetConfig, state: Mapping[str, Tensor]) -> C:
    """A CONTROL_NET of this kind, in the host's memory management."""
    with torch.device("meta"):
        net: Any = ControlNet(config, ops=LayerFactory(comfy.ops.manual_cast, torch.float32))
    net.load_state_dict(state, assign=True)
    net.eval().requires_grad_(False)
    return kind(net, _patcher(net, comfy.model_management.get_torch_device()))


def _read(path: Path, blocks: tuple[int, ...]) -> tuple[Any, dict[str, Tensor]]:
    known: dict[str, Any] = {"blocks": blocks} if blocks else {}
    try:
        return read(path, "controlnet", **known)
    except ValueError as error:
        raise IncompatibleCheckpoint(f"blocks {', '.join(map(str, blocks))}: {error}", path) from error


def _patcher(net: Any, device: torch.device) -> Any:
    offload = comfy.model_management.unet_offload_device()
    return comfy.model_patcher.CoreModelPatcher(net, load_device=device, offload_device=offload)


def apply(
    positive: Any, negative: Any, control: Any, hint: Tensor, strength: float, start: float, end: float
) -> tuple[Any, Any]:
    """Both conditionings with the net, ours or the host's own; None stays None. A hint is an image [B, H, W, c].

    Conditionings that had the same net before share one clone, so that the host runs them as one batch.
    """
    if control is None:
        raise CascadeError("There is no ControlNet: connect Load ControlNet (Stable Cascade).")
    if start > end:
        raise CascadeError(f"Apply ControlNet (Stable Cascade): start_percent {start:g} is after end_percent {end:g}.")
    image = hint.movedim(-1, 1)
    if isinstance(control, comfy.controlnet.T2IAdapter):
        # The host would turn a color image into one channel, in which there are no edges.
        image = checked_hint(image, control.channels_in)
    made: dict[Any, Any] = {}

    def with_control(conditioning: Any) -> Any:
        if conditioning is None:
            return None
        found = []
        for embedding, extras in conditioning:
            before = extras.get("control")
            if before not in made:
                clone = control.copy().set_cond_hint(image, strength, (start, end))
                made[before] = clone.set_previous_controlnet(before)
            found.append([embedding, {**extras, "control": made[before], "control_apply_to_uncond": False}])
        return found

    return with_control(positive), with_control(negative)
