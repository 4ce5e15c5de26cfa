"""CLIP's tokenizer, built from the vocabulary in this folder: no hub, no network, no cache.

It has the rules of transformers' CLIPTokenizer, independent of the installed version of transformers.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MERGES = Path(__file__).with_name("clip_merges.txt.gz")
START = "<|startoftext|>"
END = "<|endoftext|>"
START_ID = 49406
END_ID = 49407

# Contractions, runs of letters, single digits, runs of anything else: CLIP's own split.
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def byte_characters() -> list[str]:
    """The 256 characters that represent the bytes, in the order of their ids (Radford et al., GPT-2).

    Printable bytes represent themselves; the others get characters above 255, so that no token contains a space.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = len(set(range(256)) - set(printable))
    return [chr(code) for code in printable] + [chr(256 + i) for i in range(others)]


def read_merges() -> list[tuple[str, str]]:
    """The 48,894 byte pair merges, most frequent first."""
    lines = gzip.decompress(MERGES.read_bytes()).decode("utf-8").splitlines()
    pairs = (line.split(" ") for line in lines)
    return [(left, right) for left, right in pairs]


def tokenizer() -> Tokenizer:
    """A fresh tokenizer of 49,408 tokens; `encode(text)` adds no start or end token and never truncates."""
    from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    merges = read_merges()
    characters = byte_characters()
    tokens = [*characters, *(c + "</w>" for c in characters), *(a + b for a, b in merges), START, END]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    result = Tokenizer(BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>", unk_token=END))
    result.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    result.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    result.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (START, END)])
    return result
