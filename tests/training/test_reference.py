"""Settings files of the released training code: what their keys become, and that they train."""

from __future__ import annotations

import json
import shutil
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from cascade.checkpoints import load_model, save_model
from cascade.cli import main
from cascade.errors import InvalidConfig
from cascade.models import Previewer, PreviewerConfig, initialize
from cascade.training import SETTINGS, parse_config
from cascade.training.data import open_images
from cascade.training.needs import trained_parameters
from cascade.training.reference import is_reference, translate
from cascade.training.state import load_state
from tests import small

RATIOS = ["1/1", "1/2", "2/3", "9/16"]
FILTERS = [["width", "lambda w: w >= 70"], ["height", "lambda h: h >= 50"]]
COMMON: dict[str, Any] = {
    "experiment_id": "first",
    "checkpoint_path": "checkpoints",
    "output_path": "runs",
    "wandb_project": "Cascade",
    "wandb_entity": "someone",
    "lr": 1.0e-3,
    "batch_size": 8,
    "image_size": 64,
    "grad_accum_steps": 2,
    "updates": 20,
    "backup_every": 20000,
    "save_every": 10,
    "warmup_updates": 1,
    "use_fsdp": True,
    "webdataset_path": "file:images.tar",
    "effnet_checkpoint_path": "models/effnet_encoder.safetensors",
    "generator_checkpoint_path": "models/generator.safetensors",
}
STAGE_C = {**COMMON, "model_version": "3.6B", "previewer_checkpoint_path": "models/previewer.safetensors"}
CONTROL = {**STAGE_C, "controlnet_blocks": [0, 4, 8, 12], "captions_getter": ["txt", "identity"]}
FILES: dict[str, dict[str, Any]] = {
    "finetune_c": {**STAGE_C, "adaptive_loss_weight": True, "multi_aspect_ratio": RATIOS},
    "finetune_c_v": {**STAGE_C, "edm_objective": True, "ema_start_iters": 8, "ema_iters": 4, "ema_beta": 0.9},
    "finetune_b": {
        **COMMON,
        "model_version": "700M",
        "shift": 4,
        "adaptive_loss_weight": True,
        "stage_a_checkpoint_path": "models/stage_a.safetensors",
    },
    "lora": {
        **STAGE_C,
        "module_filters": [".attn"],
        "rank": 4,
        "train_tokens": [["[fernando]", "^dog</w>"]],
        "use_fsdp": False,
        "multi_aspect_ratio": RATIOS,
        "bucketeer_random_ratio": 0.5,
    },
    "canny": {
        **CONTROL,
        "controlnet_filter": "CannyFilter",
        "controlnet_filter_params": {"resize": 224},
        "dataset_filters": FILTERS,
        "controlnet_bottleneck_mode": "simple",
        "webdataset_path": ["images.tar", "more-{0..1}.tar"],
    },
    "inpainting": {
        **CONTROL,
        "controlnet_filter": "InpaintFilter",
        "controlnet_filter_params": {"thresold": [0.04, 0.4], "p_outpaint": 0.4},
        "offset_noise": 0.1,
    },
    "super_resolution": {
        **CONTROL,
        "controlnet_filter": "SREffnetFilter",
        "controlnet_filter_params": {"scale_factor": 0.5},
        "controlnet_bottleneck_mode": "large",
        "offset_noise": 0.1,
    },
    "identity": {
        **CONTROL,
        "controlnet_filter": "IdentityFilter",
        "controlnet_filter_params": {"max_faces": 4, "p_drop": 0.05, "p_full": 0.3},
        "controlnet_bottleneck_mode": "simple",
        "multi_aspect_ratio": RATIOS,
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks under the names of the released ones, and a tar of images."""
    folder = tmp_path_factory.mktemp("reference")
    models = folder / "models"
    models.mkdir()
    for kind, name in {"effnet": "effnet_encoder", "stage_c": "generator", "stage_b": "stage_b"}.items():
        save_model(small.part(kind), models / f"{name}.safetensors")
    for kind in ("stage_a", "text_encoder", "image_encoder"):
        save_model(small.part(kind), models / f"{kind}.safetensors")
    save_model(initialize(Previewer(PreviewerConfig(width=8))).eval(), models / "previewer.safetensors")
    for name, sizes in (("images", SIZES), ("more-0", SIZES[:2]), ("more-1", SIZES[2:])):
        write_tar(folder / f"{name}.tar", sizes)
    return folder


SIZES = [(80, 64)] * 3 + [(64, 128), (60, 120), (120, 60)]


def write_tar(path: Path, sizes: list[tuple[int, int]]) -> None:
    with tarfile.open(path, "w") as tar:
        for number, size in enumerate(sizes):
            made = BytesIO()
            Image.new("RGB", size, (40 * number, 90, 20)).save(made, "PNG")
            old = json.dumps({"og_caption": "an old caption"})
            said = {"width": size[0], "height": size[1], "caption": "a caption", "old_caption": old}
            files = {"png": made.getvalue(), "txt": b"a photo of [fernando]", "json": json.dumps(said).encode()}
            for ending, data in files.items():
                member = tarfile.TarInfo(f"{number}.{ending}")
                member.size = len(data)
                tar.addfile(member, BytesIO(data))


def write(folder: Path, name: str, **changes: Any) -> Path:
    """As the released training code writes paths: from the folder in which it is started."""
    path = folder / f"{name}.yaml"
    values = {**FILES[name], "experiment_id": name, **changes}
    if name == "finetune_b":
        values["generator_checkpoint_path"] = "models/stage_b.safetensors"
    if name == "canny":
        values["controlnet_blocks"] = [0, 2]
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def test_what_all_trainings_share() -> None:
    values = translate(FILES["finetune_c_v"], "f").values
    expected = {
        "task": "stage_c",
        "output": "runs/first",
        "steps": 20,
        "batch_size": 4,
        "accumulation": 2,
        "learning_rate": 1e-3,
        "lr_scheduler": "constant",
        "warmup": 1,
        "betas": [0.9, 0.999],
        "ema": 0.9,
        "ema_start": 4,
        "ema_every": 2,
        "checkpoint_every": 10,
        "precision": "bfloat16",
    }
    assert {key: values[key] for key in expected} == {**expected, "output": str(Path("runs/first"))}
    assert translate(FILES["finetune_c"], "f").values["ema"] == 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("finetune_c", {"start": "models/generator.safetensors", "diffusion": {"loss_weight": "adaptive"}}),
        ("finetune_c_v", {"diffusion": {"target": "v"}, "train_text_encoder": False, "effnet_size": 64}),
        ("finetune_b", {"effnet_sizes": [32], "diffusion": {"loss_weight": "adaptive", "shift": 4}}),
        ("finetune_b", {"pyramid_noise": True, "effnet_resize": "nearest"}),
        (
            "finetune_c",
            {
                "images": {
                    "stream": True,
                    "size": 64,
                    "aspect_ratios": RATIOS,
                    "random_ratio": 0.05,
                    "crop": "random",
                    "path": "file:images.tar",
                }
            },
        ),
        (
            "canny",
            {
                "images": {
                    "stream": True,
                    "crop": "smart",
                    "size": 64,
                    "filters": FILTERS,
                    "path": ["images.tar", "more-{0..1}.tar"],
                }
            },
        ),
        ("lora", {"target_modules": ["attention"], "rank": 4, "alpha": 1.0, "formats": ["released"]}),
        ("lora", {"tokens": [{"text": "[fernando]", "initializer": "^dog</w>"}]}),
        ("canny", {"stage_c": "models/generator.safetensors", "hint_size": 64}),
        ("super_resolution", {"diffusion": {"offset_noise": 0.1}}),
        (
            "super_resolution",
            {
                "reference": {
                    "controlnet_filter": "SREffnetFilter",
                    "controlnet_filter_params": {"scale_factor": 0.5},
                    "controlnet_bottleneck_mode": "large",
                    "controlnet_blocks": [0, 4, 8, 12],
                }
            },
        ),
    ],
)
def test_what_each_training_has(name: str, expected: dict[str, Any]) -> None:
    assert is_reference(FILES[name])
    translation = translate(FILES[name], "f")
    section = translation.values[translation.values["task"]]
    assert {key: section[key] for key in expected} == expected
    assert translation.problems == []


@pytest.mark.parametrize(
    ("version", "parameters"),
    [("3.6B", 3_589_103_632), ("1B", 1_030_785_040), ("3B", 1_562_941_136), ("700M", 699_471_248)],
)
def test_a_new_network_has_the_size_of_its_version(version: str, parameters: int) -> None:
    name = "finetune_c" if version in ("3.6B", "1B") else "finetune_b"
    data = {**FILES[name], "model_version": version, "generator_checkpoint_path": None}
    config = parse_config(translate(data, "f").values, SETTINGS, where="f")
    assert trained_parameters(config) == parameters


@pytest.mark.parametrize("name", FILES)
def test_check_says_what_each_key_becomes(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    path = write(folder, name)
    assert main(["train", "--check", str(path), "--folder", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} >= set(FILES[name])
    assert "Missing here: nothing" in lines
    assert not (folder / "runs" / name).exists()


def test_check_tells_memory_disk_and_what_is_missing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(folder, "finetune_c", previewer_checkpoint_path="models/none.safetensors")
    assert main(["train", "--check", str(path), "--folder", str(folder)]) == 0
    out = capsys.readouterr().out
    count = sum(p.numel() for p in small.part("stage_c").parameters())
    assert f"previewer: {folder / 'models' / 'none.safetensors'}" in out
    assert main(["train", "--check", str(write(folder, "finetune_c")), "--folder", str(folder)]) == 0
    assert f"Trained parameters: {count / 1e6:,.1f} million" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("finetune_c", {"updatse": 3}),
        ("finetune_c", {"multi_aspect_ratio": ["1/0"]}),
        ("finetune_c", {"shift": 4}),
        ("finetune_c", {"dataset_filters": [["width", "lambda w: __import__('os').remove(w)"]]}),
        ("finetune_c", {"captions_getter": ["json", "lambda x: x"]}),
        ("finetune_c", {"dtype": "bfloat16"}),
        ("finetune_c", {"batch_size": 1}),
        ("lora", {"train_tokens": [[3, None]]}),
        ("lora", {"module_filters": [".attn", ".mapper"]}),
        ("canny", {"controlnet_filter": "PidiFilter"}),
    ],
)
def test_what_cannot_be_used_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, changes: dict[str, Any]
) -> None:
    path = write(folder, name, **changes)
    [key] = changes
    assert main(["train", "--check", str(path), "--folder", str(folder)]) == 1
    assert f"1 of its keys cannot be used: {key}" in capsys.readouterr().out
    assert main(["train", str(path), "--folder", str(folder)]) == 1
    assert key in capsys.readouterr().err


def test_a_key_that_ours_do_not_have_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "ours.yaml"
    path.write_text("task: lora\noutput: out\nsteps: 3\nbatch_size: 1\nstpes: 3\nlora: {}\n", encoding="utf-8")
    assert main(["train", "--check", str(path)]) == 1
    assert "stpes" in capsys.readouterr().err


def test_what_every_file_has_must_be_there() -> None:
    with pytest.raises(InvalidConfig, match="missing lr, updates"):
        translate({**STAGE_C, "lr": None, "updates": None}, "f")


def test_what_is_elsewhere_is_missing_and_no_problem(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(folder, "finetune_c", webdataset_path=["s3://bucket/a", "none-{00..01}.tar", "pipe:cat images.tar"])
    assert main(["train", "--check", str(path), "--folder", str(folder)]) == 0
    out = capsys.readouterr().out
    assert [f"images.path: {folder / f'none-0{n}.tar'}" in out for n in range(3)] == [True, True, False]
    assert ("the program aws, for s3://bucket/a" in out) == (shutil.which("aws") is None)


def test_captions_of_the_released_functions(folder: Path) -> None:
    values = translate({**FILES["finetune_c"], "captions_getter": ["json", "captions_getter"]}, "f").values
    keys = values["stage_c"]["images"]["captions"]["keys"]
    assert keys == {"json.caption": 0.95, "json.old_caption.og_caption": 0.05}
    settings = parse_config(values, SETTINGS, where="f", root=folder).settings.images
    [part, *_] = open_images(settings).parts()
    seen = next(open_images(settings).read(part))
    assert seen.texts == ["a caption", "an old caption"]


@pytest.mark.parametrize("name", ["finetune_c", "finetune_b", "lora", "canny"])
def test_they_train(folder: Path, name: str) -> None:
    path = write(folder, name)
    assert main(["train", str(path), "--folder", str(folder), "--set", "save_every=20"]) == 0
    state = load_state(folder / "runs" / name)
    assert state is not None
    assert (state["step"], state["finished"]) == (20, True)
    made = {"finetune_c": "stage_c", "finetune_b": "stage_b", "lora": "lora", "canny": "controlnet_canny"}[name]
    file = folder / "runs" / name / f"{made}.safetensors"
    assert file.exists()
    if name.startswith("finetune"):
        assert load_model(file).config == small.part(made).config
