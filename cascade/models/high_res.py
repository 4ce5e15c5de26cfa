"""UltraPixel's guide (Ren et al. 2024): Stage C at high resolution follows its own features of a low resolution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import IncompatibleCheckpoint
from .blocks import channels_first, channels_last, scaled_dot_product_attention, timestep_embedding
from .config import Config
from .layers import layer_factory
from .stack import AfterAttention, Places

POSITIONS = 1024
"""The largest number of positions of the low resolution's latents: each has an entry in a table."""
FREQUENCIES = 64
"""Of a coordinate's sinusoidal embedding."""
TRAINED_POSITIONS = 576
"""Positions of Stage C's latents for 1024 x 1024 pixels, the unit of a guide's scale."""


class Features(NamedTuple):
    """Stage C's stream [B, width, h, w] after the first attention block of each level, down and then up."""

    down: tuple[Tensor, ...]
    up: tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class HighResGuideConfig(Config):
    """Sizes of the guides of one Stage C.

    Args:
        stage_c_width: channels of Stage C.
        width: channels of the transformer and of the coordinate network.
        heads: of the transformer's attention.
        groups: learned tokens for each layer of the coordinate network, whose weights they become.
        timestep_channels: size of a timestep's sinusoidal embedding.
        levels: of Stage C; each has a guide on the way down and one on the way up.
    """

    stage_c_width: int = 2048
    width: int = 1024
    heads: int = 32
    groups: int = 64
    timestep_channels: int = 64
    levels: int = 2

    def __post_init__(self) -> None:
        if min(self.to_dict().values()) < 1:
            raise ValueError(f"the sizes of a high-res guide are numbers from 1, not {self.to_dict()}")
        if self.width % self.heads or self.width % self.groups or self.stage_c_width % 4:
            raise ValueError(
                f"a high-res guide of width {self.width} cannot have {self.heads} heads, {self.groups} groups and a "
                f"Stage C of width {self.stage_c_width}"
            )

    @classmethod
    def from_reference(
        cls,
        *,
        ind: int = 2048,
        ch: int = 1024,
        n_head: int = 32,
        n_groups: int = 64,
        f_dim: int = 1024,
        time_dim: int = 64,
    ) -> HighResGuideConfig:
        """From the reference constructor's arguments."""
        if ch != f_dim:
            raise ValueError(f"the attention adds f_dim ({f_dim}) channels to ch ({ch}): they must be equal")
        return cls(stage_c_width=ind, width=ch, heads=n_head, groups=n_groups, timestep_channels=time_dim)


ULTRAPIXEL = HighResGuideConfig()


class _Attention(nn.Module):
    """Attention of tokens [B, n, c] over themselves, without a projection of the result."""

    def __init__(self, width: int, heads: int, ops: Any) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Sequential(nn.SiLU(), ops.Linear(width, width))
        self.to_kv = nn.Sequential(nn.SiLU(), ops.Linear(width, width * 2))

    def forward(self, x: Tensor) -> Tensor:
        k, v = self.to_kv(x).chunk(2, dim=-1)
        return scaled_dot_product_attention(self.to_q(x), k, v, self.heads)


class _FeedForward(nn.Module):
    def __init__(self, width: int, ops: Any) -> None:
        super().__init__()
        # Indices 2 and 4 are dropout in the training.
        self.net = nn.Sequential(ops.Linear(width, width), nn.GELU(), nn.Identity(), ops.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class _AfterNorm(nn.Module):
    """x + fn(norm(x))."""

    def __init__(self, width: int, fn: nn.Module, ops: Any) -> None:
        super().__init__()
        self.norm, self.fn = ops.LayerNorm(width), fn

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fn(self.norm(x))


class _Tokenizer(nn.Module):
    """Features [B, c, h, w] as tokens [B, h w, c], each with an entry of a table for its position."""

    def __init__(self, width: int, ops: Any) -> None:
        super().__init__()
        self.posemb = nn.Parameter(torch.empty(POSITIONS, width))
        self.prefc = ops.Linear(width, width)

    def forward(self, feature: Tensor) -> Tensor:
        tokens = self.prefc(channels_last(feature).flatten(1, 2))
        return tokens + self.posemb[: tokens.shape[1]].to(tokens)


class _Transformer(nn.Module):
    """One layer."""

    def __init__(self, width: int, heads: int, ops: Any) -> None:
        super().__init__()
        attention, feed_forward = _Attention(width, heads, ops), _FeedForward(width, ops)
        layer = nn.Sequential(_AfterNorm(width, attention, ops), _AfterNorm(width, feed_forward, ops))
        self.layers = nn.ModuleList([layer])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0](x)


class _Modulation(nn.Module):
    """x (1 + a) + b for x [B, h, w, c], with a and b linear in the sinusoidal embedding of numbers [B]."""

    def __init__(self, channels: int, width: int, ops: Any) -> None:
        super().__init__()
        self.channels = channels
        self.mapper = ops.Linear(channels, width * 2)

    def forward(self, x: Tensor, numbers: Tensor) -> Tensor:
        a, b = self.mapper(timestep_embedding(numbers, self.channels).to(x))[:, None, None].chunk(2, dim=-1)
        return torch.addcmul(b, x, 1 + a)


class _ScaleModulation(nn.Module):
    """The modulation by the resolution. `alpha` and `gamma` are in the released file and are not used."""

    def __init__(self, channels: int, width: int, ops: Any) -> None:
        super().__init__()
        self.mapping = _Modulation(channels, width, ops)
        self.alpha, self.gamma = ops.Conv2d(width, width, 1), ops.Conv2d(width, width, 1)


class HighResGuide(nn.Module):
    """What is added to Stage C's stream at one place, from the features there at a low resolution.

    A transformer reads the features and gives the weights of a network of coordinates (an implicit neural
    representation), which gives features of any size (Ren et al. 2024, section 3.3).
    """

    def __init__(self, config: HighResGuideConfig, *, ops: Any = nn) -> None:
        super().__init__()
        ops = layer_factory(ops)
        self.config = config
        outside, width, channels = config.stage_c_width, config.width, config.timestep_channels
        layers = {"wb0": 4 * FREQUENCIES, "wb1": width}
        self.wtokens = nn.Parameter(torch.empty(len(layers) * config.groups, width))
        self.input_layer = ops.Conv2d(outside, width, 1)
        self.tokenizer = _Tokenizer(width, ops)
        self.transformer_encoder = _Transformer(width, config.heads, ops)
        self.base_params = nn.ParameterDict({name: torch.empty(size + 1, width) for name, size in layers.items()})
        self.wtoken_postfc = nn.ModuleDict(
            {name: nn.Sequential(ops.LayerNorm(width), ops.Linear(width, size)) for name, size in layers.items()}
        )
        self.output_layer = ops.Conv2d(width, outside, 1)
        self.mapp_t = _Modulation(channels, outside, ops)
        self.hr_norm = _ScaleModulation(channels, outside, ops)
        self.toout = nn.Sequential(ops.Linear(outside * 2, outside // 4), nn.GELU(), ops.Linear(outside // 4, outside))

    def enlarged(self, feature: Tensor, size: tuple[int, int]) -> Tensor:
        """The features [B, D, h', w'] at another size [B, D, *size]: the same at every step of a run.

        Raises IncompatibleCheckpoint for features of another Stage C, or with more than `POSITIONS` positions.
        """
        if feature.shape[1] != self.config.stage_c_width:
            raise IncompatibleCheckpoint(
                f"the high-res guide was made for a Stage C of width {self.config.stage_c_width}, and the features are "
                f"of one of width {feature.shape[1]}"
            )
        if feature[0, 0].numel() > POSITIONS:
            raise IncompatibleCheckpoint(
                f"the low resolution's latents have {feature.shape[-2]} x {feature.shape[-1]} positions; a high-res "
                f"guide reads at most {POSITIONS}: sample the first pass at about 1024 x 1024 pixels"
            )
        (weights, bias), (last_weights, last_bias) = self._coordinate_network(feature)
        values = F.relu(_coordinates(size).to(feature) @ weights + bias) @ last_weights + last_bias
        values = channels_first(values.unflatten(1, size))
        return self.output_layer(values) + F.interpolate(feature, size, mode="nearest")

    def _coordinate_network(self, feature: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The weights [B, d_in, width] and biases [1, width] of each layer."""
        tokens = self.tokenizer(self.input_layer(feature))
        learned = self.wtokens.to(tokens).expand(len(tokens), -1, -1)
        read = self.transformer_encoder(torch.cat([tokens, learned], dim=1))[:, tokens.shape[1] :]
        layers = []
        for (name, base), given in zip(self.base_params.items(), read.chunk(2, dim=1), strict=True):
            scales = self.wtoken_postfc[name](given).transpose(1, 2)
            base = base.to(scales)
            # Output j is scaled by group j modulo the number of groups.
            weights = base[:-1] * scales.repeat(1, 1, base.shape[1] // scales.shape[2])
            layers.append((F.normalize(weights, dim=1), base[-1:]))
        return layers

    def forward(self, x: Tensor, feature: Tensor, r: Tensor) -> Tensor:
        """What to add to the stream x [B, D, h, w], of the same size.

        Args:
            feature: of the low resolution [B, D, h', w'], with at most `POSITIONS` positions.
            r: noise conditions [B] in [0, 1].

        Raises:
            IncompatibleCheckpoint: features of another Stage C, or of too large an image.
        """
        return self.applied(x, self.enlarged(feature, (x.shape[-2], x.shape[-1])), r)

    def applied(self, x: Tensor, enlarged: Tensor, r: Tensor) -> Tensor:
        """As `forward`, from `enlarged` features."""
        y = self.toout(channels_last(torch.cat([enlarged, x.to(enlarged)], dim=1)))
        y = F.layer_norm(self.mapp_t(y, r), y.shape[-1:], eps=1e-6)
        positions = x.shape[-2] * x.shape[-1]
        scale = torch.full_like(r, math.log(positions) / math.log(TRAINED_POSITIONS)).sqrt()
        return channels_first(y + self.hr_norm.mapping(y, scale))


def _coordinates(size: tuple[int, int]) -> Tensor:
    """The sinusoidal embedding [h w, 4 FREQUENCIES] of each position of a grid, row by row: its y, then its x."""
    frequencies = torch.exp(torch.linspace(0, math.log(1024), FREQUENCIES))
    y, x = ((torch.arange(n) + 0.5) / n * 2 - 1 for n in size)
    angles = math.pi * torch.cartesian_prod(y, x)[..., None] * frequencies
    return torch.cat([angles.cos().flatten(1), angles.sin().flatten(1)], dim=1)


class HighResGuides(nn.Module):
    """The guides of a Stage C: after the first attention block of each level, down and up."""

    def __init__(self, config: HighResGuideConfig, *, ops: Any = nn) -> None:
        super().__init__()
        self.config = config
        self.down, self.up = (
            cast("list[HighResGuide]", nn.ModuleList(HighResGuide(config, ops=ops) for _ in range(config.levels)))
            for _ in range(2)
        )


class FeatureRecorder:
    """Keeps the features of the latest pass that its `after_attention` was given to."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._kept: dict[int, Tensor] = {}
        self.after_attention: AfterAttention = {
            number: partial(self._keep, number) for number in (*places.down, *places.up)
        }

    def _keep(self, number: int, x: Tensor) -> Tensor:
        self._kept[number] = x
        return x

    def features(self, rows: slice = slice(None)) -> Features:
        """Of all rows of the pass's batch, or of some."""
        return Features(*(tuple(self._kept[number][rows] for number in numbers) for numbers in self._places))


class _Place(NamedTuple):
    """The number of an attention block, the guide after it, the features it reads, and whether it is on the way up."""

    block: int
    guide: HighResGuide
    feature: Tensor
    up: bool


class GuidedRun:
    """The guides of one run: features are enlarged once, at the first step.

    Args:
        guides: of the Stage C that runs.
        features: of the low resolution, one row for each image.
        places: of that Stage C.

    Raises:
        IncompatibleCheckpoint: guides or features of another Stage C.
    """

    def __init__(self, guides: HighResGuides, features: Features, places: Places) -> None:
        levels = [len(places.down), len(features.down), len(features.up)]
        if set(levels) != {guides.config.levels}:
            raise IncompatibleCheckpoint(
                f"the high-res guides are for a Stage C of {guides.config.levels} levels; this one has {levels[0]}, "
                f"and the features are of one of {levels[1]}"
            )
        down = zip(places.down, guides.down, features.down, strict=True)
        up = zip(places.up, guides.up, features.up, strict=True)
        self._places = [*(_Place(*each, up=False) for each in down), *(_Place(*each, up=True) for each in up)]
        self._enlarged: dict[tuple[int, int, int], Tensor] = {}

    def after_attention(self, r: Tensor, weight: float = 1.0) -> AfterAttention:
        """What acts in one step; nothing at weight 0.

        Args:
            r: noise conditions [B] in [0, 1]; the batch contains the images once or, for cfg, twice.
            weight: a factor of what is added.
        """
        places = self._places if weight else []
        return {place.block: partial(self._add, place, r, weight) for place in places}

    def _add(self, place: _Place, r: Tensor, weight: float, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        key = (place.block, height, width)
        if key not in self._enlarged:
            self._enlarged[key] = place.guide.enlarged(place.feature, (height, width))
        enlarged = self._enlarged[key]
        if len(x) % len(enlarged):
            raise IncompatibleCheckpoint(
                f"the features are of {len(enlarged)} images, and {len(x)} are sampled: sample as many in both passes"
            )
        enlarged = enlarged.repeat(len(x) // len(enlarged), 1, 1, 1)
        factor = weight * (_up_factor(height * width) if place.up else 1.0)
        return x + factor * place.guide.applied(x, enlarged, r).to(x)


def _up_factor(positions: int) -> float:
    """The released factor of the guides on the way up, by the size of the latents."""
    if positions >= 96 * 96:
        return 0.7
    return 0.5 if positions >= 72 * 72 else 0.3
