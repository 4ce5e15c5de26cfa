"""Loss weights: the factor [B] of each image's loss, from its log_snr [B]. snr = exp(log_snr)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .registry import Registry
from .schedules import running_mean


class LossWeight:
    """Base of all weights: `weight(log_snr, shift=1.0)`; a shift weighs as if log_snr were 2 log(shift) higher."""

    def weight(self, log_snr: Tensor) -> Tensor:
        raise NotImplementedError

    def __call__(self, log_snr: Tensor, shift: float = 1.0) -> Tensor:
        # Bounded as in the reference: an infinite weight would make a loss of 0 a NaN.
        return self.weight(log_snr + 2 * math.log(shift)).clamp(-1e9, 1e9)

    def learn(self, log_snr: Tensor, loss: Tensor) -> None:
        """Update with the losses [B] at log_snr [B]; only adaptive weights use them."""

    def state_dict(self) -> dict[str, Tensor]:
        """What was learned; empty for fixed weights."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state_dict`."""


@dataclass(frozen=True)
class Constant(LossWeight):
    value: float = 1.0

    def weight(self, log_snr: Tensor) -> Tensor:
        return torch.full_like(log_snr, self.value)


class SNR(LossWeight):
    """snr: an x0 target's loss becomes that of an epsilon target."""

    def weight(self, log_snr: Tensor) -> Tensor:
        return torch.exp(log_snr)


@dataclass(frozen=True)
class P2(LossWeight):
    """(k + snr^s)^-gamma (Choi et al. 2022, "P2 weighting"). The released training setting."""

    k: float = 1.0
    gamma: float = 1.0
    s: float = 1.0

    def weight(self, log_snr: Tensor) -> Tensor:
        return (self.k + torch.exp(log_snr * self.s)) ** -self.gamma


class SNRPlusOne(LossWeight):
    """snr + 1 (Salimans & Ho 2022, section 4)."""

    def weight(self, log_snr: Tensor) -> Tensor:
        return torch.exp(log_snr) + 1


@dataclass(frozen=True)
class MinSNR(LossWeight):
    """min(snr, maximum) (Hang et al. 2023, "Min-SNR")."""

    maximum: float = 5.0

    def weight(self, log_snr: Tensor) -> Tensor:
        return torch.exp(log_snr).clamp(max=self.maximum)


@dataclass(frozen=True)
class MinSNRPlusOne(LossWeight):
    """min(snr + 1, maximum)."""

    maximum: float = 5.0

    def weight(self, log_snr: Tensor) -> Tensor:
        return (torch.exp(log_snr) + 1).clamp(max=self.maximum)


@dataclass(frozen=True)
class TruncatedSNR(LossWeight):
    """max(snr, minimum) (Salimans & Ho 2022, section 4)."""

    minimum: float = 1.0

    def weight(self, log_snr: Tensor) -> Tensor:
        return torch.exp(log_snr).clamp(min=self.minimum)


@dataclass(frozen=True)
class Sech(LossWeight):
    """1 / cosh(log_snr / width): a bell around log_snr = 0."""

    width: float = 2.0

    def weight(self, log_snr: Tensor) -> Tensor:
        return 1 / torch.cosh(log_snr / self.width)


class Debiased(LossWeight):
    """1 / sqrt(snr) (Yu et al. 2023, "Debias the training of diffusion models")."""

    def weight(self, log_snr: Tensor) -> Tensor:
        return torch.exp(-log_snr / 2)


@dataclass(frozen=True)
class Sigmoid(LossWeight):
    """sigmoid(s log_snr) (Kingma & Gao 2023, with its bias given as the shift)."""

    s: float = 1.0

    def weight(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(log_snr * self.s)


@dataclass(frozen=True)
class Adaptive(LossWeight):
    """1 / the running mean loss of a log_snr bucket: every noise level has the same weight. 1 until `learn` was called.

    The first and the last bucket are for levels beyond `bounds`. `decay` is the weight of the old mean.
    """

    bounds: tuple[float, float] = (-10.0, 10.0)
    buckets: int = 300
    limits: tuple[float, float] = (1e-7, 1e7)
    decay: float = 0.99
    losses: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "losses", torch.ones(self.buckets))

    def bucket(self, log_snr: Tensor) -> Tensor:
        edges = torch.linspace(*self.bounds, self.buckets - 1)
        return torch.searchsorted(edges, log_snr.detach().cpu().float().contiguous())

    def weight(self, log_snr: Tensor) -> Tensor:
        return (1 / self.losses[self.bucket(log_snr)]).clamp(*self.limits).to(log_snr)

    def learn(self, log_snr: Tensor, loss: Tensor) -> None:
        running_mean(self.losses, self.bucket(log_snr), loss, self.decay)

    def state_dict(self) -> dict[str, Tensor]:
        return {"losses": self.losses.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.losses.copy_(state["losses"])


@dataclass(frozen=True)
class Composed(LossWeight):
    """The product of the weights `mul` over the product of the weights `div`."""

    mul: Sequence[LossWeight] = ()
    div: Sequence[LossWeight] = ()

    def weight(self, log_snr: Tensor) -> Tensor:
        result = torch.ones_like(log_snr)
        for part in self.mul:
            result = result * part.weight(log_snr)
        for part in self.div:
            result = result / part.weight(log_snr)
        return result

    def learn(self, log_snr: Tensor, loss: Tensor) -> None:
        for part in (*self.mul, *self.div):
            part.learn(log_snr, loss)

    def state_dict(self) -> dict[str, Tensor]:
        parts = enumerate((*self.mul, *self.div))
        return {f"{i}.{name}": value for i, part in parts for name, value in part.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for i, part in enumerate((*self.mul, *self.div)):
            part.load_state_dict({name: state[f"{i}.{name}"] for name in part.state_dict()})


LOSS_WEIGHTS: Registry[LossWeight] = Registry(
    "loss weight",
    {
        "constant": Constant,
        "snr": SNR,
        "p2": P2,
        "snr_plus_one": SNRPlusOne,
        "min_snr": MinSNR,
        "min_snr_plus_one": MinSNRPlusOne,
        "truncated_snr": TruncatedSNR,
        "sech": Sech,
        "debiased": Debiased,
        "sigmoid": Sigmoid,
        "adaptive": Adaptive,
        "composed": Composed,
    },
)
