"""A diffusion process: the choices that training and sampling of a network must share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from .loss_weights import P2, LossWeight
from .noise_conditions import NOISE_CONDITIONS, CosineT, NoiseCondition
from .scalings import SCALINGS, Scaling, vp
from .schedules import SCHEDULES, CosineSchedule, Schedule
from .targets import TARGETS, EpsilonTarget, Target, expand


class TrainingBatch(NamedTuple):
    """What a training step needs, for a batch of B images."""

    noised: Tensor
    """[B, ...], the network's x, in the dtype of x0."""
    r: Tensor
    """[B], the network's r, float32."""
    target: Tensor
    """[B, ...], what the network should predict."""
    weight: Tensor
    """[B], the factor of each image's loss."""
    log_snr: Tensor
    """[B]."""


@dataclass(frozen=True)
class Diffusion:
    """Schedule, scaling, target, noise condition and loss weight. The defaults are those of the released networks."""

    @classmethod
    def named(cls, schedule: str, scaling: str, target: str, noise_condition: str, **parts: Any) -> Diffusion:
        """By the names of the registries; `parts` are others as objects. Raises KeyError for an unknown name."""
        return cls(
            schedule=SCHEDULES[schedule](),
            scaling=SCALINGS[scaling](),
            target=TARGETS[target](),
            noise_condition=NOISE_CONDITIONS[noise_condition](),
            **parts,
        )

    schedule: Schedule = field(default_factory=CosineSchedule)
    scaling: Scaling = vp
    target: Target = field(default_factory=EpsilonTarget)
    noise_condition: NoiseCondition = field(default_factory=CosineT)
    loss_weight: LossWeight = field(default_factory=P2)

    def noised(self, x0: Tensor, epsilon: Tensor, log_snr: Tensor) -> Tensor:
        """a x0 + b epsilon for log_snr [B] or a single level, in the dtype of x0 [B, ...]."""
        a, b = self.scaling(log_snr.to(x0.device))
        return (expand(a, x0) * x0 + expand(b, x0) * epsilon).to(x0.dtype)

    def training_batch(
        self, x0: Tensor, t: Tensor, epsilon: Tensor, *, shift: float = 1.0, loss_shift: float = 1.0
    ) -> TrainingBatch:
        """Add noise epsilon to x0 [B, ...] at times t [B] in (0, 1], which are sampled uniformly for every schedule."""
        log_snr = self.schedule(t.to(x0.device), shift)
        a, b = self.scaling(log_snr)
        return TrainingBatch(
            noised=self.noised(x0, epsilon, log_snr),
            r=self.noise_condition(log_snr),
            target=self.target(x0, epsilon, log_snr, a, b).to(x0.dtype),
            weight=self.loss_weight(log_snr, loss_shift),
            log_snr=log_snr,
        )

    def learn(self, log_snr: Tensor, loss: Tensor) -> None:
        """Pass the unweighted losses [B] at log_snr [B] to the schedule and the loss weight; fixed ones ignore them."""
        self.schedule.learn(log_snr, loss)
        self.loss_weight.learn(log_snr, loss)

    def state_dict(self) -> dict[str, Tensor]:
        """What the adaptive parts have learned, for a checkpoint of the training; empty where none is adaptive."""
        parts = (("schedule", self.schedule), ("loss_weight", self.loss_weight))
        return {f"{part}.{name}": value for part, owner in parts for name, value in owner.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state_dict`. Raises KeyError for the state of other parts."""
        if state.keys() != self.state_dict().keys():
            raise KeyError(f"diffusion state has {sorted(state)}, expected {sorted(self.state_dict())}")
        for part, owner in (("schedule", self.schedule), ("loss_weight", self.loss_weight)):
            owner.load_state_dict({name: state[f"{part}.{name}"] for name in owner.state_dict()})


RELEASED_DIFFUSION = Diffusion()
