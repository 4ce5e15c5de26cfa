"""Everything that relies on more than the host's public interface.

Tried on ComfyUI 0.16.3, 0.24.0 and 0.30.0. Where a new version breaks something, look here first.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.model_base
import comfy.model_sampling
import comfy.sd
import comfy.supported_models
import torch

from ...cascade.diffusion import Diffusion
from ...cascade.diffusion.targets import expand
from ...cascade.models import Process, StackConfig
from ...cascade.pipelines.process import diffusion_of

_lock = threading.Lock()


@dataclass(frozen=True)
class ModelEntry:
    """The entry in the host's list of models while it loads ours: one of its classes, with the sizes we detected.

    It matches only in the thread that loads.
    """

    cls: type[Any]
    config: Any
    thread: int

    def matches(self, unet_config: dict[str, Any], *args: Any, **kwargs: Any) -> bool:
        return threading.get_ident() == self.thread and self.cls.matches(unet_config, *args, **kwargs)

    def __call__(self, unet_config: dict[str, Any]) -> Any:
        stage, config = unet_config["stable_cascade_stage"], self.config
        # The last is for nodes that read it of every model, such as FreeU.
        return self.cls({"stable_cascade_stage": stage, "config": config, "model_channels": config.levels[0].width})

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cls, name)


@contextmanager
def known_model(cls: type[Any], config: Any) -> Iterator[None]:
    """Puts a class of the host's model list at the head of that list, for this thread, while the block runs."""
    entry: Any = ModelEntry(cls, config, threading.get_ident())
    models = comfy.supported_models.models
    with _lock:
        models.insert(0, entry)
        try:
            yield
        finally:
            models.remove(entry)


def build_base_model(model: comfy.model_base.BaseModel, model_config: Any, device: Any, network: type[Any]) -> None:
    """The host's constructor of the model in a MODEL, with our network. The constructors of its Stable Cascade classes
    are skipped, because they build networks of their own."""
    kinds = comfy.model_base.ModelType
    # Another kind at first: with its own, the host would compute the table that `NoiseLevels` has at once.
    comfy.model_base.BaseModel.__init__(model, model_config, kinds.EPS, device=device, unet_model=network)
    config = model_config.unet_config["config"]
    levels = NoiseLevels if config.process == Process() else OtherNoiseLevels.of(config)
    model.model_type, model.model_sampling = kinds.STABLE_CASCADE, levels(model_config)


class NoiseLevels(comfy.model_sampling.StableCascadeSampling, comfy.model_sampling.EPS):
    """The host's, except that it computes its table of 10,000 levels one at a time: half of the time of loading."""

    def set_parameters(self, shift: float = 1.0, cosine_s: float = 8e-3) -> None:
        self.shift, self.cosine_s, self.num_timesteps = shift, torch.tensor(cosine_s), 10_000
        self._init_alpha_cumprod = torch.cos(self.cosine_s / (1 + self.cosine_s) * torch.pi * 0.5) ** 2
        fill_table(self)


class OtherNoiseLevels(NoiseLevels):
    """Those of a network that was trained for another diffusion process than the released ones; see `of`.

    The host's x is the network's divided by the factor a of the level.
    """

    diffusion: Diffusion

    @classmethod
    def of(cls, config: StackConfig) -> type[OtherNoiseLevels]:
        """Raises IncompatibleCheckpoint for a process that this version does not know."""
        return type(cls.__name__, (cls,), {"diffusion": diffusion_of(config)})

    def sigma(self, timestep: Any) -> Any:
        return torch.exp(-self.diffusion.schedule(timestep, self.shift) / 2)

    def timestep(self, sigma: Any) -> Any:
        return self.diffusion.noise_condition(_log_snr(sigma))

    def calculate_input(self, sigma: Any, noise: Any) -> Any:
        return expand(self.scale(sigma), noise) * noise

    def calculate_denoised(self, sigma: Any, model_output: Any, model_input: Any) -> Any:
        log_snr = _log_snr(sigma)
        a, b = self.diffusion.scaling(log_snr)
        return self.diffusion.target.x0(expand(a, model_input) * model_input, model_output, log_snr, a, b)

    def noise_scaling(self, sigma: Any, noise: Any, latent_image: Any, max_denoise: bool = False) -> Any:
        return latent_image + noise * expand(1 / self.scale(sigma) if max_denoise else sigma, noise)

    def scale(self, sigma: Any) -> Any:
        """The factor a of noise levels."""
        return self.diffusion.scaling(_log_snr(sigma))[0]


def _log_snr(sigma: Any) -> Any:
    return -2 * torch.log(sigma)


def fill_table(sampling: Any) -> None:
    """Compute the levels of a schedule of Stable Cascade from its parameters."""
    count = sampling.num_timesteps
    sampling.set_sigmas(sampling.sigma(torch.arange(1, count + 1) / count))


def native_formats() -> Set[str]:
    """The formats of quantized weights that this host has kernels for; older hosts have fewer or none."""
    quant_ops = sys.modules.get("comfy.quant_ops")
    return getattr(quant_ops, "QUANT_ALGOS", {}).keys() if getattr(quant_ops, "_CK_AVAILABLE", False) else set()


def build_empty_vae(vae: comfy.sd.VAE) -> None:
    """The host's constructor of a VAE without weights. Its warning is hidden: our weights are set right after."""

    def other(record: logging.LogRecord) -> bool:
        return "No VAE weights" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(other)
    try:
        comfy.sd.VAE.__init__(vae, sd={})
    finally:
        root.removeFilter(other)
