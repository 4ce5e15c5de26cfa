"""The YAML files of the released training code: what each of their keys becomes here."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InvalidConfig, shown
from .buckets import ratio
from .config import put
from .filters import REFERENCE_NAMES
from .metadata import parse_filter

_VERSIONS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "3.6B": ("stage_c", {}),
    "1B": ("stage_c", {"c_cond": 1536, "c_hidden": [1536, 1536], "nhead": [24, 24], "blocks": [[4, 12], [12, 4]]}),
    "3B": ("stage_b", {}),
    "700M": (
        "stage_b",
        {
            "c_hidden": [320, 576, 1152, 1152],
            "nhead": [-1, 9, 18, 18],
            "blocks": [[2, 4, 14, 4], [4, 14, 4, 2]],
            "block_repeat": [[1, 1, 1, 1], [2, 2, 2, 2]],
        },
    ),
}
"""model_version -> the stage, and the reference constructor's arguments of a new network."""

RANDOM_RATIO = 0.05
"""bucketeer_random_ratio, where a file does not have it."""
# What the released functions of these names do: the second takes the original caption of a few images.
_CAPTIONS: Mapping[tuple[str, ...], Mapping[str, float]] = {
    ("txt", "identity"): {"txt": 1.0},
    ("json", "captions_getter"): {"json.caption": 0.95, "json.old_caption.og_caption": 0.05},
}
_CLIP = {"text_encoder": "clip_text_model_name", "image_encoder": "clip_image_model_name"}
_TASK_KEYS = {
    "shift": ("stage_b",),
    "offset_noise": ("controlnet",),
    "edm_objective": ("stage_c",),
    **dict.fromkeys(("module_filters", "rank", "train_tokens", "lora_checkpoint_path"), ("lora",)),
    "adaptive_loss_weight": ("stage_c", "stage_b", "lora"),
    "stage_a_checkpoint_path": ("stage_b",),
    "previewer_checkpoint_path": ("stage_c", "lora", "controlnet"),
}
"""Keys that only some trainings have."""
_REQUIRED = (
    *("experiment_id", "output_path", "model_version", "lr", "batch_size", "image_size", "grad_accum_steps", "updates"),
    *("warmup_updates", "save_every", "webdataset_path", "effnet_checkpoint_path"),
)


class Line(NamedTuple):
    """What became of a key: in words; `problem` where it asks for something that does not exist here."""

    key: str
    becomes: str
    problem: bool = False


class Translation(NamedTuple):
    """Our settings, as a file has them, and a line for each key of theirs."""

    values: dict[str, Any]
    lines: list[Line]

    @property
    def problems(self) -> list[Line]:
        return [line for line in self.lines if line.problem]


def is_reference(data: Mapping[str, Any]) -> bool:
    """Whether settings are those of a released training: ours name a task."""
    return "task" not in data and bool({"experiment_id", "updates", "generator_checkpoint_path"} & set(data))


def translate(data: Mapping[str, Any], where: str) -> Translation:
    """The settings of a released training in ours. Raises InvalidConfig for values that no such file has."""
    if missing := [key for key in _REQUIRED if data.get(key) is None]:
        raise InvalidConfig(f"{where}: missing {', '.join(missing)}, which a file of the released training has")
    return _Translator(data, where).translation()


class _Translator:
    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.data, self.where = data, where
        self.task = self._find_task()
        self.values: dict[str, Any] = {"task": self.task}
        self.lines: list[Line] = []

    def translation(self) -> Translation:
        self._fixed()
        for key, value in self.data.items():
            self.key = str(key)
            handler = _HANDLERS.get(self.key)
            if handler is None:
                [near] = difflib.get_close_matches(self.key[:64], _HANDLERS, n=1, cutoff=0.0)
                self.problem(f"unknown key; the nearest known one is {near}")
            elif self.task not in _TASK_KEYS.get(self.key, (self.task,)) and value is not None:
                self.problem(f"no key of a training of {self.task}")
            elif value is None:
                self.say("not given")
            else:
                handler(self, value)
        self._encoders()
        return Translation(self.values, self.lines)

    def _find_task(self) -> str:
        if any(str(key).startswith("controlnet_") for key in self.data):
            return "controlnet"
        if "module_filters" in self.data:
            return "lora"
        version = self.data["model_version"]
        if version not in _VERSIONS:
            raise InvalidConfig(f"{self.where}: model_version is {shown(version)}; there are {', '.join(_VERSIONS)}")
        return _VERSIONS[version][0]

    def put(self, key: str, value: Any, why: str = "") -> None:
        """Set a key of ours; TASK stands for the task's section."""
        key = key.replace("TASK", self.task)
        put(self.values, key, value, self.where)
        self.say(f"{key}: {shown(value)}{f' ({why})' if why else ''}")

    def say(self, text: str) -> None:
        self.lines.append(Line(self.key, text))

    def problem(self, text: str) -> None:
        self.lines.append(Line(self.key, text, True))

    def _fixed(self) -> None:
        """What the released training does without saying so in its files."""
        self.key = "(always)"
        for key, value in {
            "optimizer": "adamw",
            "betas": [0.9, 0.999],
            "weight_decay": 0.01,
            "clip_norm": 1.0,
            "lr_scheduler": "constant",
            "precision": "bfloat16",
        }.items():
            self.put(key, value)
        if self.data.get("ema_start_iters") is None:
            self.put("ema", 0.0, "no ema_start_iters: no average")
        if self.task == "stage_b":
            size = int(self.data["image_size"])
            self.put("TASK.effnet_sizes", list(range(size // 2, size, 32)), "0.5 to 1 of image_size")
            self.put("TASK.effnet_resize", "nearest")
            self.put("TASK.pyramid_noise", True)
        if self.data.get("stream") is None:
            self.put("TASK.images.stream", True, "images are encoded as they come; --set stream=false: once, before")
        if self.data.get("multi_aspect_ratio") is None:
            self.put("TASK.images.crop", "smart")
        if self.task == "stage_c":
            self.put("TASK.train_text_encoder", False)
            self.put("TASK.train_image_encoder", False)
        if self.task == "lora":
            self.put("TASK.alpha", 1.0, "the released LoRA is scaled by 1 / rank")
            self.put("TASK.formats", ["released"])

    def _encoders(self) -> None:
        """The CLIP towers, which the released training downloads by name: files beside the other networks."""
        wanted = ("text_encoder", "image_encoder") if self.task == "stage_c" else ("text_encoder",)
        folder = Path(str(self.data.get("generator_checkpoint_path") or self.data["effnet_checkpoint_path"])).parent
        for name in wanted:
            self.key = _CLIP[name]
            given = Path(str(self.data.get(self.key, "")))
            beside = [folder / f"{name}{ending}.safetensors" for ending in ("_bf16", "")]
            path = given if given.suffix == ".safetensors" else next((p for p in beside if p.exists()), beside[1])
            self.put(f"TASK.{name}", str(path), f"a file; {self.key} may name another one")

    def output(self, value: Any) -> None:
        self.put("output", str(Path(str(value)) / str(self.data["experiment_id"])))
        self.put("TASK.cache", str(Path(str(value)) / str(self.data["experiment_id"]) / "cache"))

    def batch_size(self, value: Any) -> None:
        processes, accumulation = int(os.environ.get("WORLD_SIZE", "1")), int(self.data["grad_accum_steps"])
        size = int(value) // (processes * accumulation)
        if size < 1:
            self.problem(f"{value} for all of {processes} processes, {accumulation} times a step, is less than 1 each")
        else:
            self.put("batch_size", size, f"{value} over {processes} processes and {accumulation} micro-batches")

    def save_every(self, value: Any) -> None:
        self.put("checkpoint_every", value)
        self.put("sample_every", value)

    def ema_iters(self, value: Any) -> None:
        self.put("ema_every", max(1, int(value) // int(self.data["grad_accum_steps"])))

    def ema_start(self, value: Any) -> None:
        self.put("ema_start", int(value) // int(self.data["grad_accum_steps"]))

    def image_size(self, value: Any) -> None:
        self.put("TASK.images.size", value)
        if self.task != "stage_b":
            self.put("TASK.effnet_size", value)
        if self.task == "controlnet":
            self.put("TASK.hint_size", value)

    def webdataset(self, value: Any) -> None:
        paths = [str(path) for path in (value if isinstance(value, list) else [value])]
        self.put("TASK.images.path", paths[0] if len(paths) == 1 else paths)

    def generator(self, value: Any) -> None:
        self.put("TASK.start" if self.task in ("stage_c", "stage_b") else "TASK.stage_c", str(value))

    def version(self, value: Any) -> None:
        stage, arguments = _VERSIONS.get(value, ("", {}))
        if not stage:
            self.problem(f"{shown(value)} is none of {', '.join(_VERSIONS)}")
        elif self.data.get("generator_checkpoint_path") is not None:
            self.say("the file of generator_checkpoint_path tells its size")
        elif self.task == stage:
            self.put("TASK.model", {"reference": dict(arguments)}, "a new network")
        else:
            self.problem(f"a training of {self.task} needs generator_checkpoint_path")

    def adaptive(self, value: Any) -> None:
        if value is True:
            self.put("TASK.diffusion.loss_weight", "adaptive")
        else:
            self.say("off")

    def shift(self, value: Any) -> None:
        self.put("TASK.diffusion.shift", value, "the released code reads it, but trains with 1")

    def edm(self, value: Any) -> None:
        if value is True:
            self.put("TASK.diffusion.target", "v", "the released code stops at this key")
        else:
            self.say("off")

    def aspect_ratios(self, value: Any) -> None:
        try:
            ratios = [ratio(each) and each for each in value]
        except (TypeError, ValueError) as error:
            self.problem(f"{shown(value)}: {error}")
            return
        self.put("TASK.images.aspect_ratios", ratios)
        share = self.data.get("bucketeer_random_ratio")
        self.put("TASK.images.random_ratio", RANDOM_RATIO if share is None else share)
        self.put("TASK.images.crop", "random", "as the released buckets")

    def random_ratio(self, value: Any) -> None:
        used = self.data.get("multi_aspect_ratio") is not None
        self.say("with multi_aspect_ratio" if used else "not used without multi_aspect_ratio")

    def filters(self, value: Any) -> None:
        found = []
        for each in value if isinstance(value, list) else [value]:
            if not isinstance(each, list) or len(each) != 2:
                self.problem(f"{shown(each)}: [key, 'lambda ...'] is expected")
                return
            keys, text = each
            try:
                parse_filter(keys, str(text))
            except (TypeError, ValueError) as error:
                self.problem(str(error))
                return
            found.append([keys, text])
        self.put("TASK.images.filters", found, "read as comparisons, never run")

    def captions(self, value: Any) -> None:
        keys = _CAPTIONS.get(tuple(map(str, value)) if isinstance(value, list) else ())
        if keys is None:
            known = " and ".join(str(list(each)) for each in _CAPTIONS)
            self.problem(f"{shown(value)}: known are {known}; write a file of ours with images.captions for others")
        elif keys == {"txt": 1.0}:
            self.say("captions are the .txt files")
        else:
            self.put("TASK.images.captions.keys", dict(keys))

    def control_filter(self, value: Any) -> None:
        known = REFERENCE_NAMES.get(str(value))
        if known is None:
            self.problem(f"{shown(value)}: known are {', '.join(REFERENCE_NAMES)}; store hints beside the images")
        else:
            why = "faces are read from NAME.faces.json beside each image" if known == "identity" else ""
            self.put("TASK.reference.controlnet_filter", value, why)

    def modules(self, value: Any) -> None:
        if value == [".attn"]:
            self.put("TASK.target_modules", ["attention"])
        else:
            self.problem(f"{shown(value)}: only ['.attn'] has a meaning here; write a file of ours with target_modules")

    def tokens(self, value: Any) -> None:
        tokens, words = [], []
        for token in value if isinstance(value, list) else [value]:
            text, initializer = token if isinstance(token, list) and len(token) == 2 else (token, None)
            if not isinstance(text, str):
                self.problem(f"{shown(text)}: a token such as [fernando], or a pattern of existing words, is expected")
                return
            if text[:1] in ("[", "<"):
                tokens.append({"text": text, "initializer": initializer})
            else:
                words.append(text)
        if tokens:
            self.put("TASK.tokens", tokens)
        if words:
            self.put("TASK.words", words, "existing words")
        if not tokens and not words:
            self.say("no tokens")

    def dtype(self, value: Any) -> None:
        if value == "float32":
            self.say("float32 weights, as always here")
        else:
            self.problem(f"{shown(value)} weights are not trained; leave it out for float32")

    def fsdp(self, value: Any) -> None:
        if value:
            self.put("shard", True)
        else:
            self.say("off")

    def tracker(self, value: Any) -> None:
        self.say("not sent: metrics.jsonl, loss.png and samples are in the output folder; --set trackers=[wandb] sends")


Handler = Callable[[_Translator, Any], None]


def _to(key: str) -> Handler:
    return lambda translator, value: translator.put(key, value)


def _path(key: str) -> Handler:
    return lambda translator, value: translator.put(key, str(value))


def _says(text: str) -> Handler:
    return lambda translator, value: translator.say(text)


def _refuses(text: str) -> Handler:
    return lambda translator, value: translator.problem(text)


_HANDLERS: Mapping[str, Handler] = {
    "stream": _to("TASK.images.stream"),
    "experiment_id": _says("the folder below output_path"),
    "output_path": _Translator.output,
    "checkpoint_path": _says("not used: the state lies beside the samples"),
    "checkpoint_extension": _says("not used: safetensors"),
    "dist_file_subfolder": _says("not used: torchrun connects the processes"),
    "allow_tf32": _says("not used"),
    "trackers": _to("trackers"),
    "wandb_project": _Translator.tracker,
    "wandb_entity": _Translator.tracker,
    "model_version": _Translator.version,
    "dtype": _Translator.dtype,
    "lr": _to("learning_rate"),
    "batch_size": _Translator.batch_size,
    "grad_accum_steps": _to("accumulation"),
    "updates": _to("steps"),
    "warmup_updates": _to("warmup"),
    "save_every": _Translator.save_every,
    "backup_every": _to("backup_every"),
    "ema_start_iters": _Translator.ema_start,
    "ema_iters": _Translator.ema_iters,
    "ema_beta": _to("ema"),
    "use_fsdp": _Translator.fsdp,
    "adaptive_loss_weight": _Translator.adaptive,
    "edm_objective": _Translator.edm,
    "shift": _Translator.shift,
    "offset_noise": _to("TASK.diffusion.offset_noise"),
    "dropout": _refuses("no training has dropout in its networks yet"),
    "image_size": _Translator.image_size,
    "multi_aspect_ratio": _Translator.aspect_ratios,
    "bucketeer_random_ratio": _Translator.random_ratio,
    "captions_getter": _Translator.captions,
    "dataset_filters": _Translator.filters,
    "webdataset_path": _Translator.webdataset,
    "effnet_checkpoint_path": _path("TASK.effnet"),
    "previewer_checkpoint_path": _path("TASK.previewer"),
    "stage_a_checkpoint_path": _path("TASK.stage_a"),
    "generator_checkpoint_path": _Translator.generator,
    "clip_text_model_name": _says("see the last lines"),
    "clip_image_model_name": _says("see the last lines"),
    "controlnet_blocks": _to("TASK.reference.controlnet_blocks"),
    "controlnet_filter": _Translator.control_filter,
    "controlnet_filter_params": _to("TASK.reference.controlnet_filter_params"),
    "controlnet_bottleneck_mode": _to("TASK.reference.controlnet_bottleneck_mode"),
    "controlnet_checkpoint_path": _path("TASK.start"),
    "module_filters": _Translator.modules,
    "rank": _to("TASK.rank"),
    "train_tokens": _Translator.tokens,
    "lora_checkpoint_path": _path("TASK.start"),
}
