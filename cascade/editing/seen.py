"""How much of each token of the conditions every position of the image sees."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models import AroundAttention, AttentionCall
from .attention import AttentionController, NetworkCall


class Seen(AttentionController):
    """Controls what is seen: a share of 1 is the block's own attention, 0 leaves a token out.

    A share is a factor on a token's part in the softmax, so that soft edges blend.
    """

    def __init__(self) -> None:
        self._prepared: dict[Hashable, _Tokens] = {}

    def state(self, call: NetworkCall, block: int, with_prompt: bool) -> Hashable:
        """What the shares depend on beside size and tokens; None where all is seen."""
        raise NotImplementedError

    def shares(self, state: Hashable, call: NetworkCall, size: tuple[int, int], with_prompt: bool) -> Tensor:
        """The shares [1 or h w, tokens of the conditions], float32, on the CPU."""
        raise NotImplementedError

    def around(self, call: NetworkCall) -> AroundAttention | None:
        return _Around(self, call)

    def tokens(self, call: NetworkCall, block: AttentionCall, with_prompt: bool) -> _Tokens | None:
        """What rows with or without the prompt see; None: all."""
        state = self.state(call, block.block, with_prompt)
        if state is None:
            return None
        key = (state, with_prompt, call.tokens, block.size, block.k.shape[1], block.q.device, block.q.dtype)
        if key not in self._prepared:
            shares = self.shares(state, call, block.size, with_prompt)
            self._prepared[key] = _Tokens.of(shares, block)
        return self._prepared[key]


class Together(Seen):
    """Several of them in one run."""

    def __init__(self, controls: Sequence[Seen]) -> None:
        super().__init__()
        self.controls = controls

    def state(self, call: NetworkCall, block: int, with_prompt: bool) -> Hashable:
        states = tuple(control.state(call, block, with_prompt) for control in self.controls)
        return None if set(states) == {None} else states

    def shares(self, state: Hashable, call: NetworkCall, size: tuple[int, int], with_prompt: bool) -> Tensor:
        assert isinstance(state, tuple)
        found = torch.ones(1, call.tokens.count)
        for control, its in zip(self.controls, state, strict=True):
            found = found if its is None else found * control.shares(its, call, size, with_prompt)
        return found


class _Tokens(NamedTuple):
    """What rows see: `columns` of the keys (None: all), with `bias` [1 or h w, m] on the logits (None: nothing)."""

    columns: Tensor | None
    bias: Tensor | None

    @classmethod
    def of(cls, shares: Tensor, block: AttentionCall) -> _Tokens:
        own = block.k.shape[1] - shares.shape[1]
        shares = F.pad(shares, (own, 0), value=1.0)
        kept = shares.amax(0) > 0
        columns = None if bool(kept.all()) else kept.nonzero()[:, 0].to(block.q.device)
        shares = shares[:, kept]
        bias = None if bool((shares == 1).all()) else shares.log().to(block.q).contiguous()
        return cls(columns, bias)

    def attended(self, block: AttentionCall) -> Tensor:
        """What these rows of a block see [B, h w, c]."""
        q, k, v = block.q, block.k, block.v
        if self.columns is not None:
            k, v = k.index_select(1, self.columns), v.index_select(1, self.columns)
        if self.bias is None:
            return block.attend(q, k, v, block.heads)
        q, k, v = (x.unflatten(-1, (block.heads, -1)).transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias).transpose(1, 2).flatten(-2)


class _Around(NamedTuple):
    """What the blocks do in one call of the network."""

    control: Seen
    call: NetworkCall

    def __call__(self, block: AttentionCall) -> Tensor:
        seen = [self.control.tokens(self.call, block, with_prompt) for with_prompt in self.call.with_prompt]
        if all(each is None for each in seen):
            return block.plain()
        parts = zip(seen, *(x.chunk(len(seen)) for x in (block.q, block.k, block.v)), strict=True)
        rows = [(each, block._replace(q=q, k=k, v=v)) for each, q, k, v in parts]
        return torch.cat([part.plain() if each is None else each.attended(part) for each, part in rows])
