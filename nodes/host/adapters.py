"""LoRAs on MODEL and CLIP, as the host's own patches, so that all its features for patches work with them."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.model_management
import comfy.utils
import torch
from comfy.weight_adapter.base import WeightAdapterBase
from comfy.weight_adapter.lora import LoRAAdapter
from torch import Tensor, nn

from ...cascade.adapters import Full, Lora, LowRank, Rows, absolute, extract, read_lora, save_lora
from ...cascade.adapters.attaching import check_fits
from ...cascade.adapters.changes import Change
from ...cascade.adapters.lora import TABLE
from ...cascade.adapters.tokens import parse_token_names
from ...cascade.adapters.writing import as_low_rank
from ...cascade.checkpoints import save_model
from ...cascade.errors import CascadeError, IncompatibleCheckpoint
from ...cascade.models import StageC, StageCConfig
from . import checks
from .learned_tokens import HostTokenizer, base_tokenizer

logger = logging.getLogger("cascade")

MODEL, CLIP = "diffusion_model.", "clip_g.transformer."
"""Prefixes of our names in the host's."""


class ChangeAdapter(WeightAdapterBase):
    """A change by the library's formula: DoRA's, which the host's differs from for rows, and those of LyCORIS."""

    name = "cascade_change"

    def __init__(self, change: Change) -> None:
        self.change, self.loaded_keys, self.weights = change, set(), ()

    def calculate_weight(self, weight: Tensor, key: str, strength: float, *_: Any, **__: Any) -> Tensor:
        return weight + (strength * self.change.delta(weight)).to(weight.dtype)


def read(path: Path, token_names: str, model: Any = None) -> Lora:
    """The LoRA of a file.

    Args:
        token_names: lines `[token] = initializer`, for files whose tokens have no names.
        model: the MODEL that it is for; the released format needs it for sizes that were not released.

    Raises:
        CascadeError: as `read_lora`, and for lines that do not fit the file.
    """
    return read_lora(path, config=_config_of(model), tokens=parse_token_names(token_names.splitlines()))


def read_tokens(path: Path, text: str, token_names: str) -> Lora:
    """The learned tokens of a file alone.

    Args:
        text: how prompts write the file's one token; "" keeps the file's own, or the file's name in brackets.
        token_names: as of `read`.

    Raises:
        CascadeError: it has no tokens, or several where one is to be renamed.
    """
    lora = read(path, token_names)
    tokens = lora.tokens
    if not tokens:
        raise CascadeError(f"{path}: it has no learned tokens.")
    if len(tokens) > 1 and (text or not tokens[0].text):
        own = ", ".join(token.text or "?" for token in tokens)
        raise CascadeError(f"{path}: it has {len(tokens)} tokens ({own}): name them in token_names.")
    if len(tokens) == 1:
        tokens = (replace(tokens[0], text=text or tokens[0].text or f"[{path.stem.replace(' ', '_')}]"),)
    return Lora({}, tokens, lora.training, lora.format, lora.path)


def apply(model: Any, clip: Any, lora: Lora, strength_model: float, strength_clip: float) -> tuple[Any, Any, str]:
    """MODEL and CLIP with a LoRA, and lines of text about what matched. Either may be None: not connected.

    The MODEL is Stage C, or Stage B for a LoRA that changes it.

    Raises:
        CascadeError: it does not fit, or it would change nothing that is connected.
    """
    for strength in (strength_model, strength_clip):
        if not math.isfinite(strength):
            raise CascadeError(f"A LoRA's strength must be a finite number, not {strength}.")
    kind, title = _stage(model, lora)
    stage, text = lora.changes.get(kind, {}), lora.changes.get("text_encoder", {})
    _check_use(lora, model, clip, strength_model, strength_clip)
    lines = [str(lora.path or "the LoRA")]
    lines.append(_line(title, stage, model, strength_model))
    if model is not None and stage and strength_model:
        checks.model(model, title)
        model = _patched(model, kind, lora, strength_model)
    lines.append(_line("text encoder", text, clip, strength_clip))
    if clip is not None and strength_clip:
        if text:
            _text_table(clip)
            clip = _patched(clip, "text_encoder", lora, strength_clip)
        if lora.tokens:
            clip = with_tokens(clip, lora)
    tokens = ", ".join(token.text for token in lora.tokens)
    if tokens:
        known = "for prompts" if clip is not None and strength_clip else "not added: connect clip"
        lines.append(f"tokens: {tokens} ({known})")
    return model, clip, "\n".join(lines)


def few_steps(model: Any, stage: str, path: Path) -> Any:
    """A MODEL of this stage with a LoRA for a few steps. Raises CascadeError where there is none that fits it."""
    checks.model(model, stage)
    lora, kind = read(path, ""), {"Stage C": "stage_c", "Stage B": "stage_b"}[stage]
    if not lora.changes.get(kind):
        raise CascadeError(f"{path}: this LoRA does not change {stage}.")
    try:
        return _patched(model, kind, lora, 1.0)
    except IncompatibleCheckpoint as error:
        raise CascadeError(
            f"turbo needs a LoRA that was trained to need few steps with this {stage}: choose one in lora_"
            f"{kind}. The preset fast needs none. ({error})"
        ) from error


def _stage(model: Any, lora: Lora) -> tuple[str, str]:
    """The stage that a LoRA is to change, as the library and as messages name it."""
    other = lora.changes.get("stage_b") and not lora.changes.get("stage_c")
    if other or (lora.changes.get("stage_b") and model is not None and checks.is_stage_b(model)):
        return "stage_b", "Stage B"
    return "stage_c", "Stage C"


def _line(title: str, changes: Mapping[str, Change], target: Any, strength: float) -> str:
    if not changes:
        return f"{title}: no changes"
    if target is None:
        return f"{title}: 0 of {len(changes)} tensors, not connected"
    return f"{title}: {len(changes) if strength else 0} of {len(changes)} tensors, strength {strength:g}"


def _check_use(lora: Lora, model: Any, clip: Any, strength_model: float, strength_clip: float) -> None:
    """Raises CascadeError if a LoRA changes nothing that is connected."""
    changed = {
        "model": bool(lora.changes.get("stage_c") or lora.changes.get("stage_b")),
        "clip": bool(lora.changes.get("text_encoder") or lora.tokens),
    }
    connected = {"model": model is not None, "clip": clip is not None}
    if not any(changed.values()):
        raise CascadeError(f"{lora.path}: it changes nothing and has no tokens.")
    acts = any(changed[name] and connected[name] for name in changed)
    if not acts and (strength_model or strength_clip):
        missing = " and ".join(name for name in changed if changed[name])
        raise CascadeError(f"{lora.path}: it would have no effect: connect {missing}.")


def _patched(target: Any, kind: str, lora: Lora, strength: float) -> Any:
    """A clone of a MODEL or CLIP whose weights the host changes when it loads them. Raises IncompatibleCheckpoint."""
    prefix, inner = (CLIP, target.patcher.model) if kind == "text_encoder" else (MODEL, target.model)
    shapes = {name.removeprefix(prefix): value.shape for name, value in inner.state_dict().items()}
    check_fits(lora, kind, shapes, _config_of(target) if kind == "stage_c" else None)
    changes = lora.changes[kind]
    clone = target.clone()
    added = clone.add_patches({prefix + name: _as_patch(name, change) for name, change in changes.items()}, strength)
    if len(added) != len(changes):
        raise CascadeError(f"{lora.path}: ComfyUI accepted only {len(added)} of its {len(changes)} changes.")
    return clone


def _as_patch(name: str, change: Change) -> Any:
    """A change in the form of the host's patches."""
    if isinstance(change, Rows):
        change = as_low_rank(change)
    if isinstance(change, Full):
        return ("diff", (change.value,))
    if isinstance(change, LowRank) and change.dora is None:
        return LoRAAdapter(set(), (change.up, change.down, change.alpha, None, None, None))
    return ChangeAdapter(change)


def _text_table(clip: Any) -> Tensor:
    """The token table without any LoRA. Raises CascadeError for a CLIP of another model."""
    key = CLIP + TABLE
    patcher = clip.patcher
    backup = patcher.backup.get(key)
    table = patcher.model.state_dict().get(key) if backup is None else backup.weight
    if table is None or not hasattr(clip.tokenizer, "clip_g"):
        raise CascadeError("This CLIP is not Stable Cascade's: load it with Load Text Encoder (Stable Cascade).")
    return table


def with_tokens(clip: Any, lora: Lora) -> Any:
    """A clone of a CLIP whose prompts can use the LoRA's tokens too.

    Raises:
        CascadeError: tokens that clash, have no name, are ordinary text, or are made for another text encoder.
    """
    table = _text_table(clip)
    clone = clip.clone()
    clone.tokenizer = HostTokenizer.on(clip.tokenizer, lora, table)
    return clone


def with_absolute_tokens(lora: Lora, clip: Any) -> Lora:
    """The LoRA with absolute vectors for its tokens. Raises CascadeError if that requires a CLIP and there is none."""
    if not any(token.initializer is not None for token in lora.tokens):
        return lora
    if clip is None:
        raise CascadeError(f"{lora.path}: its tokens are changes of their initializers: connect clip for this format.")
    return absolute(lora, _text_table(clip), base_tokenizer())


def write(lora: Lora, path: Path, format: str, model: Any, clip: Any) -> None:
    """Save in a format. Raises CascadeError for what the format cannot hold, and OSError."""
    lora = lora if format in ("cascade", "released") else with_absolute_tokens(lora, clip)
    save_lora(lora, path, format=format, config=_config_of(model))


def _config_of(model: Any) -> StageCConfig | None:
    """The config of one of our Stage Cs; None for the host's own, another model, or None."""
    config = None if model is None else getattr(model.model.diffusion_model, "config", None)
    return config if isinstance(config, StageCConfig) else None


def merged(model: Any) -> nn.Module:
    """A Stage C on the CPU with all patches of the MODEL merged into its weights.

    Raises:
        CascadeError: not a Stage C, or one that ComfyUI's own loader made.
    """
    net = checks.model(model, "Stage C").model.diffusion_model
    if not isinstance(net, StageC):
        raise CascadeError("This Stage C was loaded by ComfyUI's own loader: use Load Stage C (Stable Cascade).")
    state = {}
    for name, (base, *patches) in model.get_key_patches(MODEL).items():
        weight, convert = base
        weight = convert(weight, inplace=False)
        if patches:
            copy = weight.detach().to("cpu", torch.float32, copy=True)
            weight = comfy.lora.calculate_weight(patches, copy, name).to(weight.dtype)
        state[name.removeprefix(MODEL)] = weight.detach().cpu()
    with torch.device("meta"):
        plain = StageC(net.config)
    plain.load_state_dict(state, strict=True, assign=True)
    return plain.eval().requires_grad_(False)


def save_merged(model: Any, path: Path) -> None:
    """Write a MODEL with its patches as a Stage C file. Raises CascadeError if it has no patches."""
    net = merged(model)
    if not any(name.startswith(MODEL) for name in model.patches):
        raise CascadeError("There is no LoRA on this model: nothing to merge.")
    save_model(net, path)


def difference(base: Any, tuned: Any, rank: int) -> Lora:
    """The difference `tuned - base` of two MODELs as a LoRA. Raises CascadeError."""
    bar = comfy.utils.ProgressBar(1)

    def on_weight(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    with torch.no_grad():
        return extract(merged(base), merged(tuned), rank, on_weight=on_weight)
