"""The diffusion process of a network, from its config."""

from __future__ import annotations

from functools import cache

from ..diffusion import Diffusion
from ..errors import IncompatibleCheckpoint
from ..models import PriorConfig, Process, StackConfig


def diffusion_of(config: StackConfig | PriorConfig) -> Diffusion:
    """What a Stage C, Stage B or prior was trained for, which its sampling must share.

    Raises IncompatibleCheckpoint for names that this version does not know.
    """
    return _diffusion(config.process)


@cache
def _diffusion(process: Process) -> Diffusion:
    try:
        return Diffusion.named(process.schedule, process.scaling, process.target, process.noise_condition)
    except KeyError as error:
        raise IncompatibleCheckpoint(f"its metadata ask for another diffusion process: {error.args[0]}") from error
