"""Low-rank changes of linear layers and convolutions while they are trained.

A change acts from a hook on its layer, which stays as it is: nothing of the network is copied, its weights take no
gradient, and its names do not change. LoRA is Hu et al. 2021, eq. 3; DoRA is Liu et al. 2024, eq. 5, with the length
of each row held fixed in the backward pass (section 4.3).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters import Lora, LowRank, Rows, Token, TokenTable
from ..adapters.changes import lengths
from ..adapters.lora import TABLE
from ..adapters.names import FORMATS, name_of
from ..errors import InvalidConfig
from .lora_kinds import Kind, WeightChange
from .task import derive_seed

_BLOCKS = {
    "attention": ("*.attention.attn.*",),
    "key_value": ("*.attention.attn.to_k", "*.attention.attn.to_v"),
    "all": ("*",),
}
PRESETS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "stage_c": _BLOCKS,
    "stage_b": _BLOCKS,
    "text_encoder": {
        "attention": ("*.self_attn.*",),
        "key_value": ("*.self_attn.k_proj", "*.self_attn.v_proj"),
        "all": ("*",),
    },
}
"""kind -> preset -> the patterns that it stands for. `attention` is what the released trainer trains, `key_value` what
Custom Diffusion does (Kumari et al. 2023)."""


def choose_modules(net: nn.Module, kind: str, patterns: Sequence[str]) -> dict[str, nn.Module]:
    """Linear layers and convolutions by their paths, those that a pattern (with * and ?) or a preset fits.

    Raises:
        InvalidConfig: a pattern that fits none.
    """
    layers = {
        name: module
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and name_of(kind, name, FORMATS["cascade"]) is not None
    }
    chosen: set[str] = set()
    for pattern in patterns:
        found = {name for name in layers for each in PRESETS[kind].get(pattern, (pattern,)) if fnmatchcase(name, each)}
        if not found:
            presets, example = ", ".join(PRESETS[kind]), next(iter(layers), "")
            raise InvalidConfig(
                f"lora: no layer of the {kind} fits {pattern!r}; write {presets}, or a pattern such as *.to_q over "
                f"names such as {example}"
            )
        chosen |= found
    return {name: layers[name] for name in layers if name in chosen}


class Change(nn.Module):
    """The trained change of one layer; the same layout as `adapters.LowRank`."""

    def __init__(self, layer: Any, rank: int, alpha: float, dropout: float, dora: bool, generator: Any) -> None:
        super().__init__()
        weight: Tensor = layer.weight
        self.scale, self.alpha, self.dropout = alpha / rank, alpha, dropout
        down = torch.empty(rank, *weight.shape[1:])
        bound = 1 / math.sqrt(down[0].numel())
        self.down = nn.Parameter(down.uniform_(-bound, bound, generator=generator).to(weight.device))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank, *[1] * (weight.dim() - 2), device=weight.device))
        self.magnitude = nn.Parameter(lengths(weight.float())) if dora else None

    def forward(self, layer: Any, x: Tensor, output: Tensor) -> Tensor:
        """The layer's output [..] for its input x, with the change."""
        added = self._added(layer, F.dropout(x, self.dropout, self.training))
        if self.magnitude is None:
            return output + added
        with torch.no_grad():
            now = lengths(layer.weight.float() + self._plain().delta(layer.weight))
        bias = 0.0 if layer.bias is None else _along_channels(layer, layer.bias)
        result = (output - bias + added) * _along_channels(layer, self.magnitude.flatten() / now.flatten()) + bias
        # Lengths are float32, so in a training in halves the product is too. What follows the layer expects the layer's
        # own dtype: on a CPU a norm with bfloat16 weights refuses float32, elsewhere it would only take more memory.
        return result.to(output.dtype)

    def _added(self, layer: Any, x: Tensor) -> Tensor:
        if isinstance(layer, nn.Linear):
            return F.linear(F.linear(x, self.down), self.up) * self.scale
        options = (layer.stride, layer.padding, layer.dilation)
        if layer.groups == 1:
            return F.conv2d(F.conv2d(x, self.down, None, *options), self.up) * self.scale
        # Of a depthwise filter the product itself is small.
        return F.conv2d(x, self._plain().delta(layer.weight), None, *options, layer.groups)

    def _plain(self) -> LowRank:
        """The change without its lengths, with the factors that are trained."""
        return LowRank(self.down, self.up, self.alpha)

    def take(self, change: Any) -> bool:
        """Go on from another change; False where it is of another kind or size."""
        dora = getattr(change, "dora", None)
        if not isinstance(change, LowRank) or (dora is None) != (self.magnitude is None):
            return False
        shaped = change.down.shape == self.down.shape and change.up.shape == self.up.shape
        if not shaped or (self.magnitude is not None and dora is not None and dora.shape != self.magnitude.shape):
            return False
        with torch.no_grad():
            self.down.copy_(change.down)
            self.up.copy_(change.up * (change.scale / self.scale))
            if self.magnitude is not None and dora is not None:
                self.magnitude.copy_(dora)
        return True

    def to_change(self) -> LowRank:
        dora = None if self.magnitude is None else self.magnitude.detach().clone()
        return LowRank(self.down.detach().clone(), self.up.detach().clone(), self.alpha, dora)


def _along_channels(layer: Any, values: Tensor) -> Tensor:
    """Values [out] in a form that multiplies the layer's output."""
    return values if isinstance(layer, nn.Linear) else values[:, None, None]


class LearnedTokens(nn.Module):
    """New rows of a text encoder's token table; `ids` are the rows of each token, by how prompts write it."""

    def __init__(self, rows: Sequence[tuple[str, Tensor]], first: int, speed: float) -> None:
        super().__init__()
        self.first, self.speed = first, speed
        table = TokenTable.build(dict(rows), first)
        self.ids = table.ids
        self.register_buffer("start", table.vectors)
        self.moved = nn.Parameter(torch.zeros_like(self.get_buffer("start")))

    def vectors(self) -> Tensor:
        """[n, width]. Adam moves every parameter by about the learning rate; `speed` makes tokens move faster."""
        return self.get_buffer("start") + self.moved * self.speed

    def to_tokens(self) -> tuple[Token, ...]:
        return TokenTable(self.first, self.ids, self.vectors().detach()).tokens()


class LearnedRows(nn.Module):
    """Rows of a text encoder's token table that are trained: those of existing words."""

    def __init__(self, indices: Tensor, table: Tensor, speed: float) -> None:
        super().__init__()
        self.speed = speed
        self.register_buffer("indices", indices)
        places = torch.full((len(table),), -1)
        places[indices] = torch.arange(len(indices))
        self.register_buffer("places", places, persistent=False)
        self.moved = nn.Parameter(torch.zeros(len(indices), table.shape[1]))

    def forward(self, ids: Tensor, output: Tensor) -> Tensor:
        """The table's output [..., width] for ids [...], with what was learned."""
        places = self.get_buffer("places")[ids.clamp_max(len(self.get_buffer("places")) - 1)]
        rows = torch.where(places[..., None] >= 0, self.moved[places.clamp_min(0)] * self.speed, 0.0)
        return output + rows.to(output.dtype)

    def take(self, change: Any) -> bool:
        """Go on from rows of a file, all of which must be trained."""
        if not isinstance(change, Rows) or change.values.shape[1] != self.moved.shape[1]:
            return False
        places = self.get_buffer("places")[change.indices.clamp_max(len(self.get_buffer("places")) - 1)]
        if bool((places < 0).any()):
            return False
        with torch.no_grad():
            self.moved[places] = change.values.to(self.moved) / self.speed
        return True

    def to_change(self) -> Rows:
        return Rows(self.get_buffer("indices").clone(), self.moved.detach() * self.speed)


class Adapter(nn.Module):
    """All that is trained for a LoRA: changes of layers, learned tokens, existing words."""

    def __init__(self) -> None:
        super().__init__()
        self.changes = nn.ModuleDict()
        self.tokens: LearnedTokens | None = None
        self.words: LearnedRows | None = None
        self.places: dict[str, tuple[str, str]] = {}
        """Key of `changes` -> kind of network and path of the layer."""

    def to_lora(self, training: Mapping[str, Any]) -> Lora:
        changes: dict[str, dict[str, Any]] = {}
        for kind, name, change in self.trained():
            changes.setdefault(kind, {})[name] = change.to_change()
        tokens = () if self.tokens is None else self.tokens.to_tokens()
        return Lora(changes, tokens, dict(training))

    def trained(self) -> Iterator[tuple[str, str, Any]]:
        """Kind of network, parameter, and what changes it."""
        for key, (kind, name) in self.places.items():
            yield kind, f"{name}.weight", self.changes[key]
        if self.words is not None:
            yield "text_encoder", TABLE, self.words

    def take(self, lora: Lora) -> None:
        """Go on from the changes of a LoRA, all of which must be among those that are trained.

        Raises InvalidConfig.
        """
        left = {(kind, name): change for kind, changes in lora.changes.items() for name, change in changes.items()}
        for kind, name, own in self.trained():
            change = left.pop((kind, name), None)
            if change is not None and not own.take(change):
                ranks = ", ".join(map(str, lora.ranks))
                raise InvalidConfig(
                    f"lora: start: {name} is changed there by {change.title} (ranks of the file: {ranks or 'none'}): "
                    "give kind, rank, use_dora and factor as they were, or leave start out"
                )
        if left:
            kind, name = next(iter(left))
            raise InvalidConfig(
                f"lora: start: the file also changes {name} of the {kind} ({len(left)} such): add them to "
                f"{'words' if name == TABLE else 'target_modules or text_encoder_modules'}"
            )


def _all(net: nn.Module) -> Iterator[Tensor]:
    yield from net.parameters()
    yield from net.buffers()


class Wiring:
    """Lets an adapter act on networks, whenever it is on."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter, self.on = adapter, True
        self._ids: Tensor | None = None

    @contextmanager
    def off(self) -> Iterator[None]:
        """The networks as they were, for as long as this lasts."""
        self.on = False
        try:
            yield
        finally:
            self.on = True

    @contextmanager
    def showing(self, adapter: nn.Module) -> Iterator[None]:
        """The networks with the weights of another adapter of this structure, such as the average, to sample.

        Works on networks that are split over processes, whose own weights cannot be changed.
        """
        pairs = [] if adapter is self.adapter else list(zip(_all(self.adapter), _all(adapter), strict=True))
        training = self.adapter.training
        for own, other in pairs:
            own.data, other.data = other.data, own.data
        self.adapter.eval()
        try:
            yield
        finally:
            self.adapter.train(training)
            for own, other in pairs:
                own.data, other.data = other.data, own.data

    def add_changes(
        self,
        net: nn.Module,
        kind: str,
        patterns: Sequence[str],
        *,
        rank: int,
        alpha: float,
        seed: int,
        form: Kind = "lora",
        factor: int | None = None,
        **options: Any,
    ) -> None:
        """A change for each layer that a pattern fits; `options` as of `Change`, without dora as of `WeightChange`.

        Raises InvalidConfig.
        """
        for name, layer in choose_modules(net, kind, patterns).items():
            smallest = min(layer.weight.shape[0], layer.weight[0].numel())  # type: ignore[index,operator,union-attr]
            own = min(rank, smallest)
            generator = torch.Generator().manual_seed(derive_seed(seed, "lora", kind, name))
            if form == "lora":
                change: nn.Module = Change(layer, own, alpha * own / rank, generator=generator, **options)
            else:
                change = WeightChange(layer, form, own, alpha * own / rank, options["dropout"], factor, generator)
            key = f"{kind}-{name}".replace(".", "-")
            self.adapter.changes[key] = change
            self.adapter.places[key] = (kind, name)
            layer.register_forward_hook(self._hook(change))

    def _hook(self, change: nn.Module) -> Any:
        def act(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return change(layer, inputs[0], output) if self.on else output

        return act

    def add_tokens(self, table: nn.Embedding, tokens: LearnedTokens) -> None:
        """New rows behind those of a token table."""
        self.adapter.tokens = tokens

        def replace_ids(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            self._ids = inputs[0] if self.on else None
            return (inputs[0].clamp_max(tokens.first - 1), *inputs[1:]) if self.on else inputs

        def insert_vectors(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if self._ids is None:
                return output
            new = self._ids >= tokens.first
            rows = tokens.vectors()[self._ids[new] - tokens.first]
            return output.index_put((new,), rows.to(output.dtype))

        table.register_forward_pre_hook(replace_ids)
        table.register_forward_hook(insert_vectors)

    def add_words(self, table: nn.Embedding, words: LearnedRows) -> None:
        """Trained rows of a token table. Called before `add_tokens`, whose hooks give other ids to the table."""
        self.adapter.words = words

        def act(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return words(inputs[0], output) if self.on else output

        table.register_forward_hook(act)
