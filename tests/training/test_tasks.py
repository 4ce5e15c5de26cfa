"""The tasks on small networks and few images: data, losses, what is trained, what comes out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

from cascade.checkpoints import load_model, save_model
from cascade.conditioning import TextEncoder
from cascade.errors import InvalidConfig, RunConflict
from cascade.models import Previewer, PreviewerConfig, initialize
from cascade.tiny import references
from cascade.training import SETTINGS, TASKS, fit, parse_config, read_config
from cascade.training.data import to_images
from cascade.training.loop import Trainer
from cascade.training.metrics import read_metrics
from cascade.training.networks import encode_latents
from cascade.training.state import load_state
from cascade.training.text import pooled_captions
from tests import small
from tests.support import relative_error

ROOT = Path(__file__).parents[2]
IMAGES = {"source": "tiny", "count": 12, "seed": 1, "size": 64}
CLIP = {"intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "projection_dim": 8}
TEXT = {"vocab_size": 49408, "hidden_size": 8, "eos_token_id": 49407, **CLIP}
IMAGE = {"hidden_size": 8, "image_size": 16, "patch_size": 8, **CLIP}
LEVELS = [{"width": 16, "heads": 0, "depth": 1, "pattern": "CT"}, {"width": 16, "heads": 2, "depth": 1}]

SECTIONS: dict[str, dict[str, Any]] = {
    "stage_a": {"model": {"width": 16, "bottleneck_blocks": 1, "codebook_size": 4}, "crop": 32},
    "captions": {"text": TEXT, "image": IMAGE, "effnet": "parts/effnet.safetensors", "effnet_size": 64},
    "encoder": {"model": small.CONFIGS["effnet"].to_dict(), "previewer": {"width": 8}, "sizes": [32, 64]},
    "stage_b": {
        "model": {"condition_channels": 16, "clip": 8, "levels": LEVELS},
        "stage_a": "parts/stage_a.safetensors",
        "effnet": "parts/effnet.safetensors",
        "effnet_sizes": [32, 64],
        "sample_steps": 2,
    },
    "stage_c": {
        "model": {"condition_channels": 16, "clip_text": 8, "clip_text_pooled": 8, "clip_img": 8, "levels": LEVELS},
        "text": TEXT,
        "image": IMAGE,
        "effnet": "parts/effnet.safetensors",
        "effnet_size": 64,
        "previewer": "parts/previewer.safetensors",
        "repeats": 2,
        "keep_image": 0.5,
        "sample_steps": 2,
    },
    "controlnet": {
        "filter": "canny",
        "filter_params": {"resize": 48},
        "model": {
            "blocks": [0, 2],
            "features": 8,
            "stem": 4,
            "stages": [{"fused": True, "expansion": 1, "stride": 2, "width": 8, "depth": 1}] * 4,
        },
        "stage_c": "parts/stage_c.safetensors",
        "text_encoder": "parts/text_encoder.safetensors",
        "effnet": "parts/effnet.safetensors",
        "effnet_size": 64,
        "hint_size": 64,
        "previewer": "parts/previewer.safetensors",
        "repeats": 2,
        "sample_steps": 2,
    },
    "high_res_guides": {
        "model": {"width": 8, "heads": 2, "groups": 4, "timestep_channels": 8},
        "stage_c": "parts/stage_c.safetensors",
        "text_encoder": "parts/text_encoder.safetensors",
        "effnet": "parts/effnet.safetensors",
        "effnet_size": 32,
        "high_sizes": [64, 96],
        "previewer": "parts/previewer.safetensors",
        "repeats": 2,
        "drop_caption": 0.5,
        "sample_steps": 2,
    },
    "ip_adapter": {
        "model": {"tokens": 2, "width": 8, "heads": 2, "depth": 1},
        "stage_c": "parts/stage_c.safetensors",
        "text_encoder": "parts/text_encoder.safetensors",
        "image_encoder": "parts/image_encoder.safetensors",
        "effnet": "parts/effnet.safetensors",
        "effnet_size": 64,
        "previewer": "parts/previewer.safetensors",
        "repeats": 2,
        "sample_steps": 2,
    },
}
PLAIN = {"steps": 4, "batch_size": 4, "log_every": 1, "checkpoint_every": 2, "sample_every": 4, "device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the trained parts that tasks start from."""
    folder = tmp_path_factory.mktemp("training")
    (folder / "parts").mkdir()
    for kind in ("stage_a", "effnet", "text_encoder", "image_encoder", "stage_c"):
        save_model(small.part(kind), folder / "parts" / f"{kind}.safetensors")
    previewer = initialize(Previewer(PreviewerConfig(width=8))).eval()
    save_model(previewer, folder / "parts" / "previewer.safetensors")
    return folder


def data(task: str, output: str, changes: dict[str, Any], **section: Any) -> dict[str, Any]:
    whole = {"images": IMAGES, "cache": "cache", **SECTIONS[task], **section}
    return {"task": task, "output": output, **PLAIN, **changes, task: whole}


def config(
    folder: Path, task: str, output: str = "none", *, changes: dict[str, Any] | None = None, **section: Any
) -> Any:
    return parse_config(data(task, output, changes or {}, **section), SETTINGS, where="test", root=folder)


def build(folder: Path, task: str, **section: Any) -> Any:
    return TASKS[task].task(config(folder, task, **section))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("task", SECTIONS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_each_trains_samples_and_exports(folder: Path, tmp_path: Path, task: str, precision: str) -> None:
    settings = config(folder, task, str(tmp_path), changes={"precision": precision})
    built = TASKS[task].task(settings)
    before = {k: v.clone() for m in built.modules.values() for k, v in m.state_dict().items()}
    outcome = fit(built, settings)
    assert outcome.complete
    assert (tmp_path / "samples" / "step_00000004.png").exists() == (task != "captions")
    changed = {k for m in built.modules.values() for k, v in m.state_dict().items() if not torch.equal(v, before[k])}
    assert len(changed) > len(before) // 3
    for name in sorted(set(built.modules) - {"reader"}):
        net = load_model(tmp_path / f"{name}.safetensors")
        assert {p.dtype for p in net.parameters()} == {torch.float16}


@pytest.mark.parametrize("task", SECTIONS)
@pytest.mark.parametrize("ema", [0, 0.9])
def test_each_trains_with_weights_in_halves(folder: Path, tmp_path: Path, task: str, ema: float) -> None:
    changes = {"precision": "bfloat16", "weights_dtype": "bfloat16", "ema": ema, "held_out": 4, "validate_every": 2}
    settings = config(folder, task, str(tmp_path), changes=changes)
    built = TASKS[task].task(settings)
    assert fit(built, settings).complete
    assert torch.bfloat16 in {p.dtype for module in built.modules.values() for p in module.parameters()}
    for name in sorted(set(built.modules) - {"reader"}):
        assert {p.dtype for p in load_model(tmp_path / f"{name}.safetensors").parameters()} == {torch.float16}


@pytest.mark.parametrize("task", SECTIONS)
def test_batches_follow_from_their_number(folder: Path, task: str) -> None:
    a, b = build(folder, task), build(folder, task)
    for index in (0, 5):
        x, y = a.batch(index), b.batch(index)
        for s, t in zip(x, y, strict=True):
            assert torch.equal(s, t) if isinstance(s, torch.Tensor) else s == t
        a.batch(3)


@pytest.mark.parametrize("task", SECTIONS)
def test_a_changed_data_set_is_noticed(folder: Path, tmp_path: Path, task: str) -> None:
    changes = {"steps": 1, "sample_every": None}
    images = tmp_path / "images"
    images.mkdir()
    for number in range(12):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(images / f"{number}.png")
    given = {"images": {"source": "folder", "path": str(images), "size": 64}}
    settings = config(folder, task, str(tmp_path / "run"), changes=changes, **given)
    fit(TASKS[task].task(settings), settings)
    Image.new("RGB", (64, 64), (0, 9, 0)).save(images / "7.png")
    with pytest.raises(RunConflict, match="the images or their captions are not those of the run there"):
        fit(TASKS[task].task(settings), settings)


@pytest.mark.parametrize("task", ["stage_a", "stage_c", "controlnet"])
def test_the_loss_on_held_out_images_is_logged_and_changes_nothing(folder: Path, tmp_path: Path, task: str) -> None:
    adaptive = {} if task == "stage_a" else {"diffusion": {"loss_weight": "adaptive"}}
    changes = {"held_out": 5, "sample_every": None}
    states = []
    for name, every in (("without", None), ("with", 2)):
        settings = config(folder, task, str(tmp_path / name), changes={**changes, "validate_every": every}, **adaptive)
        built = TASKS[task].task(settings)
        fit(built, settings)
        states.append(load_state(tmp_path / name))
    without, with_validation = states
    assert without is not None
    assert with_validation is not None
    for module, weights in without["modules"].items():
        assert all(torch.equal(value, with_validation["modules"][module][key]) for key, value in weights.items())
    lines = [line for line in read_metrics(tmp_path / "with") if "validation_loss" in line]
    assert [line["step"] for line in lines] == [2, 4]
    trainer = Trainer(built, settings)
    assert trainer.validate() == trainer.validate()
    if adaptive:
        quarters = [value for name, value in trainer.validate().items() if "mse_quarter" in name]
        assert len(quarters) == 4
        assert 0.5 * min(quarters) <= trainer.validate()["validation_mse"] <= max(quarters)


@pytest.mark.parametrize("task", SECTIONS)
def test_fresh_weights_follow_from_the_seed(folder: Path, task: str) -> None:
    a, b = build(folder, task), build(folder, task)
    other = TASKS[task].task(config(folder, task, changes={"seed": 1}))
    same = [
        torch.equal(x, y)
        for m in a.modules
        for x, y in zip(a.modules[m].parameters(), b.modules[m].parameters(), strict=True)
    ]
    assert all(same)
    assert any(
        not torch.equal(x, y)
        for m in a.modules
        for x, y in zip(a.modules[m].parameters(), other.modules[m].parameters(), strict=True)
    )


def test_stage_a_learns_and_its_latents_have_deviation_one(folder: Path, tmp_path: Path) -> None:
    settings = config(
        folder, "stage_a", str(tmp_path), changes={"steps": 40, "learning_rate": 5e-3, "batch_size": 8, "ema": 0.9}
    )
    task = TASKS["stage_a"].task(settings)
    outcome = fit(task, settings)
    assert outcome.metrics["psnr"] > read_metrics(tmp_path)[0]["psnr"] + 3
    net: Any = load_model(tmp_path / "stage_a.safetensors", dtype=torch.float32)
    latents = torch.cat([net.encode(task.batch(i)) for i in range(4)])
    assert latents.mean(dim=(0, 2, 3)).abs().max() < 0.3
    assert (latents.std(dim=(0, 2, 3)) - 1).abs().max() < 0.3


def test_the_encoders_second_decoder_is_trained_and_dropped(folder: Path, tmp_path: Path) -> None:
    settings = config(folder, "encoder", str(tmp_path), detail={"width": 8}, crop=32)
    task = TASKS["encoder"].task(settings)
    fit(task, settings)
    assert set(task.modules) == {"effnet", "previewer", "detail"}
    assert sorted(p.stem for p in tmp_path.glob("*.safetensors")) == ["effnet", "previewer"]


def test_stage_b_drops_effnet_and_draws_its_size(folder: Path) -> None:
    task = build(folder, "stage_b", drop_effnet=0.5)
    batches = [task.batch(i) for i in range(30)]
    assert {b.effnet.shape[-1] for b in batches} == {1, 2}
    dropped = torch.cat([~b.effnet.flatten(1).any(dim=1) for b in batches]).float().mean()
    assert 0.3 < dropped < 0.7
    assert batches[0].latents.shape == (4, 4, 16, 16)


def test_stage_b_without_a_text_encoder_is_deaf_to_text(folder: Path, tmp_path: Path) -> None:
    settings = config(folder, "stage_b", str(tmp_path))
    fit(TASKS["stage_b"].task(settings), settings)
    net: Any = load_model(tmp_path / "stage_b.safetensors", dtype=torch.float32)
    x, r, effnet = torch.randn(1, 4, 16, 16), torch.rand(1), torch.randn(1, 16, 2, 2)
    deaf = net(x, r, effnet, torch.randn(1, 1, 8)), net(x, r, effnet, torch.zeros(1, 1, 8))
    assert relative_error(*deaf) < 1e-6


def test_stage_b_with_a_text_encoder_reads_the_pooled_captions(folder: Path) -> None:
    text = {"text_encoder": "parts/text_encoder.safetensors"}
    model = {**SECTIONS["stage_b"]["model"], "clip": small.POOLED}
    task = build(folder, "stage_b", model=model, drop_caption=0.0, **text)
    batch = task.batch(0)
    captions = [task.data.captions[row] for row in task.order.rows(0, 4)]
    net: Any = load_model(folder / text["text_encoder"], dtype=torch.float32)
    assert relative_error(batch.clip, pooled_captions(net, captions)) < 1e-5
    empty = build(folder, "stage_b", model=model, drop_caption=1.0, **text).batch(0).clip
    assert relative_error(empty, pooled_captions(net, [""] * 4)) < 1e-5
    with pytest.raises(InvalidConfig, match="clip is 8"):
        build(folder, "stage_b", **text)


@pytest.mark.slow
def test_the_encoders_learn_to_say_the_captions(folder: Path, tmp_path: Path) -> None:
    changes = {"steps": 60, "batch_size": 12, "learning_rate": 0.01}
    settings = config(folder, "captions", str(tmp_path), changes=changes)
    fit(TASKS["captions"].task(settings), settings)
    metrics = read_metrics(tmp_path)
    first, last = metrics[0], metrics[-1]
    assert last["from_text"] < 0.5 * first["from_text"]
    assert last["from_image"] < 0.5 * first["from_image"]


def test_the_encoders_may_be_asked_for_some_words_alone(folder: Path, tmp_path: Path) -> None:
    changes = {"steps": 1, "batch_size": 12, "ema": 0.0}
    settings = config(folder, "captions", str(tmp_path), changes=changes, words=["circle", "star"], embedding_noise=0.0)
    task = TASKS["captions"].task(settings)
    torch.nn.init.zeros_(task.modules["reader"][-1].weight)
    torch.nn.init.zeros_(task.modules["reader"][-1].bias)
    _, terms = task.loss(task.batch(0), generator())
    # A reader that knows nothing says one half of each word.
    torch.testing.assert_close(terms["from_image"], 2 * torch.tensor(2.0).log())
    task.loss(task.batch(0), generator())[0].backward()
    rows = task.modules["reader"][-1].bias.grad.nonzero().flatten()
    assert 0 < len(rows) <= 2
    with pytest.raises(InvalidConfig, match="no caption has hexagon"):
        build(folder, "captions", words=["hexagon"])


def test_stage_c_keeps_an_image_encoder_that_is_not_to_be_trained(folder: Path, tmp_path: Path) -> None:
    settings = config(folder, "stage_c", str(tmp_path), train_image_encoder=False)
    task = TASKS["stage_c"].task(settings)
    before = {name: {k: v.clone() for k, v in m.state_dict().items()} for name, m in task.modules.items()}
    fit(task, settings)
    same = {
        name: all(torch.equal(v, before[name][k]) for k, v in m.state_dict().items())
        for name, m in task.modules.items()
    }
    assert same == {"stage_c": False, "text_encoder": False, "image_encoder": True}


def test_stage_c_starts_with_the_encoders_it_is_given(folder: Path, tmp_path: Path) -> None:
    settings = config(folder, "captions", str(tmp_path), changes={"export_dtype": "float32"})
    fit(TASKS["captions"].task(settings), settings)
    built = build(folder, "stage_c", encoders=str(tmp_path))
    for name in ("text_encoder", "image_encoder"):
        trained = load_model(tmp_path / f"{name}.safetensors").state_dict()
        assert all(torch.equal(value, trained[key]) for key, value in built.modules[name].state_dict().items())


FILES = {
    **dict.fromkeys(("model", "text", "image")),
    "start": "parts/stage_c.safetensors",
    "text_encoder": "parts/text_encoder.safetensors",
    "image_encoder": "parts/image_encoder.safetensors",
}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_stage_c_is_finetuned_with_its_encoders_as_they_are(folder: Path, tmp_path: Path, precision: str) -> None:
    frozen = {"train_text_encoder": False, "train_image_encoder": False}
    settings = config(folder, "stage_c", str(tmp_path), changes={"precision": precision}, **FILES, **frozen)
    task = TASKS["stage_c"].task(settings)
    before = {k: v.clone() for k, v in task.text_encoder.state_dict().items()}
    assert fit(task, settings).complete
    assert list(task.modules) == ["stage_c"]
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == ["stage_c.safetensors"]
    assert all(torch.equal(v, before[k]) for k, v in task.text_encoder.state_dict().items())
    made, start = load_model(tmp_path / "stage_c.safetensors"), small.part("stage_c")
    assert made.config == start.config
    assert not torch.equal(made.get_parameter("clf.1.weight").float(), start.get_parameter("clf.1.weight"))


def test_encoders_from_files_can_be_trained_too(folder: Path, tmp_path: Path) -> None:
    settings = config(folder, "stage_c", str(tmp_path), **FILES, train_image_encoder=False)
    task = TASKS["stage_c"].task(settings)
    fit(task, settings)
    assert list(task.modules) == ["stage_c", "text_encoder"]
    made = load_model(tmp_path / "text_encoder.safetensors", dtype=torch.float32)
    weights = small.part("text_encoder").state_dict()
    assert any(not torch.equal(v, weights[k].half().float()) for k, v in made.state_dict().items())


@pytest.mark.parametrize("task", ["stage_c", "stage_b", "controlnet"])
def test_blocks_that_are_calculated_again_give_the_same_gradients_in_less_memory(folder: Path, task: str) -> None:
    kept = [0, 0]

    def gradients(again: bool) -> dict[str, torch.Tensor]:
        built = TASKS[task].task(config(folder, task, changes={"gradient_checkpointing": again}))
        named = {f"{name}.{key}": p for name, m in built.modules.items() for key, p in m.train().named_parameters()}
        for parameter in named.values():  # a fresh network predicts zeros
            torch.nn.init.normal_(parameter, std=0.1, generator=generator())

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept[again] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss, _ = built.loss(built.batch(0), generator())
        loss.backward()
        return {name: p.grad for name, p in named.items() if p.grad is not None}

    plain, again = gradients(False), gradients(True)
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient)
    assert kept[True] < kept[False]


def test_blocks_can_be_compiled(folder: Path, tmp_path: Path) -> None:
    changes = {"torch_compile_backend": "eager", "steps": 2, "sample_every": None}
    settings = config(folder, "stage_c", str(tmp_path), changes=changes, **FILES)
    assert fit(TASKS["stage_c"].task(settings), settings).complete
    assert load_model(tmp_path / "stage_c.safetensors").config == small.part("stage_c").config


def test_offset_noise_moves_whole_channels(folder: Path) -> None:
    seen: list[torch.Tensor] = []

    def predict(noised: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        seen.append(noised)
        return torch.zeros_like(noised)

    for amount in (0.0, 0.5):
        task = build(folder, "stage_c", diffusion={"offset_noise": amount})
        task.diffusion_loss(predict, torch.zeros(4, 16, 8, 8), generator())
    difference = seen[1] - seen[0]
    assert difference.abs().max() > 0.05
    assert relative_error(difference, difference.mean(dim=(2, 3), keepdim=True).expand_as(difference)) < 1e-5


def test_stage_c_starts_from_one_with_smaller_filters(folder: Path, tmp_path: Path) -> None:
    settings = config(folder, "stage_c", str(tmp_path), changes={"export_dtype": "float32"})
    task = TASKS["stage_c"].task(settings)
    fit(task, settings)
    model = {**SECTIONS["stage_c"]["model"], "kernel_size": 5}
    grown = build(folder, "stage_c", start=str(tmp_path / "stage_c.safetensors"), model=model).modules["stage_c"]
    inputs = torch.randn(2, 16, 4, 4), torch.rand(2), torch.randn(2, 3, 8), torch.randn(2, 8), torch.zeros(2, 8)
    trained = load_model(tmp_path / "stage_c.safetensors")
    assert relative_error(grown.eval()(*inputs), trained(*inputs)) < 1e-5


def test_stage_b_starts_from_the_one_it_is_given(folder: Path, tmp_path: Path) -> None:
    settings = config(folder, "stage_b", str(tmp_path), changes={"export_dtype": "float32"})
    fit(TASKS["stage_b"].task(settings), settings)
    built = build(folder, "stage_b", start=str(tmp_path / "stage_b.safetensors"))
    trained = load_model(tmp_path / "stage_b.safetensors").state_dict()
    assert all(torch.equal(value, trained[key]) for key, value in built.modules["stage_b"].state_dict().items())


def test_stage_c_tokens_are_those_of_the_captions(folder: Path) -> None:
    task = build(folder, "stage_c", drop_caption=0.0, drop_caption_with_image=0.0)
    batch = task.batch(2)
    captions = [task.data.captions[row] for row in task.order.rows(2, 2)]
    ids, mask = TextEncoder(task.modules["text_encoder"]).tokenize(captions)
    assert torch.equal(batch.ids, ids)
    assert torch.equal(batch.mask, mask)


def test_stage_c_drops_captions_and_images(folder: Path) -> None:
    task = build(folder, "stage_c", drop_caption=0.0, drop_caption_with_image=1.0)
    empty, _ = TextEncoder(task.modules["text_encoder"]).tokenize([""])
    for index in range(12):
        batch = task.batch(index)
        without_text = [bool(torch.equal(ids, empty[0])) for ids in batch.ids]
        assert without_text == [row in batch.with_image.tolist() for row in range(2)]
        assert len(batch.images) == len(batch.with_image)


def test_of_pairs_stage_c_sees_the_first_and_learns_the_second(folder: Path) -> None:
    settings = {"count": 12, "seed": 1, "size": 64}
    pairs = build(folder, "stage_c", keep_image=1.0, images={"source": "tiny_references", **settings})
    images, captions = references.batch(1, 12, size=64)
    batch = pairs.batch(0)
    rows = pairs.order.rows(0, len(batch.latents))
    shown, learned = np.split(images[rows], 2, axis=2)
    assert [pairs.data.captions[int(row)] for row in rows] == [captions[row] for row in rows]
    size = batch.images.shape[-1]
    small_ones = F.interpolate(to_images(torch.from_numpy(shown)), (size, size), mode="bicubic", antialias=True)
    torch.testing.assert_close(batch.images, small_ones.clamp(0, 1), atol=1 / 255, rtol=0)
    encoder = load_model(folder / "parts" / "effnet.safetensors")
    with torch.no_grad():
        latents = encode_latents(encoder, to_images(torch.from_numpy(learned)), 64)
    torch.testing.assert_close(batch.latents, torch.from_numpy(latents).float(), atol=0.01, rtol=0.01)


@pytest.mark.parametrize("keep_image", [0.0, 1.0])
def test_the_image_encoder_learns_from_the_images_it_is_given(folder: Path, keep_image: float) -> None:
    task = build(folder, "stage_c", keep_image=keep_image)
    net: Any = task.modules["stage_c"]
    torch.nn.init.normal_(net.clf[1].weight)
    loss, _ = task.loss(task.batch(0), generator())
    loss.backward()
    grads = [p.grad for p in task.modules["image_encoder"].parameters() if p.grad is not None]
    assert bool(grads) == bool(keep_image)
    assert all(p.grad is not None for p in task.modules["text_encoder"].text_projection.parameters())


def test_repeats_share_conditions_and_not_noise(folder: Path) -> None:
    """The loss of a batch with repeats is that of the same images written out twice."""
    task = build(folder, "stage_c", keep_image=1.0)
    torch.nn.init.normal_(task.modules["stage_c"].clf[1].weight)
    batch = task.batch(0)
    with torch.no_grad():
        expected, _ = task.loss(batch, generator())
        twice = build(folder, "stage_c", keep_image=1.0, repeats=1)
        for name, module in twice.modules.items():
            module.load_state_dict(task.modules[name].state_dict())
        latents, ids, mask, images = (x.repeat_interleave(2, dim=0) for x in batch[:4])
        extents = batch.extents.repeat_interleave(2, dim=0)
        written_out = type(batch)(latents, ids, mask, images, torch.arange(4), extents, batch.importance)
        loss, _ = twice.loss(written_out, generator())
    assert relative_error(loss, expected) < 1e-5


def test_adaptive_loss_weights_are_part_of_the_state(folder: Path, tmp_path: Path) -> None:
    settings = config(folder, "stage_c", str(tmp_path), diffusion={"loss_weight": "adaptive"})
    fit(TASKS["stage_c"].task(settings), settings)
    state = load_state(tmp_path)
    assert state is not None
    learned = state["task"]["loss_weight.losses"]
    assert (learned != 1).any()
    trainer = Trainer(TASKS["stage_c"].task(settings), settings)
    trainer.resume()
    assert torch.equal(trainer.task.state()["loss_weight.losses"], learned)


@pytest.mark.parametrize(
    ("task", "section", "words"),
    [
        ("stage_a", {"crop": 34}, "crop 34"),
        ("stage_a", {"crop": 96}, "crop 96"),
        ("stage_a", {"model": {"breadth": 3}}, "stage_a: model: StageAConfig has no breadth"),
        ("encoder", {"sizes": [50]}, "multiples of 32"),
        ("stage_c", {"repeats": 3}, "repeats 3 must divide batch_size 4"),
        (
            "stage_c",
            {"image": {**SECTIONS["stage_c"]["image"], "projection_dim": 6}},
            "clip_img is 8, the encoder gives 6",
        ),
        ("stage_b", {"diffusion": {"loss_weight": "p3"}}, "p3"),
    ],
)
def test_settings_that_do_not_fit(folder: Path, task: str, section: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidConfig, match=words):
        build(folder, task, **section)


KILLED = """
import os, signal, sys
sys.path.append(sys.argv[1])
import cascade.tiny.image_sources
from cascade.training import SETTINGS, TASKS, fit, read_config
config = read_config(sys.argv[2], SETTINGS, root=sys.argv[3])
fit(TASKS[config.task].task(config), config,
    on_step=lambda step, steps, metrics: step == 6 and os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills by signal")
@pytest.mark.parametrize("task", ["stage_a", "stage_c"])
def test_killed_in_the_middle_and_started_again_it_ends_with_the_same_weights(
    folder: Path, tmp_path: Path, task: str
) -> None:
    changes = {"steps": 9, "checkpoint_every": 4, "threads": torch.get_num_threads()}
    section = {"diffusion": {"loss_weight": "adaptive"}} if task == "stage_c" else {}
    for name in ("whole", "killed"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(data(task, str(tmp_path / name), changes, **section)), encoding="utf-8")
    command = [sys.executable, "-c", KILLED, str(ROOT), str(tmp_path / "killed.yaml"), str(folder)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -signal.SIGKILL
    state = load_state(tmp_path / "killed")
    assert state is not None
    assert state["step"] == 4
    for name in ("whole", "killed"):
        settings = read_config(tmp_path / f"{name}.yaml", SETTINGS, root=folder)
        assert fit(TASKS[task].task(settings), settings).complete
    files = sorted(p.name for p in (tmp_path / "whole").glob("*.safetensors"))
    assert files
    for file in files:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "killed" / file).read_bytes()
    a, b = load_state(tmp_path / "whole"), load_state(tmp_path / "killed")
    assert a is not None
    assert b is not None
    for key in ("modules", "ema"):
        for module in a[key]:
            assert all(torch.equal(v, b[key][module][k]) for k, v in a[key][module].items())
