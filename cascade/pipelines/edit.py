"""Editing a generated image by its prompt, and maps of its words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..conditioning import TextEmbedding, TextEncoder
from ..editing import EditStrength, PromptTokens, PromptToPrompt, WordMaps, align
from ..errors import InvalidSettings
from .generate import RELEASED_SETTINGS, Generated, OnProgress, Run, Settings
from .networks import Parts
from .plan import Start

RELEASED_STRENGTH = EditStrength()


@dataclass(frozen=True)
class Edited:
    """Images of a prompt, and of the prompt that it was changed to.

    mask: where they may differ [B, 1, h, w] in [0, 1], in the size of Stage C's latents; None: everywhere.
    """

    source: Generated
    target: Generated
    mask: Tensor | None


@torch.no_grad()
def edit(
    parts: Parts,
    prompt: str,
    to: str,
    *,
    seeds: Sequence[int],
    negative: str = "",
    strength: EditStrength = RELEASED_STRENGTH,
    weights: Mapping[str, float] | None = None,
    settings: Settings = RELEASED_SETTINGS,
    on_progress: OnProgress | None = None,
) -> Edited:
    """Images of `prompt`, and the same images changed to show `to` (Hertz et al. 2022), one for each seed.

    to: the prompt with words exchanged, added or left out.
    weights: a word of `to` -> a factor of the attention to it; 1 changes nothing, 0 takes it away.

    Raises InvalidSettings for prompts without a common word, for equal ones without weights, and for a word that is not
    in the prompt, and what `generate` raises.
    """
    prompts, count = (prompt, to, negative), len(seeds)
    control, run = both(parts, prompts, seeds, strength, weights, settings=settings, on_progress=on_progress)
    latents = parts.use("stage_c", run.stage_c)
    first = replace(run, texts=run.texts[:count], seeds=seeds)
    source = first.from_stage_c(parts, latents[:count])
    mask = control.changed()
    second = replace(run, texts=run.texts[count:], seeds=seeds)
    if mask is not None:
        # Stage B adds fine detail: where nothing changes it is kept too.
        larger = F.interpolate(mask.to(source.stage_b), source.stage_b.shape[-2:], mode="bilinear")
        second = replace(second, start_b=Start(latents=source.stage_b, mask=larger))
    return Edited(source, second.from_stage_c(parts, latents[count:]), mask)


def both(
    parts: Parts,
    prompts: tuple[str, str, str],
    seeds: Sequence[int],
    strength: EditStrength,
    weights: Mapping[str, float] | None,
    **more: Any,
) -> tuple[PromptToPrompt, Run]:
    """The control of an edit, and the run that it controls: images of a prompt, and then as many of the changed one.

    prompts: the first, what it is changed to, and the negative one. more: of the run.
    """
    prompt, to, negative = prompts
    if prompt == to and not weights:
        raise InvalidSettings("both prompts are the same: change what should change in the second, or weight a word")
    texts, tokens = parts.use("text_encoder", lambda net: _encoded(net, [prompt, to, negative], [*(weights or {})]))
    length = texts[0].hidden.shape[1]
    alignment = align(tokens[prompt], tokens[to], length)
    factors = torch.ones(length)
    for word, factor in (weights or {}).items():
        factors[tokens[to].find(tokens[word])] = factor
    control, count = PromptToPrompt(alignment, strength, factors if weights else None), len(seeds)
    run = Run(
        texts=[texts[0]] * count + [texts[1]] * count,
        negative=texts[2],
        seeds=[*seeds, *seeds],
        attention=control,
        keeping=control.keeping,
        **more,
    )
    return control, run


@torch.no_grad()
def word_maps(
    parts: Parts,
    prompt: str,
    words: Sequence[str],
    *,
    seeds: Sequence[int],
    negative: str = "",
    settings: Settings = RELEASED_SETTINGS,
    on_progress: OnProgress | None = None,
) -> tuple[Generated, dict[str, Tensor]]:
    """Images of a prompt, and for each word where they show it: maps [B, 1, H, W] in [0, 1] (Tang et al. 2022).

    The images are those of `generate`, bit for bit. Raises InvalidSettings for a word that is not in the prompt, and
    what `generate` raises.
    """
    texts, tokens = parts.use("text_encoder", lambda net: _encoded(net, [prompt, negative], words))
    places = {word: tokens[prompt].find(tokens[word]) for word in words}
    maps = WordMaps()
    run = Run(
        texts=[texts[0]] * len(seeds),
        negative=texts[1],
        seeds=seeds,
        settings=settings,
        attention=maps,
        on_progress=on_progress,
    )
    made = run(parts)
    return made, {word: maps.shown(at, made.images.shape[-2:]).cpu() for word, at in places.items()}


def _encoded(
    net: nn.Module, prompts: Sequence[str], words: Sequence[str]
) -> tuple[list[TextEmbedding], dict[str, PromptTokens]]:
    """The embeddings of prompts, and the tokens of prompts and words.

    All but the last, which is the negative prompt, are of one length: their tokens are compared.
    """
    encoder: Any = TextEncoder(net)
    *compared, negative = prompts
    together = encoder.encode(compared)
    texts = [TextEmbedding(together.hidden[i : i + 1], together.pooled[i : i + 1]) for i in range(len(compared))]
    return [*texts, encoder.encode([negative])], {each: PromptTokens.of(encoder, each) for each in (*prompts, *words)}
