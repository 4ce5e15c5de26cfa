"""LoRAs on networks: attach and detach, merge.

Attaching writes changed weights in place of the old ones, which are kept: a step then costs what it costs without a
LoRA, and detaching puts back the very tensors that were there.
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
from .lora import TABLE, Change, Lora
from .tokens import LearnedTokenizer, token_table

END_ID = 49407
"""CLIP's end token. Configs from before transformers 4.31 say 2, and then the highest id counts as the end."""


@dataclass(frozen=True)
class Applied:
    """A LoRA and how strongly it acts on each network: 0 not at all, 1 as trained; any finite number."""

    lora: Lora
    stage_c: float = 1.0
    text_encoder: float = 1.0

    def strength(self, kind: str) -> float:
        strength = {"stage_c": self.stage_c, "text_encoder": self.text_encoder}[kind]
        if not math.isfinite(strength):
            raise ValueError(f"a LoRA's strength is a finite number, not {strength}")
        return strength


@dataclass
class Attachment:
    """LoRAs that act on networks until `detach`; as a context manager, until the block ends.

    tokenizer: knows the learned tokens; where there are none, the one that was given.
    changed: kind -> how many parameters are changed.
    tokens: the learned tokens that prompts can use, as prompts write them.
    """

    tokenizer: Any = None
    changed: dict[str, int] = field(default_factory=dict)
    tokens: tuple[str, ...] = ()
    _kept: list[tuple[nn.Parameter, Tensor]] = field(default_factory=list, repr=False)
    _attributes: list[tuple[nn.Module, str, Any]] = field(default_factory=list, repr=False)
    _nets: list[nn.Module] = field(default_factory=list, repr=False)

    def detach(self) -> None:
        """Put back what was there. A second time does nothing."""
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
    text_encoder: nn.Module | None = None,
    tokenizer: Any = None,
) -> Attachment:
    """Let LoRAs, any number at once, act on the networks that are given; what they have for others is left alone.

    Changes add up, each computed from the weights as they are now, so their order does not matter. At strength 0 a LoRA
    changes nothing, and its tokens are not there. Tokens are whole at any other strength of the text encoder.

    Args:
        text_encoder: a `transformers.CLIPTextModelWithProjection`.
        tokenizer: with `encode(text).ids` and `get_vocab()`; needed with the text encoder for LoRAs that have tokens.
            Use the attachment's in its place.

    Raises:
        IncompatibleCheckpoint: a LoRA for another size, or tokens that clash. Nothing is changed then.
        ValueError: a network that has LoRAs attached already, no tokenizer for tokens, or a strength that is no number.
    """
    nets = {kind: net for kind, net in (("stage_c", stage_c), ("text_encoder", text_encoder)) if net is not None}
    if any(net in _ATTACHED for net in nets.values()):
        raise ValueError("the network has LoRAs attached: detach them, or attach all in one call")
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
    """Add LoRAs to a network's weights for good. Tokens are not merged: a checkpoint has no place for them.

    Returns:
        How many parameters were changed.

    Raises:
        IncompatibleCheckpoint: a LoRA for another size, or none that changes this kind of network.
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
    """Raises IncompatibleCheckpoint where a LoRA's changes do not fit a network, with the reason.

    Args:
        kind: of the network.
        shapes: our names of its parameters -> shape.
        config: of the network; None where it is not one of ours.
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
    """Learned tokens as further rows of the table; `base` is the table without LoRAs."""
    loras = [each.lora for each in applied if each.strength("text_encoder")]
    if not any(lora.tokens for lora in loras):
        return
    if attachment.tokenizer is None:
        raise ValueError("a LoRA with learned tokens needs the tokenizer")
    table = net.get_parameter(TABLE)
    learned = token_table(loras, base, attachment.tokenizer, len(table))
    attachment.replace_data(table, torch.cat([table.data, learned.vectors.to(table.dtype)]))
    attachment.replace_attribute(net.get_submodule(TABLE.removesuffix(".weight")), "num_embeddings", len(table))
    if getattr(net.get_submodule("text_model"), "eos_token_id", None) == 2:
        attachment.replace_attribute(net.get_submodule("text_model"), "eos_token_id", END_ID)
    attachment.tokenizer, attachment.tokens = LearnedTokenizer(attachment.tokenizer, learned.ids), tuple(learned.ids)
    # `conditioning.TextEncoder` looks for it here.
    attachment.replace_attribute(net, "learned_tokenizer", attachment.tokenizer)
