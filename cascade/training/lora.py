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
from pydantic import AfterValidator, Field, StrictBool
from torch import Tensor, nn

from ..adapters import LearnedTokenizer, Lora, check_token, read_lora, save_lora, to_tensors
from ..adapters.attaching import END_ID
from ..adapters.lora import TABLE, Token
from ..adapters.tokens import initializer_ids, vectors_of
from ..checkpoints.detection import choose, detect_parts
from ..checkpoints.sources import open_tensors
from ..conditioning import TextEncoder, tokenizer
from ..conditioning.text import TextEmbedding
from ..errors import InvalidConfig, InvalidName
from ..files import check_name
from .class_images import generate_missing
from .config import (
    Amount,
    Count,
    NewPath,
    Number,
    PathFromRoot,
    Pixels,
    Settings,
    Several,
    Share,
    TrainingConfig,
    Whole,
)
from .data import (
    Cache,
    ImageSettings,
    OnChunk,
    Order,
    Streamed,
    cached,
    fingerprint,
    importance,
    order_of,
    prepared,
    scaled,
    to_halves,
    to_images,
)
from .listing import OnImage
from .lora_kinds import Kind
from .lora_layers import Adapter, LearnedRows, LearnedTokens, Wiring
from .networks import encode_latents, for_training, frozen, sheet
from .objective import DiffusionSettings, DiffusionTask, build_diffusion
from .task import Modules, derive_seed, pick_device
from .text import are_few, batch_texts, prompts_for_samples, text_conditions, tokenize_captions, tokenized

log = logging.getLogger("cascade")

FormatName = Literal[
    "comfyui", "cascade", "released", "kohya", "onetrainer", "onetrainer_diffusers", "omi", "peft", "embedding"
]
AT_ONCE = 32
"""Images or captions that go through an encoder together."""


def file_name(name: str) -> str:
    """Of a file in the output folder, never outside of it. Raises InvalidName."""
    check_name(Path(name))
    if not name or Path(name).name != name or "\\" in name:
        raise InvalidName(f"{name!r} is not the name of a file in the output folder")
    return name


class TokenSettings(Settings):
    """A token to learn: how captions and prompts write it, and how many vectors of the token table it has.

    The vectors start as the mean of the tokens of `initializer`: a text, or a pattern of the released trainer over the
    vocabulary (`^dog</w>`). Without one they start at random.
    """

    text: str
    initializer: str | None = None
    vectors: Annotated[Whole, Field(ge=1, le=32)] = 1


class LoraSettings(Settings):
    """Which layers are changed, and what they are trained on.

    `target_modules` of Stage C and `text_encoder_modules` are presets (attention, key_value, all) or patterns over
    names of layers (`up_blocks.*.to_q`); without both, only tokens are learned. A change is scaled by alpha / rank;
    alpha is the rank where it is not given. `token_learning_rate` is for tokens, else they have that of the rest.

    With `class_images` each batch holds as many images of the class, whose loss counts `class_loss_weight`: the class
    keeps its meaning (Ruiz et al. 2023, DreamBooth, section 3.3). `class_target` is what they are trained towards: the
    images, or what the network predicted for them before the training (Li and Hoiem 2016, "Learning without
    forgetting", section 3), which changes the class less. With `class_prompts` those that are missing in its folder are
    generated first, up to `class_count`, which needs `stage_b` and `stage_a`.

    The encoder gets images at `effnet_size`, three quarters of their size where it is not given, as for the released
    Stage C. `name` is the file's, to which further `formats` are added.

    `kind`: lora, or loha, lokr and oft as LyCORIS has them; `factor` is for lokr, see `WeightChange`. `start` is a LoRA
    to go on from, of the same layers, kind and rank. `words` are existing words, or patterns as of an initializer:
    their rows of the token table are trained.
    """

    images: ImageSettings
    cache: NewPath
    stage_c: PathFromRoot
    text_encoder: PathFromRoot
    effnet: PathFromRoot
    effnet_size: Pixels | None = None
    target_modules: Several[str] | None = ("attention",)
    text_encoder_modules: Several[str] | None = None
    rank: Annotated[Whole, Field(ge=1, le=8192)] = 16
    alpha: Annotated[Number, Field(ge=1e-6)] | None = None
    dropout: Annotated[Number, Field(ge=0, le=0.95)] = 0.0
    use_dora: StrictBool = False
    kind: Kind = "lora"
    factor: Count | None = None
    start: PathFromRoot | None = None
    words: Several[str] | None = None
    tokens: Several[TokenSettings] | None = None
    token_learning_rate: Amount | None = None
    class_images: ImageSettings | None = None
    class_prompts: Several[str] | None = None
    class_count: Count = 200
    stage_b: PathFromRoot | None = None
    stage_a: PathFromRoot | None = None
    class_loss_weight: Amount = 1.0
    class_target: Literal["images", "network"] = "images"
    drop_caption: Share = 0.05
    caption_chunks: Count = 1
    diffusion: DiffusionSettings = DiffusionSettings()
    previewer: PathFromRoot | None = None
    sample_prompts: Several[str] | None = None
    sample_steps: Count = 20
    name: Annotated[str, AfterValidator(file_name)] = "lora"
    formats: Several[FormatName] = ("comfyui",)


class Defaults(NamedTuple):
    """What suits a Stage C; `resolution` is the size of its images in pixels."""

    learning_rate: float
    token_learning_rate: float
    resolution: int


SMALL_WIDTH = 512
"""Up to this width a Stage C is one of tens of megabytes, as the tiny cascade's."""


def is_small(stage_c: Path) -> bool:
    """Whether a Stage C has at most `SMALL_WIDTH`, from its file's header. Raises CheckpointError."""
    config: Any = choose(detect_parts(open_tensors(stage_c)), "stage_c").inferred.config
    return max(level.width for level in config.levels) <= SMALL_WIDTH


def defaults_for(stage_c: Path) -> Defaults:
    """Learning rates and resolution by the size of a Stage C. Raises CheckpointError."""
    return Defaults(2e-3, 3e-3, 256) if is_small(stage_c) else Defaults(1e-4, 1e-3, 1024)


class LoraBatch(NamedTuple):
    """latents [B, 16, h, w]; texts: rows of captions [B], or tokens and mask [B, n, 2, 77]; importance [B] or
    [B, 1, h, w]."""

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

    on_image: called for each file and image that is looked at; an exception in it ends the work.
    problems: lines about images that were left out or had no caption.
    """

    def __init__(
        self, config: TrainingConfig, on_chunk: OnChunk | None = None, on_image: OnImage | None = None
    ) -> None:
        self.config, self.settings, self.on_image = config, config.settings, on_image
        settings: LoraSettings = config.settings
        self.device = pick_device(config.device)
        if settings.class_prompts is not None:
            generate_missing(settings, self.device, on_image)
        self.net = for_training(self._network(settings.stage_c, "stage_c"), self.device, config)
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
        self.data = self._latents(settings.images, on_chunk)
        self.class_data = None if settings.class_images is None else self._latents(settings.class_images, on_chunk)
        self.seen = [data.source for data in (self.data, self.class_data) if data is not None]
        self.counts = {"images": len(self.data)} if isinstance(self.data, Cache) else {}
        self.class_order: Order | None = None
        if self.class_data is not None:
            if (
                not isinstance(self.class_data, Cache)
                or settings.images.aspect_ratios
                or len(self.class_data.sizes) > 1
            ):
                raise InvalidConfig("lora: with class_images all images are squares, and class_images no stream")
            self.counts["class_images"] = len(self.class_data)
            # "prior" is a part of the seed, not a name: another text would give another order.
            self.class_order = Order(len(self.class_data), derive_seed(config.seed, "prior"))
        self.order = order_of(self.data, config)
        self._look_for_tokens()
        self._read_texts()
        self.diffusion = build_diffusion(settings.diffusion, self.net)

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
        if settings.use_dora and settings.kind != "lora":
            raise InvalidConfig(f"lora: use_dora is for the kind lora, not {settings.kind}")
        options: dict[str, Any] = {"dropout": settings.dropout, "dora": settings.use_dora}
        options |= {"form": settings.kind, "factor": settings.factor}
        alpha = settings.rank if settings.alpha is None else settings.alpha
        for net, kind, patterns in (
            (self.net, "stage_c", settings.target_modules),
            (self._text_encoder, "text_encoder", settings.text_encoder_modules),
        ):
            if patterns:
                self.wiring.add_changes(
                    net, kind, patterns, rank=settings.rank, alpha=alpha, seed=config.seed, **options
                )
        self.start = None if settings.start is None else read_lora(settings.start, config=self.net.config)
        if settings.words:
            self._add_words(settings.words)
        if settings.tokens:
            self._add_tokens(settings.tokens)
        if not (self.adapter.places or self.adapter.tokens or self.adapter.words):
            raise InvalidConfig("lora: nothing to train: name target_modules, text_encoder_modules, tokens or words")
        if self.start is not None:
            self.adapter.take(self.start)

    def _add_words(self, words: Sequence[str]) -> None:
        table: Tensor = self._text_encoder.get_parameter(TABLE)
        found = {word: initializer_ids(word, self.base_tokenizer) for word in words}
        if wrong := [word for word, ids in found.items() if not ids]:
            raise InvalidConfig(f"lora: words: {wrong[0]!r} names no token")
        indices = torch.tensor(sorted({id for ids in found.values() for id in ids}))
        embedding = self._text_encoder.text_model.embeddings.token_embedding
        self.wiring.add_words(embedding, LearnedRows(indices, table, self._token_speed()))

    def _token_speed(self) -> float:
        """How much faster tokens move than the rest."""
        rate = self.settings.token_learning_rate
        return 1.0 if rate is None else rate / max(self.config.learning_rate, 1e-12)

    def _add_tokens(self, tokens: Sequence[TokenSettings]) -> None:
        table: Tensor = self._text_encoder.get_parameter(TABLE)
        texts = [token.text.lower() for token in tokens]
        if len(set(texts)) < len(texts):
            raise InvalidConfig(f"lora: the token {max(texts, key=texts.count)} is named twice")
        rows = []
        for token in tokens:
            check_token(token.text, self.base_tokenizer)
            rows.append((token.text, self._initial_vectors(token, table.detach().float())))
        inner = self._text_encoder.text_model
        self.wiring.add_tokens(inner.embeddings.token_embedding, LearnedTokens(rows, len(table), self._token_speed()))
        if getattr(inner, "eos_token_id", None) == 2:  # configs of old, for which the highest id ends a prompt
            inner.eos_token_id = END_ID

    def _initial_vectors(self, token: TokenSettings, table: Tensor) -> Tensor:
        """The vectors [n, width] that a token starts with; several differ a little."""
        known = {} if self.start is None else {each.text.lower(): each for each in self.start.tokens}
        if token.text.lower() in known:
            vectors = vectors_of(known[token.text.lower()], table, self.base_tokenizer)
            if len(vectors) != token.vectors:
                raise InvalidConfig(f"lora: start: its token {token.text} has {len(vectors)} vectors: set vectors so")
            return vectors
        generator = torch.Generator().manual_seed(derive_seed(self.config.seed, "token", token.text))
        noise = torch.randn(token.vectors, table.shape[1], generator=generator).to(table) * table.std()
        mean = self._initializer_mean(token, table)
        if mean is None:
            return noise + table.mean(0)
        return mean + (noise * 0.1 if token.vectors > 1 else 0)

    def _initializer_mean(self, token: TokenSettings, table: Tensor) -> Tensor | None:
        if token.initializer is None:
            return None
        ids = initializer_ids(token.initializer, self.base_tokenizer)
        if not ids:
            raise InvalidConfig(f"lora: the initializer {token.initializer!r} of the token {token.text} names no token")
        return table[ids].mean(0, keepdim=True)

    def _check_formats(self) -> None:
        """Raises IncompatibleCheckpoint where a format cannot hold what is trained: before the training, not after."""
        for name in self.settings.formats:
            to_tensors(self._for_format(self.adapter, name), name, self.net.config)

    def _latents(self, images: ImageSettings, on_chunk: OnChunk | None) -> Cache | Streamed:
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
                if self.on_image is not None:
                    self.on_image()
                shown = to_images(torch.from_numpy(part).to(self.device))
                parts.append(encode_latents(encoder, shown, scaled(shown, images.size, size)))
            return {"latents": np.concatenate(parts)}

        key = f"{self.config.precision}-{fingerprint(settings.effnet)}-{size}"
        data = prepared(settings.cache, "latents", images, compute, key=key, on_chunk=on_chunk, on_image=self.on_image)
        self.problems += data.problems
        return data

    def _look_for_tokens(self) -> None:
        """A token that no caption has does not change: note it as a problem."""
        if not isinstance(self.data, Cache):
            return  # nobody has read them yet
        texts = " ".join(self.data.captions).lower()
        known = "" if self.class_data is None else " ".join(self.class_data.captions).lower()
        for token in self.settings.tokens or ():
            if token.text.lower() in known and self.settings.class_target == "network":
                raise InvalidConfig(
                    f"lora: captions of class_images have {token.text}, which the network before the training does not "
                    "know: rewrite them, or set class_target to images"
                )
            if token.text.lower() not in texts:
                self.problems.append(f"no caption has the token {token.text}: it is not trained")
                log.warning("%s", self.problems[-1])

    def _read_texts(self) -> None:
        """Captions and prompts as tokens, or where the text encoder is not trained as embeddings: it can then go."""
        self.few = all(are_few(data) for data in (self.data, self.class_data) if data is not None)
        captions = [*self.data.captions, *([] if self.class_data is None else self.class_data.captions)]
        captions = captions if self.few else []
        prompts = self.prompt_texts = prompts_for_samples(self.settings.sample_prompts, self.data.captions)
        tokens = self.adapter.tokens
        learned: Any = self.base_tokenizer if tokens is None else LearnedTokenizer(self.base_tokenizer, tokens.ids)
        encoder = TextEncoder(self._text_encoder, learned)
        chunks = self.settings.caption_chunks
        self.ids, self.mask, rows = tokenize_captions(encoder, [*captions, *prompts, ""], chunks)
        self.rows, self.prompts = rows[: len(captions)], rows[len(captions) : -1]
        self.empty = rows[-1:]
        self.embeddings: Cache | None = None
        trained = any(kind == "text_encoder" for kind, _, _ in self.adapter.trained())
        if not self.few or tokens is not None or trained:
            return
        key = f"{self.config.precision}-{fingerprint(self.settings.text_encoder)}{f'-{chunks}' if chunks > 1 else ''}"
        unique = list(dict.fromkeys([*captions, *prompts, ""]))
        self.embeddings = cached(self.settings.cache, "texts", Captions(unique), self._embedded, key=key)
        self._text_encoder = None

    @torch.no_grad()
    def _embedded(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        parts = [self._embed(torch.from_numpy(part)) for part in np.array_split(rows, -(-len(rows) // AT_ONCE))]
        joined = TextEmbedding.join(parts)
        return {name: to_halves(getattr(joined, name)) for name in ("hidden", "pooled")}

    def _embed(self, texts: Tensor) -> TextEmbedding:
        """The embeddings of texts: rows of captions [B], or tokens and mask [B, n, 2, 77]."""
        if texts.dim() == 4:
            return TextEncoder(self._text_encoder).embed(texts[:, :, 0], texts[:, :, 1])
        if self.embeddings is None:
            return TextEncoder(self._text_encoder).embed(self.ids[texts], self.mask[texts])
        hidden, pooled = (self.embeddings.take(name, texts.numpy(), self.device) for name in ("hidden", "pooled"))
        like = next(self.net.parameters()).dtype
        return TextEmbedding(hidden.to(like), pooled.to(like))

    def batch(self, index: int) -> LoraBatch:
        count = self.config.batch_size
        images = [(self.data, self.order.rows(index, count))]
        if self.class_data is not None and self.class_order is not None:
            images.append((self.class_data, self.class_order.rows(index, count)))
        parts = [data.take("latents", rows, self.device).float() for data, rows in images]
        latents = torch.cat(parts)
        random = np.random.default_rng((self.config.seed, index)).random(len(latents))
        texts = self._texts(images, index, random < self.settings.drop_caption)
        return LoraBatch(latents, texts, self._importance(images, parts))

    def _importance(self, images: Sequence[tuple[Any, np.ndarray]], latents: Sequence[Tensor]) -> Tensor:
        """How much the images, and behind them those of the class, count."""
        found = []
        for (data, rows), part, weight in zip(images, latents, (1.0, self.settings.class_loss_weight), strict=False):
            own = importance(data, rows, part)
            found.append((torch.ones(len(part), device=part.device) if own is None else own) * weight)
        if all(each.dim() == 1 for each in found):
            return torch.cat(found)
        maps = [each.reshape(len(each), 1, *(each.shape[2:] or (1, 1))) for each in found]
        return torch.cat([each.expand(-1, -1, *latents[0].shape[-2:]) for each in maps])

    def _texts(self, images: Sequence[tuple[Any, np.ndarray]], index: int, dropped: np.ndarray) -> Tensor:
        """Texts of images, as `_embed` takes them; none where one is dropped [B]."""
        if self.few:
            firsts = (0, len(self.data.captions))
            rows = np.concatenate([rows + first for (_, rows), first in zip(images, firsts, strict=False)])
            return torch.where(torch.from_numpy(dropped), self.empty, self.rows[torch.from_numpy(rows)])
        outs = np.split(dropped, np.cumsum([len(rows) for _, rows in images])[:-1])
        texts = [
            text
            for (data, rows), out in zip(images, outs, strict=True)
            for text in batch_texts(data, rows, (self.config.seed, index), out)
        ]
        tokens = self.adapter.tokens
        learned: Any = self.base_tokenizer if tokens is None else LearnedTokenizer(self.base_tokenizer, tokens.ids)
        pair = tokenized(TextEncoder(self._text_encoder, learned), texts, self.settings.caption_chunks)
        return torch.stack(pair, dim=2)

    def loss(self, batch: LoraBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        conditions = self._conditions(batch.texts)
        retarget = None
        if self.class_data is not None and self.settings.class_target == "network":
            texts = batch.texts[self.config.batch_size :]
            retarget = partial(self._predicted_before, texts)
        return self.diffusion_loss(
            lambda x, r: self.net.denoise(x, r, conditions), batch.latents, generator, batch.importance, retarget
        )

    @torch.no_grad()
    def _predicted_before(self, texts: Tensor, x: Tensor, r: Tensor, target: Tensor) -> Tensor:
        """The target; for the last images, which have these texts, what the network predicts without the adapter."""
        first = len(x) - len(texts)
        with self.wiring.off():
            before = self.net.denoise(x[first:], r[first:], self._conditions(texts))
        return torch.cat([target[:first], before.to(target)])

    def _conditions(self, texts: Tensor) -> Any:
        return text_conditions(self.net, self._embed(texts))

    def sample(self, modules: Modules, generator: torch.Generator) -> Image.Image | None:
        """The prompts at the released settings."""
        if self.previewer is None:
            return None
        with (
            self.wiring.showing(modules["adapter"]),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"),
        ):
            cond, uncond = (
                {"conditions": self._conditions(texts)}
                for texts in (self.prompts, self.empty.expand(len(self.prompts)))
            )
            latents = self.sample_stage_c(self.net.denoise, len(self.prompts), cond=cond, uncond=uncond)
        return sheet([self.previewer(latents.float())], labels=self.prompt_texts)

    def _lora(self, adapter: Any) -> Lora:
        config, settings = self.config, self.settings
        values: Mapping[str, Any] = {
            **{
                name: getattr(config, name)
                for name in ("steps", "batch_size", "accumulation", "learning_rate", "seed", "precision")
            },
            **{name: getattr(settings, name) for name in ("kind", "dropout", "use_dora")},
            **{name: getattr(settings, name) for name in ("token_learning_rate", "effnet_size")},
            "target_modules": list(settings.target_modules or ()),
            "text_encoder_modules": list(settings.text_encoder_modules or ()),
            "size": settings.images.size,
            **self.counts,
        }
        return adapter.to_lora({name: value for name, value in values.items() if value is not None})

    def _for_format(self, adapter: Any, name: str) -> Lora:
        """The LoRA as a format stores it: the released one stores tokens as differences from their initializers."""
        lora = self._lora(adapter)
        known = {token.text: token for token in self.settings.tokens or () if token.initializer is not None}
        if name != "released" or not known:
            return lora
        table = self._text_encoder.get_parameter(TABLE).detach().float()

        def relative(token: Token) -> Token:
            settings = known.get(token.text)
            if settings is None:
                return token
            mean: Any = self._initializer_mean(settings, table)
            return Token(token.text, token.vectors - mean.to(token.vectors), settings.initializer)

        return replace(lora, tokens=tuple(map(relative, lora.tokens)))

    def export(self, modules: Modules, folder: Path, dtype: torch.dtype) -> None:
        for place, name in enumerate(self.settings.formats):
            file = f"{self.settings.name}{f'_{name}' if place else ''}.safetensors"
            lora = self._for_format(modules["adapter"], name)
            save_lora(lora, folder / file, format=name, config=self.net.config, dtype=dtype)
