"""Damaged LoRAs and learned tokens, in every format that is read."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cascade.adapters import (
    FORMATS,
    WRITABLE,
    Applied,
    LearnedTokenizer,
    Lora,
    LowRank,
    Token,
    attach,
    chart,
    extract,
    metadata_of,
    norms_by_block,
    read_lora,
    save_lora,
    summary,
    to_tensors,
)
from cascade.adapters.reading import METADATA
from cascade.adapters.tokens import token_table
from cascade.checkpoints import load_model
from cascade.conditioning import tokenizer
from tests.checkpoints.files import CONFIGS, network, released_state
from tests.fuzz.classes import Case, FuzzClass
from tests.fuzz.tensors import damaged_json, damaged_state, safetensors_bytes, torch_file


@cache
def stage_c() -> nn.Module:
    return load_model(released_state("stage_c"))


@cache
def original() -> Lora:
    """A LoRA of every matrix of a small Stage C, with two tokens."""
    tuned = load_model(released_state("stage_c"))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.copy_(parameter + 0.1 * torch.randn_like(parameter))
    lora = extract(stage_c(), tuned, 2, only=("attn.", "mapper.weight", "depthwise"))
    return replace(lora, tokens=(Token("[one]", torch.randn(2, 64)), Token("[two]", torch.randn(1, 64))))


@cache
def files() -> dict[str, dict[str, Tensor]]:
    """The tensors of a file in each format."""
    lora = original()
    low = {name: change for name, change in lora.changes["stage_c"].items() if isinstance(change, LowRank)}
    flat = {name: change for name, change in low.items() if change.down.dim() == 2}
    attention = {name: change for name, change in flat.items() if ".attn." in name}
    held: dict[str, Lora] = {name: replace(lora, changes={"stage_c": flat}) for name in FORMATS}
    held["released"] = Lora(
        {"stage_c": attention}, tuple(replace(token, vectors=token.vectors[:1]) for token in lora.tokens)
    )
    held["embedding"] = Lora({}, lora.tokens[:1])
    held["cascade"] = lora
    return {name: to_tensors(each, name, CONFIGS["stage_c"]) for name, each in held.items()}


@cache
def metadata() -> dict[str, Any]:
    return json.loads(metadata_of(replace(original(), training={"rank": 2, "task": "lora"}))[METADATA])


@cache
def vocabulary() -> tuple[Any, Tensor]:
    """The tokenizer, and a table of its tokens."""
    return tokenizer(), torch.zeros(49408, 64)


def prepare() -> None:
    files(), metadata(), vocabulary()


def make(dice: random.Random, folder: Path) -> Case:
    form = dice.choice(WRITABLE)
    state, note = damaged_state(files()[form], dice)
    described = {"cascade.kind": "lora", METADATA: json.dumps(metadata())} if dice.random() < 0.3 else {}
    if dice.random() < 0.1:
        path = folder / "file.pt"
        torch_file({"state_dict": state} if dice.random() < 0.5 else state, path, dice)
    elif form == "peft" and dice.random() < 0.5:
        path = folder / "adapter_model.safetensors"
        path.write_bytes(safetensors_bytes(state))
        settings = damaged_json({"lora_alpha": 4, "r": 2, "use_rslora": True, "alpha_pattern": {}}, dice)
        (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    else:
        path = folder / "file.safetensors"
        path.write_bytes(safetensors_bytes(state, described))
    return Case(path, f"{form}: {note}", dice.choice(WRITABLE))


def make_metadata(dice: random.Random, folder: Path) -> Case:
    data = metadata()
    for _ in range(dice.choice((1, 1, 3))):
        data = damaged_json(data, dice)
    text = json.dumps(data)
    if dice.random() < 0.1:
        text = dice.choice((text[:-5], "[" * 5000, text + text, '"\\ud800"'))
    path = folder / "file.safetensors"
    path.write_bytes(safetensors_bytes(files()[dice.choice(WRITABLE)], {"cascade.kind": "lora", METADATA: text}))
    return Case(path, text[:1000], dice.choice(WRITABLE))


def use(case: Case) -> None:
    """Read it, show it, put it on a network, write it in another format."""
    lora = read_lora(case.path, config=CONFIGS["stage_c"])
    "\n".join(summary(lora)).encode()
    chart(norms_by_block(lora))
    error: Exception | None = None
    try:
        with attach([Applied(lora, 0.5)], stage_c=stage_c()):
            pass
    except FuzzClass.errors as found:
        error = found
    save_lora(lora, case.path.parent / "out" / "file.safetensors", format=case.detail, config=CONFIGS["stage_c"])
    if error is not None:
        raise error


def make_embedding(dice: random.Random, folder: Path) -> Case:
    tensors = {"clip_g": torch.randn(2, network("text_encoder").config.hidden_size)}
    tensors = dice.choice((tensors, tensors | {"bundle_emb.[a].clip_g": torch.randn(1, 64)}))
    state, note = damaged_state(tensors, dice)
    name = dice.choice(("[a]", "\ud800", "a" * 300, "a\nb", "(a:1.2)", "", "\x1b[31m", "٣", "cat"))
    if dice.random() < 0.5 and "\ud800" not in name:
        state[f"bundle_emb.{name}.clip_g"] = torch.ones(1, 64)
    path = folder / dice.choice(("file.safetensors", "file.pt"))
    if path.suffix == ".pt":
        torch_file(state, path, dice)
    else:
        path.write_bytes(safetensors_bytes(state))
    return Case(path, note, name)


def use_embedding(case: Case) -> None:
    lora = read_lora(case.path)
    nameless = sum(not token.text for token in lora.tokens)
    lora = lora.named([(case.detail, None)] * nameless)
    "\n".join(summary(lora)).encode()
    save_lora(lora, case.path.parent / "out" / "file.safetensors")
    read_lora(case.path.parent / "out" / "file.safetensors")


INITIALIZERS = ("cat", "^{}", ".+.+{}</w>", "{}|x", "a{}" * 30, "[\ud800-{}", "(a+)+{}$", "\ud800", "{} " * 600)


def make_tokens(dice: random.Random, folder: Path) -> Case:
    """Many tokens or few, relative to texts or patterns, in the two forms of files that hold several."""
    count, width = dice.choice((1, 5, 40, 60, 1000, 1001, 5000)), dice.choice((64, 64, 64, 1))
    texts = [
        dice.choice(("[{}]", "a{}", "[x{}]" * 15, "[A{}]", "[ſς{}]", "[İ{}]")).replace("{}", str(number))
        for number in range(count)
    ]
    tensors = {f"bundle_emb.{text}.clip_g": torch.ones(1, width) for text in texts}
    if count == 5000 or dice.random() < 0.3:
        rows = dice.choice((count, 10 * count))
        indices = torch.arange(49408, 49408 + rows)
        tensors = {"embeddings.embeddings": torch.ones(rows, 1), "embeddings.indices": indices.flip(0)}
    start = dice.choice((None, *INITIALIZERS))
    tokens = [
        {"text": text, "initializer": start and start.replace("{}", str(number))} for number, text in enumerate(texts)
    ]
    path = folder / "file.safetensors"
    described = json.dumps({"format": "cascade", "tokens": tokens})
    path.write_bytes(safetensors_bytes(tensors, {"cascade.kind": "lora", METADATA: described}))
    return Case(path, f"{count} tokens, {start!a}")


def use_tokens(case: Case) -> None:
    """Read them, and look for them in a prompt as a text encoder does."""
    lora = read_lora(case.path)
    base, table = vocabulary()
    found = token_table([lora], table, base, len(table))
    words = [word for text in list(found.ids)[:20] for word in (text, text.upper(), text.lower(), text.swapcase())]
    LearnedTokenizer(base, found.ids).encode(" ".join(words))


CLASSES = (
    FuzzClass("lora tokens", make_tokens, use_tokens, prepare=prepare, seconds=12),
    FuzzClass("loras", make, use, prepare=prepare),
    FuzzClass("lora metadata", make_metadata, use, prepare=prepare),
    FuzzClass("embeddings", make_embedding, use_embedding, prepare=prepare),
)
