"""LoRA, DreamBooth, Custom Diffusion and learned tokens: small changes of a trained Stage C and its text encoder."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import Field, StrictBool
from torch import Tensor, nn

from ..adapters import Applied, LearnedTokenizer, Lora, attach, check_token, save_lora, to_tensors
from ..adapters.attaching import END_ID
from ..adapters.lora import TABLE, Token
from ..adapters.tokens import initializer_ids
from ..conditioning import TextEncoder, tokenizer
from ..conditioning.text import TextEmbedding
from ..errors import InvalidConfig, RunConflict
from .config import Amount, Count, Number, PathFromRoot, Pixels, Settings, Several, Share, TrainingConfig, Whole
from .data import Cache, ImageSettings, OnChunk, Order, cached, fingerprint, open_images, to_halves, to_images
from .folders import describe_problems
from .loop import Modules, derive_seed, pick_device
from .lora_layers import Adapter, Wiring, Words
from .networks import encode_latents, frozen, sheet, with_training_attention
from .objective import DiffusionSettings, DiffusionTask, build_diffusion
from .text import text_conditions, tokenize_captions

log = logging.getLogger("cascade")

FormatName = Literal["cascade", "released", "kohya", "onetrainer", "onetrainer_diffusers", "omi", "peft", "embedding"]
AT_ONCE = 32
"""Images or captions that go through an encoder together."""
PROMPTS = 4
"""Captions that samples are made of where no prompts are given."""


class TokenSettings(Settings):
    """A new word for captions and prompts.

    Its vectors start as the mean of the tokens of `start`: a text, or a pattern of the released trainer over the
    vocabulary (`^dog</w>`). Without one they start at random.
    """

    word: str
    start: str | None = None
    vectors: Annotated[Whole, Field(ge=1, le=32)] = 1


class LoraSettings(Settings):
    """What is changed, and what it is taught.

    `modules` of Stage C and `text_modules` of the text encoder are presets (attention, key_value, all) or patterns over
    names of layers (`up_blocks.*.to_q`); without both, only tokens are learned. A change is scaled by alpha / rank;
    alpha is the rank where it is not given. `token_lr` is the learning rate of tokens, else that of the rest.

    With `prior` each batch holds as many images of it, which count `prior_weight`: images of the class, so that it
    stays what it was (Ruiz et al. 2023, DreamBooth, section 3.3). `prior_target` is what it learns of them: the
    images themselves, or only to predict of them what the network did before (Li and Hoiem 2016, "Learning without
    forgetting", section 3), which holds it more closely.

    The encoder sees images at `effnet_size`, three quarters of their size where it is not given, as the released
    Stage C does. `name` is the file's, to which further `formats` are added.
    """

    images: ImageSettings
    cache: PathFromRoot
    stage_c: PathFromRoot
    text_encoder: PathFromRoot
    effnet: PathFromRoot
    effnet_size: Pixels | None = None
    modules: Several[str] | None = ("attention",)
    text_modules: Several[str] | None = None
    rank: Count = 16
    alpha: Annotated[Number, Field(ge=1e-6)] | None = None
    dropout: Annotated[Number, Field(ge=0, le=0.95)] = 0.0
    dora: StrictBool = False
    tokens: Several[TokenSettings] | None = None
    token_lr: Amount | None = None
    prior: ImageSettings | None = None
    prior_weight: Amount = 1.0
    prior_target: Literal["images", "network"] = "images"
    drop_caption: Share = 0.05
    diffusion: DiffusionSettings = DiffusionSettings()
    previewer: PathFromRoot | None = None
    prompts: Several[str] | None = None
    sample_steps: Count = 20
    name: str = "lora"
    formats: Several[FormatName] = ("cascade",)


class LoraBatch(NamedTuple):
    """latents [B, 16, h, w]; texts [B], the rows of their captions; importance [B]."""

    latents: Tensor
    texts: Tensor
    importance: Tensor


class Captions:
    """Numbers of captions in the place of images, so that embeddings are kept as latents are."""

    size = 0

    def __init__(self, captions: Sequence[str]) -> None:
        self.captions = list(captions)
        self.name = f"captions-{hashlib.sha256(chr(0).join(captions).encode()).hexdigest()[:16]}"

    def __len__(self) -> int:
        return len(self.captions)

    def read(self, start: int, count: int) -> tuple[np.ndarray, list[str]]:
        texts = self.captions[start : start + count]
        return np.arange(start, start + len(texts)), texts


class LoraTask(DiffusionTask):
    """Trains an `Adapter` on cached latents; on cached embeddings too where the text encoder stays as it is.

    problems: lines about images that were left out or had no caption.
    seen: names of the sources' contents; a run goes on with the same images only.
    """

    def __init__(self, config: TrainingConfig, on_chunk: OnChunk | None = None) -> None:
        self.config, self.settings = config, config.settings
        settings: LoraSettings = config.settings
        self.device = pick_device(config.device)
        self.net = with_training_attention(self._network(settings.stage_c, "stage_c"), self.device)
        self.adapter, self.base_tokenizer = Adapter(), tokenizer()
        self.wiring = Wiring(self.adapter)
        self._text_encoder: Any = self._network(settings.text_encoder, "text_encoder")
        self._check_widths()
        self.counts: dict[str, int] = {}
        self._wire()
        self.modules: dict[str, nn.Module] = {"adapter": self.adapter.to(self.device)}
        self._check_formats()
        self.previewer = None if settings.previewer is None else frozen(settings.previewer, self.device, "previewer")
        self.problems: list[str] = []
        self.seen: list[str] = []
        self.data = self._latents(settings.images, on_chunk)
        self.prior = None if settings.prior is None else self._latents(settings.prior, on_chunk)
        self.counts = {"images": len(self.data.captions)}
        if self.prior is not None:
            self.counts["class_images"] = len(self.prior.captions)
        self.order = Order(len(self.data.captions), derive_seed(config.seed, "order"))
        self.prior_order = self.prior and Order(len(self.prior.captions), derive_seed(config.seed, "prior"))
        self._look_for_words()
        self._read_texts()
        self.diffusion = build_diffusion(settings.diffusion)

    def _network(self, path: Path, part: str) -> Any:
        """A base network, half as large where the training calculates in halves anyway."""
        dtype = torch.bfloat16 if self.config.precision == "bfloat16" else torch.float32
        return frozen(path, self.device, part, dtype)

    def _check_widths(self) -> None:
        text, net = self._text_encoder.config, self.net.config
        if (text.hidden_size, text.projection_dim) != (net.clip_text, net.clip_text_pooled):
            raise InvalidConfig(
                f"lora: this Stage C reads text embeddings of width {net.clip_text}, the text encoder gives "
                f"{text.hidden_size}: take the one that it was trained with"
            )

    def _wire(self) -> None:
        settings, config = self.settings, self.config
        options: dict[str, Any] = {"dropout": settings.dropout, "dora": settings.dora}
        alpha = settings.rank if settings.alpha is None else settings.alpha
        for net, kind, patterns in (
            (self.net, "stage_c", settings.modules),
            (self._text_encoder, "text_encoder", settings.text_modules),
        ):
            if patterns:
                self.wiring.add_changes(
                    net, kind, patterns, rank=settings.rank, alpha=alpha, seed=config.seed, **options
                )
        if settings.tokens:
            self._add_words(settings.tokens)
        if not self.adapter.places and self.adapter.words is None:
            raise InvalidConfig("lora: nothing to train: name modules, text_modules or tokens")

    def _add_words(self, tokens: Sequence[TokenSettings]) -> None:
        table: Tensor = self._text_encoder.get_parameter(TABLE)
        words = [token.word.lower() for token in tokens]
        if len(set(words)) < len(words):
            raise InvalidConfig(f"lora: the token {max(words, key=words.count)} is named twice")
        rows = []
        for token in tokens:
            check_token(token.word, self.base_tokenizer)
            rows.append((token.word, self._start(token, table.detach().float())))
        speed = 1.0 if self.settings.token_lr is None else self.settings.token_lr / max(self.config.lr, 1e-12)
        inner = self._text_encoder.text_model
        self.wiring.add_words(inner.embeddings.token_embedding, Words(rows, len(table), speed))
        if getattr(inner, "eos_token_id", None) == 2:  # configs of old, for which the highest id ends a prompt
            inner.eos_token_id = END_ID

    def _start(self, token: TokenSettings, table: Tensor) -> Tensor:
        """The vectors [n, width] that a token starts with; several are each a little different."""
        generator = torch.Generator().manual_seed(derive_seed(self.config.seed, "token", token.word))
        noise = torch.randn(token.vectors, table.shape[1], generator=generator).to(table) * table.std()
        mean = self._start_mean(token, table)
        if mean is None:
            return noise + table.mean(0)
        return mean + (noise * 0.1 if token.vectors > 1 else 0)

    def _start_mean(self, token: TokenSettings, table: Tensor) -> Tensor | None:
        if token.start is None:
            return None
        ids = initializer_ids(token.start, self.base_tokenizer)
        if not ids:
            raise InvalidConfig(f"lora: the token {token.word} starts from {token.start!r}, which names no token")
        return table[ids].mean(0, keepdim=True)

    def _check_formats(self) -> None:
        """Raises IncompatibleCheckpoint where a format cannot hold what is trained: before the training, not after."""
        for name in self.settings.formats:
            to_tensors(self._for_format(self.adapter, name), name, self.net.config)

    def _latents(self, images: ImageSettings, on_chunk: OnChunk | None) -> Cache:
        settings, precise = self.settings, self.config.precision == "float32"
        size = settings.effnet_size or max(32, images.size * 3 // 4 // 32 * 32)
        if size % 32:
            raise InvalidConfig(f"lora: effnet_size is a multiple of 32, not {size}")
        encoder: Any = None

        @torch.no_grad()
        @torch.autocast(self.device.type, torch.bfloat16, enabled=not precise)
        def compute(pixels: np.ndarray) -> dict[str, np.ndarray]:
            nonlocal encoder
            encoder = encoder or frozen(settings.effnet, self.device, "effnet")
            parts = []
            for part in np.array_split(pixels, -(-len(pixels) // AT_ONCE)):
                parts.append(encode_latents(encoder, to_images(torch.from_numpy(part).to(self.device)), size))
            return {"latents": np.concatenate(parts)}

        source = open_images(images)
        self.problems += describe_problems(source)
        self.seen.append(source.name)
        key = f"{self.config.precision}-{fingerprint(settings.effnet)}-{size}"
        return cached(settings.cache, "latents", source, compute, key=key, on_chunk=on_chunk)

    def _look_for_words(self) -> None:
        """A word that no caption has learns nothing: a problem to tell."""
        texts = " ".join(self.data.captions).lower()
        known = "" if self.prior is None else " ".join(self.prior.captions).lower()
        for token in self.settings.tokens or ():
            if token.word.lower() in known and self.settings.prior_target == "network":
                raise InvalidConfig(
                    f"lora: captions of prior have {token.word}, of which the network as it was knows nothing: "
                    "rewrite them, or set prior_target to images"
                )
            if token.word.lower() not in texts:
                self.problems.append(f"no caption has the word {token.word}: it learns nothing")
                log.warning("%s", self.problems[-1])

    def _read_texts(self) -> None:
        """Captions and prompts as tokens, or where the text encoder is not trained as embeddings: it can then go."""
        captions = [*self.data.captions, *([] if self.prior is None else self.prior.captions)]
        prompts = self.settings.prompts or tuple(dict.fromkeys(self.data.captions))[:PROMPTS]
        words = self.adapter.words
        learned: Any = self.base_tokenizer if words is None else LearnedTokenizer(self.base_tokenizer, words.words)
        encoder = TextEncoder(self._text_encoder, learned)
        self.ids, self.mask, rows = tokenize_captions(encoder, [*captions, *prompts, ""])
        self.rows, self.prompts = rows[: len(captions)], rows[len(captions) : -1]
        self.empty = rows[-1:]
        self.embeddings: Cache | None = None
        if words is not None or any(kind == "text_encoder" for kind, _ in self.adapter.places.values()):
            return
        key = f"{self.config.precision}-{fingerprint(self.settings.text_encoder)}"
        unique = list(dict.fromkeys([*captions, *prompts, ""]))
        self.embeddings = cached(self.settings.cache, "texts", Captions(unique), self._embedded, key=key)
        self._text_encoder = None

    @torch.no_grad()
    def _embedded(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        parts = [self._embed(torch.from_numpy(part)) for part in np.array_split(rows, -(-len(rows) // AT_ONCE))]
        joined = TextEmbedding.join(parts)
        return {name: to_halves(getattr(joined, name)) for name in ("hidden", "pooled")}

    def _embed(self, texts: Tensor) -> TextEmbedding:
        """The embeddings of some rows of captions."""
        if self.embeddings is None:
            return TextEncoder(self._text_encoder).embed(self.ids[texts], self.mask[texts])
        hidden, pooled = (self.embeddings.take(name, texts.numpy(), self.device) for name in ("hidden", "pooled"))
        like = next(self.net.parameters()).dtype
        return TextEmbedding(hidden.to(like), pooled.to(like))

    def batch(self, index: int) -> LoraBatch:
        count = self.config.batch_size
        rows = self.order.rows(index, count)
        latents, texts = [self.data.take("latents", rows, self.device).float()], [self.rows[torch.from_numpy(rows)]]
        importance = torch.ones(count, device=self.device)
        if self.prior is not None and self.prior_order is not None:
            rows = self.prior_order.rows(index, count)
            latents.append(self.prior.take("latents", rows, self.device).float())
            texts.append(self.rows[torch.from_numpy(rows) + len(self.data.captions)])
            importance = torch.cat([importance, importance * self.settings.prior_weight])
        chosen = torch.cat(texts)
        random = np.random.default_rng((self.config.seed, index)).random(len(chosen))
        dropped = torch.from_numpy(random < self.settings.drop_caption)
        return LoraBatch(torch.cat(latents), torch.where(dropped, self.empty, chosen), importance)

    def loss(self, batch: LoraBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        conditions = self._conditions(batch.texts)
        retarget = None
        if self.prior is not None and self.settings.prior_target == "network":
            texts = batch.texts[self.config.batch_size :]
            retarget = partial(self._as_before, texts)
        return self.diffusion_loss(
            lambda x, r: self.net.denoise(x, r, conditions), batch.latents, generator, batch.importance, retarget
        )

    @torch.no_grad()
    def _as_before(self, texts: Tensor, x: Tensor, r: Tensor, target: Tensor) -> Tensor:
        """The target, for the last images, which have these texts, what the network says without the adapter."""
        first = len(x) - len(texts)
        with self.wiring.off():
            before = self.net.denoise(x[first:], r[first:], self._conditions(texts))
        return torch.cat([target[:first], before.to(target)])

    def _conditions(self, texts: Tensor) -> Any:
        return text_conditions(self.net, self._embed(texts))

    def state(self) -> dict[str, Any]:
        return {**super().state(), "images": self.seen}

    def load_state(self, state: dict[str, Any]) -> None:
        if state["images"] != self.seen:
            raise RunConflict(
                f"{self.config.output}: the images or their captions are not those of the run there. "
                "Restore them, or choose another output folder."
            )
        super().load_state({name: value for name, value in state.items() if name != "images"})

    def sample(self, modules: Modules, generator: torch.Generator) -> Image.Image | None:
        """The prompts at the released settings, with the LoRA attached as it is where it is used."""
        if self.previewer is None:
            return None
        lora = self._lora(modules["adapter"])
        with (
            self.wiring.off(),
            attach(
                [Applied(lora)],
                stage_c=self.net,
                text_encoder=self._text_encoder,
                tokenizer=self.base_tokenizer,
            ),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"),
        ):
            cond, uncond = (
                {"conditions": self._conditions(texts)}
                for texts in (self.prompts, self.empty.expand(len(self.prompts)))
            )
            latents = self.sample_stage_c(self.net.denoise, len(self.prompts), cond=cond, uncond=uncond)
        return sheet([self.previewer(latents.float())])

    def _lora(self, adapter: Any) -> Lora:
        config, settings = self.config, self.settings
        told: Mapping[str, Any] = {
            **{
                name: getattr(config, name)
                for name in ("steps", "batch_size", "accumulation", "lr", "seed", "precision")
            },
            **{name: getattr(settings, name) for name in ("dropout", "dora", "token_lr", "effnet_size")},
            "modules": list(settings.modules or ()),
            "text_modules": list(settings.text_modules or ()),
            "size": settings.images.size,
            **self.counts,
        }
        return adapter.to_lora({name: value for name, value in told.items() if value is not None})

    def _for_format(self, adapter: Any, name: str) -> Lora:
        """The LoRA as a format wants it: the released one keeps tokens as changes of what they start from."""
        lora = self._lora(adapter)
        starts = {token.word: token for token in self.settings.tokens or () if token.start is not None}
        if name != "released" or not starts:
            return lora
        table = self._text_encoder.get_parameter(TABLE).detach().float()

        def relative(token: Token) -> Token:
            told = starts.get(token.text)
            if told is None:
                return token
            mean: Any = self._start_mean(told, table)
            return Token(token.text, token.vectors - mean.to(token.vectors), told.start)

        return replace(lora, tokens=tuple(map(relative, lora.tokens)))

    def export(self, modules: Modules, folder: Path, dtype: torch.dtype) -> None:
        for place, name in enumerate(self.settings.formats):
            file = f"{self.settings.name}{f'_{name}' if place else ''}.safetensors"
            lora = self._for_format(modules["adapter"], name)
            save_lora(lora, folder / file, format=name, config=self.net.config, dtype=dtype)
