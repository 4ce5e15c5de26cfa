"""LoRAs on networks: attach, detach and merge.

Attaching replaces the weights by changed ones and keeps the old tensors: a sampling step costs the same as without a
LoRA, and detaching restores the old tensors exactly.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints import KINDS, config_of, kind_of
from ..checkpoints.network_kinds import variant
from ..errors import IncompatibleCheckpoint
from ..models import Config, StageCConfig
from .changes import Change
from .lora import TABLE, Lora
from .tokens import LearnedTokenizer, token_table

END_ID = 49407
"""Id of CLIP's end token. Configs from before transformers 4.31 have 2; CLIP then takes the highest id as the end."""


@dataclass(frozen=True)
class Applied:
    """A LoRA and its strength on each network: any finite number; 0 has no effect, 1 is as trained."""

    lora: Lora
    stage_c: float = 1.0
    text_encoder: float = 1.0
    stage_b: float = 1.0

    def strength(self, kind: str) -> float:
        strengths = {"stage_c": self.stage_c, "stage_b": self.stage_b, "text_encoder": self.text_encoder}
        strength = strengths[kind]
        if not math.isfinite(strength):
            raise ValueError(f"a LoRA's strength must be a finite number, not {strength}")
        return strength


@dataclass
class Attachment:
    """LoRAs on networks, until `detach`; as a context manager, until the block ends.

    tokenizer: the given one, extended by the learned tokens.
    changed: kind of network -> how many of its parameters are changed.
    tokens: the learned tokens that prompts can use, as prompts write them.
    """

    tokenizer: Any = None
    changed: dict[str, int] = field(default_factory=dict)
    tokens: tuple[str, ...] = ()
    _kept: list[tuple[nn.Parameter, Tensor]] = field(default_factory=list, repr=False)
    _attributes: list[tuple[nn.Module, str, Any]] = field(default_factory=list, repr=False)
    _nets: list[nn.Module] = field(default_factory=list, repr=False)

    def detach(self) -> None:
        """Restore the networks. Calling it again does nothing."""
        for parameter, tensor in reversed(self._kept):
            parameter.data = tensor
        for module, name, value in reversed(self._attributes):
            setattr(module, name, value)
        for net in self._nets:
            _ATTACHED.discard(net)
        self._kept, self._attributes, self._nets = [], [], []

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()

    def replace_data(self, parameter: nn.Parameter, tensor: Tensor) -> None:
        self._kept.append((parameter, parameter.data))
        parameter.data = tensor

    def replace_attribute(self, module: nn.Module, name: str, value: Any) -> None:
        self._attributes.append((module, name, getattr(module, name, None)))
        setattr(module, name, value)


_ATTACHED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def attach(
    applied: Sequence[Applied],
    *,
    stage_c: nn.Module | None = None,
    stage_b: nn.Module | None = None,
    text_encoder: nn.Module | None = None,
    tokenizer: Any = None,
) -> Attachment:
    """Apply LoRAs to the given networks. Changes for a network that is not given are ignored.

    Each change is computed from the unchanged weights and all are added, so the order of the LoRAs does not matter. A
    LoRA of strength 0 changes nothing and adds no tokens. At any other strength of the text encoder its tokens act
    fully.

    Args:
        text_encoder: a `transformers.CLIPTextModelWithProjection`.
        tokenizer: with `encode(text).ids` and `get_vocab()`; required with the text encoder for LoRAs that have tokens.
            Afterwards use the attachment's tokenizer instead.

    Raises:
        IncompatibleCheckpoint: a LoRA for another size, or tokens that clash. Nothing is changed then.
        ValueError: LoRAs are attached to the network already, a tokenizer is missing, or a strength is not finite.
    """
    given = {"stage_c": stage_c, "stage_b": stage_b, "text_encoder": text_encoder}
    nets = {kind: net for kind, net in given.items() if net is not None}
    if any(net in _ATTACHED for net in nets.values()):
        raise ValueError("LoRAs are attached to this network already: detach them, or attach all in one call")
    attachment = Attachment(tokenizer)
    try:
        base = None if text_encoder is None else text_encoder.get_parameter(TABLE).data
        for kind, net in nets.items():
            attachment.changed[kind] = _change_weights(attachment, applied, kind, net)
        if text_encoder is not None and base is not None:
            _add_tokens(attachment, applied, text_encoder, base)
    except BaseException:
        attachment.detach()
        raise
    attachment._nets = list(nets.values())
    _ATTACHED.update(nets.values())
    return attachment


def merge(applied: Sequence[Applied], net: nn.Module) -> int:
    """Add LoRAs to a network's weights permanently. Tokens are not merged: a checkpoint has no place for them.

    Returns:
        How many parameters were changed.

    Raises:
        IncompatibleCheckpoint: a LoRA for another size, or no LoRA has changes for this kind of network.
    """
    kind = kind_of(net)
    if not any(each.lora.changes.get(kind) for each in applied):
        raise IncompatibleCheckpoint(f"none of the LoRAs changes {KINDS[kind].title if kind in KINDS else kind}")
    return _change_weights(Attachment(), applied, kind, net)


def _change_weights(attachment: Attachment, applied: Sequence[Applied], kind: str, net: nn.Module) -> int:
    parameters = dict(net.named_parameters())
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    changes: dict[str, list[tuple[Change, float]]] = {}
    for each in applied:
        own, strength = each.lora.changes.get(kind, {}), each.strength(kind)
        check_fits(each.lora, kind, shapes, config_of(net))
        if strength:
            for name, change in own.items():
                changes.setdefault(name, []).append((change, strength))
    for name, found in changes.items():
        weight = parameters[name].data
        total = weight.float()
        for change, strength in found:
            total = total + change.delta(weight) * strength
        attachment.replace_data(parameters[name], total.to(weight.dtype))
    return len(changes)


def check_fits(lora: Lora, kind: str, shapes: Mapping[str, torch.Size], config: Config | None) -> None:
    """Raises IncompatibleCheckpoint, with the reason, if a LoRA's changes do not fit a network.

    Args:
        kind: of the network.
        shapes: our name of each of its parameters -> shape.
        config: of the network; None if it is not one of ours.
    """
    changes = lora.changes.get(kind, {})
    wrong = [name for name, change in changes.items() if name not in shapes or not change.fits(shapes[name])]
    if not wrong:
        return
    if isinstance(config, StageCConfig) and lora.width not in (None, config.levels[0].width):
        width = config.levels[0].width
        reason = f"made for a Stage C {lora.width} wide ({lora.base}), and this one is {width} wide"
        raise IncompatibleCheckpoint(reason, lora.path)
    this = KINDS[kind].title if config is None else variant(kind, config)
    name = next((name for name in wrong if name not in shapes), wrong[0])
    reason = f"{name} has another shape there ({list(shapes[name])})" if name in shapes else f"{name} is not there"
    text = f"does not fit {this}: {len(wrong)} of its {len(changes)} changes, {reason}"
    raise IncompatibleCheckpoint(text, lora.path)


def _add_tokens(attachment: Attachment, applied: Sequence[Applied], net: nn.Module, base: Tensor) -> None:
    """Append learned tokens to the token table; `base` is the table without LoRAs."""
    loras = [each.lora for each in applied if each.strength("text_encoder")]
    if not any(lora.tokens for lora in loras):
        return
    if attachment.tokenizer is None:
        raise ValueError("a LoRA with learned tokens requires the tokenizer")
    table = net.get_parameter(TABLE)
    learned = token_table(loras, base, attachment.tokenizer, len(table))
    attachment.replace_data(table, torch.cat([table.data, learned.vectors.to(table.dtype)]))
    attachment.replace_attribute(net.get_submodule(TABLE.removesuffix(".weight")), "num_embeddings", len(table))
    if getattr(net.get_submodule("text_model"), "eos_token_id", None) == 2:
        attachment.replace_attribute(net.get_submodule("text_model"), "eos_token_id", END_ID)
    attachment.tokenizer, attachment.tokens = LearnedTokenizer(attachment.tokenizer, learned.ids), tuple(learned.ids)
    # `conditioning.TextEncoder` takes it from here.
    attachment.replace_attribute(net, "learned_tokenizer", attachment.tokenizer)
