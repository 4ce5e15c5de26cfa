"""What the trainings of diffusion networks share: the process by names of registries, loss, state and samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from ..diffusion import LOSS_WEIGHTS, Diffusion, SeededNoise, sample
from ..errors import InvalidConfig
from ..models import Process
from ..pipelines import STAGE_C_SETTINGS
from .config import Amount, Number, Settings, TrainingConfig
from .data import Cache, Streamed
from .task import BaseTask


class DiffusionSettings(Settings):
    """The process by names of the registries; the defaults are the released training's. What is not given of schedule,
    scaling, target and noise condition is that of the network that the training starts from, as its file says.

    `offset_noise` is the deviation of noise that is the same in a whole channel, for images that are darker or lighter.
    """

    schedule: str = "cosine"
    scaling: str = "vp"
    target: str = "epsilon"
    noise_condition: str = "cosine_t"
    loss_weight: str = "p2"
    loss_weight_options: Mapping[str, Any] = {}
    shift: Annotated[Number, Field(ge=0.01)] = 1.0
    loss_shift: Annotated[Number, Field(ge=0.01)] = 1.0
    offset_noise: Amount = 0.0


_SHARED = ("scaling", "target", "noise_condition")
"""What a network and what is trained through it must share."""
_SAMPLED_AS = {"adaptive": "linear", "edm_train": "edm"}
"""Schedules for trainings alone, and those of the same noise levels with which such networks are sampled."""


def build_diffusion(settings: DiffusionSettings, net: Any = None, *, trained: bool = False) -> Diffusion:
    """The process of a training for, or through, a network. One that is `trained` says it in its config from now on.

    Raises InvalidConfig for names and options that the registries do not know, and for another process than that of a
    network that is not trained.
    """
    base = Process() if net is None else net.config.process
    names = {
        name: getattr(settings if name in settings.model_fields_set else base, name) for name in ("schedule", *_SHARED)
    }
    if not trained and (wrong := [name for name in _SHARED if net is not None and names[name] != getattr(base, name)]):
        raise InvalidConfig(
            f"diffusion: {wrong[0]} is {names[wrong[0]]}, and the network was trained with {getattr(base, wrong[0])}: "
            "leave it out"
        )
    try:
        loss_weight = LOSS_WEIGHTS[settings.loss_weight](**settings.loss_weight_options)
        diffusion = Diffusion.named(**names, loss_weight=loss_weight)
    except (KeyError, TypeError) as error:
        raise InvalidConfig(f"diffusion: {error.args[0]}") from error
    if trained and net is not None:
        schedule = _SAMPLED_AS.get(names["schedule"], names["schedule"])
        process = Process(**{**names, "schedule": schedule}, shift=settings.shift)
        net.config = replace(net.config, process=process)
    return diffusion


class DiffusionTask(BaseTask):
    """A task that trains for, or through, one diffusion network. Its settings have `diffusion` and `sample_steps`.

    diffusion: the process, whose adaptive parts are the task's state. data: what is cached, `latents` among it.
    """

    config: TrainingConfig
    settings: Any
    device: torch.device
    data: Cache | Streamed
    diffusion: Diffusion

    def diffusion_loss(
        self,
        predict: Callable[[Tensor, Tensor], Tensor],
        x0: Tensor,
        generator: torch.Generator,
        importance: Tensor | None = None,
        retarget: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted squared error of `predict(noised, r)` at random noise levels for x0 [B, ...].

        `importance` [B], or [B, 1, h, w] for positions, says how much each counts, where that differs.
        `retarget(noised, r, target)` exchanges what is to be predicted.

        The times of a batch are one from each of B equal parts of (0, 1], which makes the gradient less noisy than
        independent ones do (Kingma et al. 2021, "Variational diffusion models", appendix I.1).
        """
        diffusion, settings = self.diffusion, self.settings.diffusion
        count, device = len(x0), x0.device
        parts = torch.randperm(count, generator=generator, device=device)
        within = torch.rand(count, generator=generator, device=device)
        t = (1 - (parts + within) / count).add(0.001).clamp(0.001, 1)
        epsilon = self.noise(x0, generator)
        if settings.offset_noise > 0:
            offset = torch.randn(*x0.shape[:2], 1, 1, generator=generator, device=device)
            epsilon = epsilon + settings.offset_noise * offset
        step = diffusion.training_batch(x0, t, epsilon, shift=settings.shift, loss_shift=settings.loss_shift)
        target = step.target if retarget is None else retarget(step.noised, step.r, step.target)
        prediction = predict(step.noised, step.r)
        squares = (prediction.float() - target.float()).square()
        if importance is not None and importance.dim() > 1:
            squares, importance = squares * importance, None
        errors = squares.flatten(1).mean(dim=1)
        if self._adaptive or self._validating:
            self._losses.append((step.log_snr.cpu(), errors.detach().cpu()))
        weight = step.weight if importance is None else step.weight * importance
        return (errors * weight).mean(), {"mse": errors.mean()}

    def noise(self, x0: Tensor, generator: torch.Generator) -> Tensor:
        """Standard normal noise for x0 [B, ...]."""
        return torch.randn(x0.shape, generator=generator, device=x0.device)

    def sample_stage_c(
        self,
        predict: Callable[..., Tensor],
        count: int,
        *,
        cond: Mapping[str, Any],
        uncond: Mapping[str, Any],
        cached: str = "latents",
    ) -> Tensor:
        """Latents [count, 16, h, w] of the cached ones' size at the released settings, from noise 0 to count - 1."""
        return sample(
            predict,
            SeededNoise(range(count)).start(*self.data.shape(cached)).to(self.device),
            replace(STAGE_C_SETTINGS, steps=self.settings.sample_steps),
            cond=cond,
            uncond=uncond,
            diffusion=self.diffusion,
        )

    def end_step(self, gather: Callable[[Any], list[Any]]) -> None:
        """Pass the losses of all processes to the adaptive parts, in the order of the micro-batches."""
        if not self._adaptive:
            return
        for micro_batches in zip(*gather(self._losses), strict=True):
            for log_snr, losses in micro_batches:
                self.diffusion.learn(log_snr, losses)
        self._losses.clear()

    _validating = False

    @contextmanager
    def validation(self) -> Iterator[Callable[[], dict[str, Tensor]]]:
        """Its metrics are the mean squared error of each quarter of the times, from the image to noise."""
        self._validating = True
        try:
            with super().validation():
                yield self._by_quarter
        finally:
            self._validating = False
            self._losses.clear()

    def _by_quarter(self) -> dict[str, Tensor]:
        log_snr, errors = (torch.cat(parts) for parts in zip(*self._losses, strict=True))
        edges = self.diffusion.schedule(torch.tensor([0.25, 0.5, 0.75]), self.settings.diffusion.shift)
        quarters = torch.bucketize(-log_snr, -edges.cpu())
        return {f"mse_quarter_{n + 1}": errors[quarters == n].mean() for n in range(4) if (quarters == n).any()}

    @cached_property
    def _adaptive(self) -> bool:
        return bool(self.diffusion.state_dict())

    @cached_property
    def _losses(self) -> list[tuple[Tensor, Tensor]]:
        """Noise levels and losses of the micro-batches since the last step."""
        return []

    def state(self) -> dict[str, Any]:
        return {**self.diffusion.state_dict(), **super().state()}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.diffusion.load_state_dict({name: value for name, value in state.items() if name != "images"})
