"""A few steps in place of many: progressive distillation of Stage C or Stage B, with guidance folded in.

The teacher is the network itself, without the LoRA that is trained. From its own noise it samples each prompt once with
guidance, by deterministic steps (DDIM), and the states on the way are kept on disk. The student learns to do several of
these steps in one: from a state it predicts the x0 that leads one DDIM step to the state where the teacher's steps led
(Salimans and Ho 2022, "Progressive distillation", algorithm 2), without the negative prompt and at cfg 1 (Meng et al.
2023, "On distillation of guided diffusion models", section 3). Both papers halve the steps again and again; a network
of this kind learns five steps at once as well, which is one training in place of several.

Why not another way: consistency distillation (LCM, Luo et al. 2023; TCD, Zheng et al. 2024) asks for the end of the
trajectory from every state, which is a harder task, and loses the seeds' images where its steps add noise; distribution
matching (DMD2, Yin et al. 2024) needs two more networks in memory. Stored trajectories cost the teacher's run once and
then a training step costs the same as that of any LoRA.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from ..adapters import Lora, save_lora, to_tensors
from ..checkpoints import save_model
from ..conditioning import ImageEncoder, StageBInputs, StageCInputs, TextEncoder
from ..conditioning.text import TextEmbedding
from ..diffusion import Guidance, SamplingSettings, SeededNoise, sample
from ..diffusion.samplers import DDIM
from ..diffusion.sampling import GuidedNetwork
from ..diffusion.targets import expand
from ..errors import InvalidConfig
from ..models import Process
from ..pipelines import STAGE_B_SETTINGS, STAGE_C_SETTINGS, latent_sizes
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
    cached,
    fingerprint,
    open_images,
    order_of,
    squares_only,
    to_halves,
    to_images,
)
from .lora import AT_ONCE, Captions, file_name
from .lora_layers import Adapter, Wiring
from .networks import encode_latents, for_training, frozen, sheet
from .objective import DiffusionSettings, DiffusionTask, build_diffusion
from .task import Modules, derive_seed, pick_device
from .text import tokenize_captions

RELEASED: Mapping[str, SamplingSettings] = {"stage_c": STAGE_C_SETTINGS, "stage_b": STAGE_B_SETTINGS}
FEW_STEPS = {"stage_c": 4, "stage_b": 2}
FORMATS = {"stage_c": "comfyui", "stage_b": "cascade"}
"""Of a LoRA: no other format has names for Stage B."""


class DistillationSettings(Settings):
    """What is distilled, and to how many steps.

    `stage` and `network`: Stage C or Stage B, the teacher's and the student's file. `images` give the captions; their
    embeddings by `image_encoder` are conditions of Stage C for `keep_image` of them (with the caption left out for
    `drop_caption_with_image` of these), and their latents by `effnet` are those of Stage B, with noise of the deviation
    `effnet_noise`. `drop_caption` of the captions are left out.

    `from_image` of the trajectories of Stage C are sampled a second time, from another image in place of noise: in
    image to image the student meets states that no run from noise has. This needs `effnet`, for its latents.

    The teacher takes `teacher_steps` steps, each of the `sample_steps` of the student as many of them; `cfg`,
    `cfg_rescale` and `shift` are its guidance and schedule. Not given: the released ones, and 4 and 2 steps.

    `train`: a LoRA of `target_modules`, or the whole network. `name` is the file's.
    """

    images: ImageSettings
    cache: NewPath
    stage: Literal["stage_c", "stage_b"]
    network: PathFromRoot
    text_encoder: PathFromRoot
    image_encoder: PathFromRoot | None = None
    effnet: PathFromRoot | None = None
    effnet_size: Pixels | None = None
    effnet_noise: Amount = 0.0
    keep_image: Share = 0.25
    drop_caption: Share = 0.05
    drop_caption_with_image: Share = 0.8
    from_image: Share = 0.0
    sample_steps: Count | None = None
    teacher_steps: Count | None = None
    cfg: Annotated[Number, Field(ge=0)] | None = None
    cfg_rescale: Share | None = None
    shift: Annotated[Number, Field(ge=0.01)] | None = None
    train: Literal["lora", "network"] = "lora"
    target_modules: Several[str] = ("all",)
    rank: Annotated[Whole, Field(ge=1, le=8192)] = 16
    alpha: Annotated[Number, Field(ge=1e-6)] | None = None
    decoder: PathFromRoot | None = None
    name: Annotated[str, AfterValidator(file_name)] = "few_steps"


class DistillationBatch(NamedTuple):
    """rows [B] of the trajectories, and whether it is the one from an image; the student goes from state `here` [B] of
    each to state `there` [B]."""

    rows: Tensor
    from_image: Tensor
    here: Tensor
    there: Tensor


class DistillationTask(DiffusionTask):
    """Trains an `Adapter`, or the whole network, on stored trajectories of the network as it was."""

    def __init__(self, config: TrainingConfig, on_chunk: OnChunk | None = None) -> None:
        self.config, self.settings = config, config.settings
        settings: DistillationSettings = config.settings
        self.device = pick_device(config.device)
        self.stage = settings.stage
        self.diffusion = build_diffusion(DiffusionSettings())
        self._plan()
        dtype = torch.bfloat16 if config.precision == "bfloat16" and settings.train == "lora" else torch.float32
        self.net = for_training(frozen(settings.network, self.device, self.stage, dtype), self.device, config)
        if self.net.config.process != Process():
            raise InvalidConfig(f"distill: a network that predicts {self.net.config.process.target} is not distilled")
        self.images = self._read_images(on_chunk)
        self.seen = [self.images.source]
        self._read_texts()
        captions = self.images.captions
        self.data = self._trajectories(captions, on_chunk)
        self.restarted = captions[: round(settings.from_image * len(captions))]
        # The state at which each of these starts: not nearly noise, and not nearly done.
        first, last = len(self.levels) // 10, len(self.levels) * 3 // 4
        self.first = np.random.default_rng((config.seed, 3)).integers(first, last + 1, size=len(self.restarted))
        self.from_images = self._trajectories(self.restarted, on_chunk, self.first) if self.restarted else self.data
        self.order = order_of(self.data, config)
        self._add_student()
        decoder = {"stage_c": "previewer", "stage_b": "stage_a"}[self.stage]
        self.decoder = None if settings.decoder is None else frozen(settings.decoder, self.device, decoder)

    def _plan(self) -> None:
        """The teacher's steps, of which the student does `stride` at once. Raises InvalidConfig."""
        settings, released = self.settings, RELEASED[self.stage]
        given = {name: getattr(settings, name) for name in ("cfg", "cfg_rescale")}
        guidance = replace(released.guidance, **{name: value for name, value in given.items() if value is not None})
        self.few = settings.sample_steps or FEW_STEPS[self.stage]
        steps = settings.teacher_steps or released.steps
        if steps % self.few:
            raise InvalidConfig(f"distill: teacher_steps {steps} is not a multiple of sample_steps {self.few}")
        self.stride = steps // self.few
        shift = settings.shift or released.shift
        self.teacher = replace(released, steps=steps, guidance=guidance, shift=shift, sampler_name="ddim")
        self.levels = self.teacher.noise_levels(self.diffusion)
        # The last state is the image: no noise.
        rows = [(level.a, level.b, level.r) for level in self.levels] + [(1.0, 0.0, 0.0)]
        self.a, self.b, self.r = torch.tensor(rows, device=self.device).unbind(1)
        sizes = latent_sizes(settings.images.size, settings.images.size)
        self.size = sizes.stage_c if self.stage == "stage_c" else sizes.stage_b

    def _read_images(self, on_chunk: OnChunk | None) -> Cache:
        """What the stage reads of images: embeddings for Stage C, latents of the encoder for Stage B."""
        settings = self.settings
        name, path = ("image_encoder", settings.image_encoder)
        if self.stage == "stage_b":
            name, path = ("effnet", settings.effnet)
        if path is None:
            raise InvalidConfig(f"distill: {self.stage} needs {name}")
        if settings.from_image and (self.stage != "stage_c" or settings.effnet is None):
            raise InvalidConfig("distill: from_image is for stage_c, and needs effnet")
        size = settings.effnet_size or max(32, settings.images.size * 3 // 4 // 32 * 32)
        encoder = frozen(path, self.device, name)

        @torch.no_grad()
        def compute(pixels: np.ndarray) -> dict[str, np.ndarray]:
            parts = []
            for part in np.array_split(pixels, -(-len(pixels) // AT_ONCE)):
                images = to_images(torch.from_numpy(part).to(self.device))
                if name == "effnet":
                    parts.append(encode_latents(encoder, images, size))
                else:
                    parts.append(to_halves(ImageEncoder(encoder).encode(images)))
            return {"read": np.concatenate(parts)}

        source = open_images(squares_only(settings.images, "distill"))
        self.key = f"{source.name}-{fingerprint(path)}-{size}"
        return cached(settings.cache, f"distill-{name}", source, compute, key=self.key, on_chunk=on_chunk)

    def _read_texts(self) -> None:
        """The text of each image (or none), and whether Stage C gets its embedding: fixed, as its trajectory is."""
        settings, captions = self.settings, self.images.captions
        self.text_encoder = frozen(settings.text_encoder, self.device, "text_encoder")
        random = np.random.default_rng((self.config.seed, 2)).random((2, len(captions)))
        self.with_image = random[0] < (settings.keep_image if self.stage == "stage_c" else 1.0)
        dropped = np.where(
            self.with_image & (self.stage == "stage_c"), settings.drop_caption_with_image, settings.drop_caption
        )
        self.texts = ["" if out else caption for caption, out in zip(captions, random[1] < dropped, strict=True)]
        self.ids, self.mask, tokens = tokenize_captions(TextEncoder(self.text_encoder), [*self.texts, ""])
        self.tokens, self.empty = tokens[:-1], tokens[-1:]

    @torch.no_grad()
    def _text(self, tokens: Tensor) -> TextEmbedding:
        return TextEncoder(self.text_encoder).embed(self.ids[tokens], self.mask[tokens])

    def _inputs(self, rows: np.ndarray) -> StageCInputs | StageBInputs:
        """What the stage reads for some of the images."""
        text = self._text(self.tokens[torch.from_numpy(rows)])
        images = self.images.take("read", rows, self.device).float()
        if self.stage == "stage_c":
            kept = torch.from_numpy(self.with_image[rows]).to(images)
            return StageCInputs.of(text, images * kept[:, None, None])
        noise = self._noise(rows, "effnet")(images, 0)
        return StageBInputs(images + self.settings.effnet_noise * noise, text.pooled)

    def _noise(self, rows: np.ndarray, name: str) -> SeededNoise:
        return SeededNoise([derive_seed(self.config.seed, name, int(row)) for row in rows])

    def _conditions(self, inputs: StageCInputs | StageBInputs) -> Any:
        like = next(self.net.parameters()).dtype
        tensors = {name: tensor.to(like) for name, tensor in inputs.as_kwargs().items()}
        size = {} if self.stage == "stage_c" else {"size": self.size[-2:]}
        return self.net.conditions(**tensors, **size)

    def _latents(self, on_chunk: OnChunk | None) -> Cache:
        """`latents` [N, 16, h, w] of the images, to start from."""
        size = 32 * self.size[-1]
        encoder = frozen(self.settings.effnet or Path(), self.device, "effnet")

        @torch.no_grad()
        def compute(pixels: np.ndarray) -> dict[str, np.ndarray]:
            images = to_images(torch.from_numpy(pixels).to(self.device)).split(AT_ONCE)
            return {"latents": np.concatenate([encode_latents(encoder, part, size) for part in images])}

        source = open_images(self.settings.images)
        return cached(self.settings.cache, "distill-latents", source, compute, key=self.key, on_chunk=on_chunk)

    def _trajectories(
        self, captions: Sequence[str], on_chunk: OnChunk | None, first: np.ndarray | None = None
    ) -> Cache:
        """`states` [N, steps + 1, c, h, w]: the teacher's, from noise to image.

        first: the state [N] at which each starts from the next image's latents; those before mean nothing.
        """
        latents = None if first is None else self._latents(on_chunk)
        precise = self.config.precision == "float32"

        @torch.no_grad()
        @torch.autocast(self.device.type, torch.bfloat16, enabled=not precise)
        def compute(rows: np.ndarray) -> dict[str, np.ndarray]:
            parts = [self._sampled(part, first, latents) for part in np.array_split(rows, -(-len(rows) // AT_ONCE))]
            return {"states": np.concatenate(parts)}

        # All that a trajectory depends on.
        settings = self.settings.model_dump(
            mode="json", include={"effnet_noise", "keep_image", "drop_caption", "drop_caption_with_image"}
        )
        key = f"{self.key}-{fingerprint(self.settings.network)}-{fingerprint(self.settings.text_encoder)}"
        key = f"{key}-{self.config.seed}-{self.config.precision}-{self.teacher}-{settings}"
        key = key if first is None else f"{key}-from_image"
        source = Captions(captions)
        return cached(self.settings.cache, "trajectories", source, compute, key=key, on_chunk=on_chunk)

    def _sampled(self, rows: np.ndarray, first: np.ndarray | None, latents: Cache | None) -> np.ndarray:
        inputs = self._inputs(rows)
        cond, uncond = (
            {"conditions": self._conditions(each)} for each in (inputs, inputs.unconditional(self._text(self.empty)))
        )
        guided = GuidedNetwork(self.net.denoise, cond, uncond, self.teacher.guidance, None, len(rows))
        x, step, target = self._start(rows), DDIM(), self.diffusion.target
        noise = x.clone  # DDIM adds none
        noises, states = x, [x]
        for index, here in enumerate(self.levels):
            if first is not None and latents is not None:
                images = latents.take("latents", (rows + 1) % len(latents.captions), self.device).float()
                starts = torch.from_numpy(first[rows] == index).to(self.device)[:, None, None, None]
                x = states[index] = torch.where(starts, here.a * images + here.b * noises, x)
            prediction = guided(x, here).float()
            x0 = target.x0(x, prediction, here.log_snr, here.a, here.b)
            epsilon = target.epsilon(x, prediction, here.log_snr, here.a, here.b)
            last = here is self.levels[-1]
            x = x0 if last else step(x0, epsilon, here.factors, self.levels[index + 1].factors, noise)
            states.append(x)
        return np.stack([to_halves(state) for state in states], axis=1)

    def _start(self, rows: np.ndarray) -> Tensor:
        return self._noise(rows, "start").start(*self.size).to(self.device)

    def _add_student(self) -> None:
        settings = self.settings
        if settings.train == "network":
            self.modules: dict[str, nn.Module] = {self.stage: self.net.requires_grad_(True)}
            return
        adapter = Adapter()
        self.wiring = Wiring(adapter)
        alpha = settings.rank if settings.alpha is None else settings.alpha
        options: dict[str, Any] = {"dropout": 0.0, "dora": False}
        self.wiring.add_changes(
            self.net,
            self.stage,
            settings.target_modules,
            rank=settings.rank,
            alpha=alpha,
            seed=self.config.seed,
            **options,
        )
        self.modules = {"adapter": adapter.to(self.device)}
        to_tensors(self._lora(adapter), FORMATS[self.stage])

    def batch(self, index: int) -> DistillationBatch:
        """Half of the starts are those of a run from pure noise; the others lie anywhere, for images to start from."""
        rows = self.order.rows(index, self.config.batch_size)
        random = np.random.default_rng((self.config.seed, index))
        moved = random.integers(self.stride, size=len(rows)) * (random.random(len(rows)) < 0.5)
        here = random.integers(self.few, size=len(rows)) * self.stride + moved
        from_image = random.random(len(rows)) < self.settings.from_image
        if from_image.any():
            rows = np.where(from_image, rows % len(self.restarted), rows)
            here = np.where(from_image, np.maximum(here, self.first[rows % len(self.restarted)]), here)
        there = np.minimum(here + self.stride, len(self.levels))
        return DistillationBatch(*map(torch.from_numpy, (rows, from_image, here, there)))

    def loss(self, batch: DistillationBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        rows = batch.rows.numpy()
        x, there = (self._states(rows, batch.from_image, steps) for steps in (batch.here, batch.there))
        (a, b, r), (a_there, b_there, _) = (self._levels(steps, x) for steps in (batch.here, batch.there))
        ratio = b_there / b
        share = a_there - ratio * a
        wanted = (there - ratio * x) / share
        epsilon = self.net.denoise(x, r.flatten(), self._conditions(self._inputs(rows))).float()
        errors = ((x - b * epsilon) / a - wanted).square().flatten(1).mean(dim=1)
        # Between the error of x0, which the first step alone would decide, since nothing is known of the image there,
        # and that of the state it leads to (times share squared), which the last step alone would.
        return (errors * share.flatten()).mean(), {"mse": errors.mean()}

    def _states(self, rows: np.ndarray, from_image: Tensor, steps: Tensor) -> Tensor:
        chosen: Any = (self.from_images if other else self.data for other in from_image.tolist())
        states = [
            each.rows("states", np.array([row]))[0, step]
            for each, row, step in zip(chosen, rows, steps.tolist(), strict=True)
        ]
        return torch.from_numpy(np.stack(states)).to(self.device).float()

    def _levels(self, steps: Tensor, like: Tensor) -> list[Tensor]:
        """a, b and r of the states with these numbers, [B, 1, ...]."""
        return [expand(values[steps.to(self.device)], like) for values in (self.a, self.b, self.r)]  # type: ignore[misc]

    def sample(self, modules: Modules, generator: torch.Generator) -> Image.Image | None:
        """The first images: the teacher's above, those of the student's few steps below."""
        if self.decoder is None:
            return None
        rows = np.arange(min(8, len(self.data.captions)))
        if self.settings.train == "network":
            made = self._student(modules[self.stage], rows)
        else:
            with self.wiring.showing(modules["adapter"]):
                made = self._student(self.net, rows)
        taught = self.data.take("states", rows, self.device)[:, -1].float()
        decode = self.decoder if self.stage == "stage_c" else self.decoder.decode
        return sheet([decode(taught), decode(made.float())], labels=self.texts[: len(rows)])

    def _student(self, net: Any, rows: np.ndarray) -> Tensor:
        settings = replace(self.teacher, steps=self.few, guidance=Guidance(cfg=1.0))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            conditions = self._conditions(self._inputs(rows))
            return sample(net.denoise, self._start(rows), settings, cond={"conditions": conditions})

    def _lora(self, adapter: Any) -> Lora:
        config = self.config
        names = ("steps", "batch_size", "accumulation", "learning_rate", "seed", "precision")
        values = {name: getattr(config, name) for name in names}
        teacher = {"teacher_steps": self.teacher.steps, "teacher_cfg": self.teacher.guidance.cfg}
        return adapter.to_lora({**values, "stage": self.stage, "sample_steps": self.few, **teacher})

    def export(self, modules: Modules, folder: Path, dtype: torch.dtype) -> None:
        path = folder / f"{self.settings.name}.safetensors"
        if self.settings.train == "lora":
            save_lora(self._lora(modules["adapter"]), path, format=FORMATS[self.stage], dtype=dtype)
        else:
            plain = copy.deepcopy(modules[self.stage]).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            save_model(plain, path, dtype=dtype)
