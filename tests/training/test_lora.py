"""LoRA and learned tokens: what is trained, what comes out, and that it is what the training saw."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cascade.adapters import Applied, attach, read_lora
from cascade.adapters.lora import TABLE, LowRank
from cascade.adapters.tokens import vectors_of
from cascade.checkpoints import save_model
from cascade.conditioning import TextEncoder, tokenizer
from cascade.errors import CascadeError, IncompatibleCheckpoint, InvalidConfig, RunConflict
from cascade.models import Previewer, PreviewerConfig, initialize
from cascade.training import SETTINGS, TASKS, fit, parse_config
from cascade.training.data import cached
from cascade.training.folders import FolderImages
from cascade.training.lora import LoraTask
from cascade.training.lora_layers import Change
from cascade.training.networks import sheet
from tests import small
from tests.support import relative_error
from tests.training.test_folders import read

WORD = "[heart]"
PLAIN = {
    "steps": 4,
    "batch_size": 2,
    "log_every": 1,
    "checkpoint_every": 2,
    "learning_rate": 1e-2,
    "device": "cpu",
    "ema": 0.0,
}
BASE: dict[str, Any] = {
    "images": {"source": "folder", "path": "images", "size": 64},
    "cache": "cache",
    "stage_c": "parts/stage_c.safetensors",
    "text_encoder": "parts/text_encoder.safetensors",
    "effnet": "parts/effnet.safetensors",
    "previewer": "parts/previewer.safetensors",
    "effnet_size": 64,
    "rank": 2,
    "sample_steps": 2,
}
TOKENS = [{"text": WORD, "initializer": "^dog</w>"}]


def image(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    for kind in ("stage_c", "effnet", "text_encoder"):
        (folder / "parts").mkdir(exist_ok=True)
        save_model(small.part(kind), folder / "parts" / f"{kind}.safetensors")
    save_model(initialize(Previewer(PreviewerConfig(width=8))).eval(), folder / "parts" / "previewer.safetensors")
    (folder / "images").mkdir()
    for number in range(3):
        image(number).save(folder / "images" / f"{number}.png")
        (folder / "images" / f"{number}.txt").write_text(f"a red {WORD}, {number}", encoding="utf-8")
    return folder


def config(folder: Path, output: str, *, changes: dict[str, Any] | None = None, **section: Any) -> Any:
    data = {"task": "lora", "output": output, **PLAIN, **(changes or {}), "lora": {**BASE, **section}}
    return parse_config(data, SETTINGS, where="test", root=folder)


def train(folder: Path, output: Path, **section: Any) -> LoraTask:
    settings = config(folder, str(output), **section)
    task = TASKS["lora"].task(settings)
    fit(task, settings)
    return task


def prediction(task: LoraTask) -> torch.Tensor:
    x = torch.randn(2, 16, 2, 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return task.net.denoise(x, torch.tensor([0.3, 0.8]), task._conditions(task.prompts[:2]))


VARIANTS: dict[str, dict[str, Any]] = {
    "attention": {},
    "key_value": {"target_modules": ["key_value"], "alpha": 1.0},
    "all": {"target_modules": ["all"], "use_dora": True},
    "tokens": {
        "target_modules": None,
        "tokens": [{"text": WORD, "vectors": 2}, {"text": "[other]", "initializer": "a dog"}],
    },
    "loha": {"target_modules": ["all"], "kind": "loha", "alpha": 1.0},
    "lokr": {"target_modules": ["all"], "text_encoder_modules": ["attention"], "kind": "lokr"},
    "lokr of one row": {"target_modules": ["all"], "kind": "lokr", "factor": 1, "rank": 1},
    "oft": {"target_modules": ["all"], "kind": "oft", "rank": 4},
    "words": {"target_modules": ["attention"], "words": ["^red</w>", "a"], "tokens": TOKENS},
    "everything": {
        "target_modules": ["all"],
        "text_encoder_modules": ["all"],
        "tokens": TOKENS,
        "use_dora": True,
        "token_learning_rate": 0.1,
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_file_does_what_the_training_did(folder: Path, tmp_path: Path, variant: str) -> None:
    """In training a change acts beside its layer, in use it is added to the weights: the same predictions."""
    section = VARIANTS[variant]
    task = train(folder, tmp_path, changes={"export_dtype": "float32"}, **section)
    trained = prediction(task)
    task.wiring.on = False
    lora = read_lora(tmp_path / "lora.safetensors")
    encoder = task._text_encoder
    with attach([Applied(lora)], stage_c=task.net, text_encoder=encoder, tokenizer=task.base_tokenizer):
        assert relative_error(prediction(task), trained) < 1e-5
    if variant != "tokens":  # whose ids mean nothing where no word is known
        task.wiring.on = not section.get("tokens")
        assert len(lora.changes["stage_c"]) == sum(kind == "stage_c" for kind, _ in task.adapter.places.values())
    assert [token.text for token in lora.tokens] == [token["text"] for token in section.get("tokens", [])]


def test_all_that_can_be_trained_is_trained_in_bfloat16(folder: Path, tmp_path: Path) -> None:
    trained, losses = {}, {}
    for precision in ("float32", "bfloat16"):
        changes = {"precision": precision}
        task = train(folder, tmp_path / precision, changes=changes, **VARIANTS["everything"])
        task.adapter.eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            losses[precision] = float(task.loss(task.batch(0), torch.Generator().manual_seed(0))[0])
        trained[precision] = {key for key, change in task.adapter.changes.items() if bool(change.up.abs().max() > 0)}
    assert trained["bfloat16"] == trained["float32"]
    assert any(key.startswith("text_encoder") for key in trained["bfloat16"])
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)


@pytest.mark.parametrize("variant", ["everything", "lokr", "oft"])
def test_what_is_trained_may_be_in_bfloat16(folder: Path, tmp_path: Path, variant: str) -> None:
    changes = {"precision": "bfloat16", "weights_dtype": "bfloat16"}
    task = train(folder, tmp_path, changes=changes, **VARIANTS[variant])
    assert {parameter.dtype for parameter in task.adapter.parameters()} == {torch.bfloat16}
    assert read_lora(tmp_path / "lora.safetensors").changes.keys() >= {"stage_c"}


def test_base_networks_stay_as_they_are(folder: Path, tmp_path: Path) -> None:
    task = train(folder, tmp_path, target_modules=["all"], text_encoder_modules=["attention"], tokens=TOKENS)
    for net, kind in ((task.net, "stage_c"), (task._text_encoder, "text_encoder")):
        before = small.part(kind).state_dict()
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not task.net.get_parameter("clf.1.weight").requires_grad
    still = [key for key, change in task.adapter.changes.items() if not bool(change.up.abs().max() > 0)]
    assert still == ["stage_c-clip_img_mapper"]  # which hears nothing while there are no images
    assert (tmp_path / "samples").exists() is False


def test_samples_are_drawn_with_the_lora_and_leave_no_trace(folder: Path, tmp_path: Path) -> None:
    task = train(folder, tmp_path, changes={"sample_every": 2}, tokens=TOKENS, sample_prompts=[f"a {WORD}", "a dog"])
    assert Image.open(tmp_path / "samples" / "step_00000004.png").size == (256, 128 + 22)  # a line of text below each
    assert task.wiring.on
    assert all(torch.equal(v, small.part("stage_c").state_dict()[k]) for k, v in task.net.state_dict().items())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("section", [{}, {"text_encoder_modules": ["attention"], "tokens": TOKENS, "dropout": 0.3}])
def test_stopped_and_started_again_it_ends_with_the_same_file(
    folder: Path, tmp_path: Path, precision: str, section: dict[str, Any]
) -> None:
    changes = {"steps": 6, "ema": 0.9, "precision": precision}
    whole, stopped = (
        config(folder, str(tmp_path / name), changes=changes, target_modules=["all"], **section)
        for name in ("whole", "stopped")
    )
    steps: list[int] = []
    outcome = fit(
        TASKS["lora"].task(stopped),
        stopped,
        on_step=lambda step, total, metrics: steps.append(step),
        should_stop=lambda: len(steps) >= 3,
    )
    assert (outcome.step, outcome.complete) == (3, False)
    for settings in (whole, stopped):
        assert fit(TASKS["lora"].task(settings), settings).complete
    one, other = ((tmp_path / name / "lora.safetensors").read_bytes() for name in ("whole", "stopped"))
    assert one == other


def test_it_does_not_go_on_with_other_images(folder: Path, tmp_path: Path) -> None:
    images = {**BASE["images"], "path": str(tmp_path / "images")}
    (tmp_path / "images").mkdir()
    image(0).save(tmp_path / "images" / "owl.png")
    train(folder, tmp_path / "run", images=images)
    image(1).save(tmp_path / "images" / "owl.png")
    with pytest.raises(RunConflict, match="not those of the run"):
        train(folder, tmp_path / "run", images=images)


def test_it_learns(folder: Path, tmp_path: Path) -> None:
    losses = []

    def fixed(task: Any) -> float:
        batch = task.batch(0)
        with torch.no_grad():
            return float(task.loss(batch, torch.Generator().manual_seed(0))[0])

    settings = config(folder, str(tmp_path), changes={"steps": 40}, target_modules=["all"], drop_caption=0.0, rank=8)
    task = TASKS["lora"].task(settings)
    losses.append(fixed(task))
    fit(task, settings)
    task.adapter.eval()
    losses.append(fixed(task))
    assert losses[1] < 0.9 * losses[0]


def test_formats_are_written_and_told_apart(folder: Path, tmp_path: Path) -> None:
    formats = ["cascade", "released", "kohya", "onetrainer"]
    task = train(folder, tmp_path, tokens=TOKENS, formats=formats, name="thing")
    names = ["thing", *(f"thing_{name}" for name in formats[1:])]
    read = {name: read_lora(tmp_path / f"{name}.safetensors", config=task.net.config) for name in names}
    assert [lora.format for lora in read.values()] == formats
    table = task._text_encoder.get_parameter(TABLE).detach()
    [whole] = read["thing"].tokens
    [relative] = read["thing_released"].tokens
    assert relative.initializer == "^dog</w>"
    found = vectors_of(relative, table, tokenizer())
    assert relative_error(found, whole.vectors) < 1e-2
    query = next(name for name in read["thing"].changes["stage_c"] if name.endswith("to_q.weight"))
    weight = task.net.get_parameter(query).detach()
    for lora in read.values():
        expected = read["thing"].changes["stage_c"][query].delta(weight)
        assert relative_error(lora.changes["stage_c"][query].delta(weight), expected) < 1e-2


def test_the_file_tells_how_it_was_trained(folder: Path, tmp_path: Path) -> None:
    train(folder, tmp_path, tokens=TOKENS, alpha=4.0, class_images={"source": "tiny", "count": 5, "size": 64})
    lora = read_lora(tmp_path / "lora.safetensors")
    assert (lora.ranks, lora.alphas) == ((2,), (4.0,))
    told = lora.training
    assert (told["steps"], told["images"], told["class_images"], told["target_modules"]) == (4, 3, 5, ["attention"])
    assert str(folder) not in str(told)


def test_class_images_stand_beside_the_others(folder: Path, tmp_path: Path) -> None:
    class_images = {"source": "tiny", "count": 5, "size": 64}
    settings = config(folder, str(tmp_path), class_images=class_images, class_loss_weight=0.25, drop_caption=0.0)
    task = TASKS["lora"].task(settings)
    batch = task.batch(1)
    assert batch.importance.tolist() == [1, 1, 0.25, 0.25]
    captions = [*task.data.captions, *task.class_data.captions]
    rows = [*task.order.rows(1, 2), *(task.class_order.rows(1, 2) + 3)]
    assert torch.equal(batch.texts, task.rows[torch.tensor(rows)])
    assert all(captions[row].startswith(f"a red {WORD}") == (row < 3) for row in rows)
    loss, metrics = task.loss(batch, torch.Generator().manual_seed(0))
    assert 0 < loss.item() < metrics["mse"].item() * 2


def test_class_images_can_hold_the_network_to_what_it_said(folder: Path, tmp_path: Path) -> None:
    class_images = {"source": "tiny", "count": 5, "size": 64}
    section: dict[str, Any] = {
        "class_images": class_images,
        "target_modules": ["all"],
        "text_encoder_modules": ["all"],
        "tokens": TOKENS,
    }
    task = TASKS["lora"].task(config(folder, str(tmp_path), class_target="network", class_loss_weight=1e6, **section))
    batch = task.batch(1)

    def loss() -> float:
        return float(task.loss(batch, torch.Generator().manual_seed(0))[0].detach())

    # Nothing has changed yet, so nothing of a million times the prior's error is left.
    assert 0 < loss() < 100
    with torch.no_grad():
        for change in task.adapter.changes.values():
            change.up.fill_(0.1)
    assert loss() > 1000
    section["class_images"] = {"source": "folder", "path": str(folder), "size": 64}
    with pytest.raises(InvalidConfig, match=r"captions of class_images have \[heart\]"):
        TASKS["lora"].task(config(folder, str(tmp_path), class_target="network", **section))


def test_embeddings_of_a_fixed_text_encoder_are_cached_and_equal(folder: Path, tmp_path: Path) -> None:
    fixed, live = (
        TASKS["lora"].task(config(folder, str(tmp_path), **section))
        for section in ({}, {"text_encoder_modules": ["key_value"]})
    )
    assert fixed._text_encoder is None
    with torch.no_grad():
        a, b = fixed._embed(fixed.prompts), live._embed(live.prompts)
    assert relative_error(a.hidden, b.hidden) < 1e-2
    assert relative_error(a.pooled, b.pooled) < 1e-2


def test_a_word_starts_as_what_it_starts_from(folder: Path, tmp_path: Path) -> None:
    task = TASKS["lora"].task(config(folder, str(tmp_path), tokens=TOKENS))
    assert task._text_encoder is not None
    net: Any = small.part("text_encoder")
    expected = TextEncoder(net).encode([f"a red {WORD}, 0".replace(WORD, "dog")])
    row = task.data.captions.index(f"a red {WORD}, 0")
    found = task._embed(task.rows[row : row + 1])
    assert relative_error(found.hidden, expected.hidden) < 1e-5
    assert relative_error(found.pooled, expected.pooled) < 1e-5


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(6, 6, 3, groups=6)])
@pytest.mark.parametrize("dora", [False, True])
def test_a_change_beside_a_layer_is_the_change_of_its_weight(layer: Any, dora: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    change = Change(layer, 2, 3.0, 0.0, dora, generator)
    with torch.no_grad():
        change.up.normal_(generator=generator)
        if change.magnitude is not None:
            change.magnitude.uniform_(0.5, 2, generator=generator)
    x = torch.randn(2, 5, 6) if isinstance(layer, nn.Linear) else torch.randn(2, 6, 5, 5)
    with torch.no_grad():
        found = change(layer, x, layer(x))
        low: LowRank = change.to_change()
        assert low.fits(layer.weight.shape)
        layer.weight.add_(low.delta(layer.weight))
        assert relative_error(found, layer(x)) < 1e-5


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(6, 6, 3, groups=6)])
@pytest.mark.parametrize("dora", [False, True])
def test_with_a_change_a_layer_keeps_its_dtype(layer: Any, dora: bool) -> None:
    layer = layer.bfloat16()
    change = Change(layer, 2, 3.0, 0.0, dora, torch.Generator().manual_seed(0))
    x = torch.randn(2, 5, 6) if isinstance(layer, nn.Linear) else torch.randn(2, 6, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
        found = change(layer, x, output)
    assert found.dtype == output.dtype == torch.bfloat16
    assert relative_error(found, output) < 3e-2  # a fresh change changes nothing
    found.float().square().sum().backward()
    assert all(bool(part.grad.abs().max() > 0) for name, part in change.named_parameters() if name != "down")


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"target_modules": ["*.nothing"]}, "no layer of the stage_c fits"),
        ({"text_encoder_modules": ["to_q"]}, "no layer of the text_encoder fits"),
        ({"target_modules": None}, "nothing to train"),
        ({"rank": 0}, "rank: .*greater than or equal to 1, found 0"),
        ({"tokens": [{"text": "dog"}]}, "ordinary word"),
        ({"tokens": [{"text": "[a]"}, {"text": "[A]"}]}, "named twice"),
        ({"tokens": [{"text": "[a]", "initializer": "^qqqqqqqqqqqq</w>"}]}, "names no token"),
        ({"text_encoder_modules": ["all"], "formats": ["released"]}, "only holds changes of tokens"),
        ({"use_dora": True, "formats": ["released"]}, "low-rank matrices without DoRA"),
        ({"target_modules": ["all"], "formats": ["embedding"]}, "stand-alone embedding"),
        ({"images": {"source": "folder", "size": 64}}, "needs a path"),
        ({"images": {"source": "folder", "path": "nowhere", "size": 64}}, "no folder"),
        ({"images": {"source": "folder", "path": "parts", "size": 64}}, "no images"),
        ({"images": {"source": "tiny", "size": 64}}, "needs a count"),
        ({"effnet_size": 50}, "multiple of 32"),
    ],
)
def test_settings_that_do_not_fit(folder: Path, tmp_path: Path, section: dict[str, Any], words: str) -> None:
    with pytest.raises((InvalidConfig, IncompatibleCheckpoint), match=words):
        TASKS["lora"].task(config(folder, str(tmp_path), **section))


def test_an_encoder_of_another_cascade_is_refused(folder: Path, tmp_path: Path) -> None:
    from cascade import tiny

    with pytest.raises(CascadeError, match="width"):
        TASKS["lora"].task(config(folder, str(tmp_path), text_encoder=str(tiny.path("text_encoder"))))


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Good images among bad ones."""
    place = tmp_path / "mixed"
    (place / "deeper").mkdir(parents=True)
    image(0).save(place / "good_one.png")
    image(1).save(place / "deeper" / "captioned.jpg")
    (place / "deeper" / "captioned.txt").write_text("\ufeffan owl\n at night \n", encoding="utf-8")
    data = (place / "good_one.png").read_bytes()
    (place / "cut.png").write_bytes(data[: len(data) // 2])
    (place / "page.jpg").write_bytes(b"<html>not found</html>")
    (place / "empty.webp").write_bytes(b"")
    (place / "notes.md").write_text("no image", encoding="utf-8")
    return place


def test_unreadable_images_are_named_left_out_and_counted(mixed: Path) -> None:
    source = FolderImages(mixed, 32)
    images, captions = read(source)
    assert set(source.skipped) == {"cut.png", "page.jpg", "empty.webp"}
    lines = source.problems(2)
    assert all(any(name in line for line in lines) for name in source.skipped)
    assert (images.shape, images.dtype) == ((2, 32, 32, 3), np.uint8)
    assert captions == ["an owl at night", "good one"]
    assert source.uncaptioned == ["good_one.png"]
    assert read(FolderImages(mixed, 32, "a thing"))[1] == ["an owl at night", "a thing"]


def test_a_training_goes_on_with_the_good_ones(folder: Path, mixed: Path, tmp_path: Path) -> None:
    task = train(folder, tmp_path / "out", images={"source": "folder", "path": str(mixed), "size": 64})
    assert len(task.data.captions) == 2
    assert task.problems[0] == "3 of 5 images cannot be read"
    assert task.problems[-1] == "1 of 2 images without a caption: good_one.png"


def test_a_word_that_no_caption_has_is_told(folder: Path, tmp_path: Path) -> None:
    task = TASKS["lora"].task(config(folder, str(tmp_path), tokens=[*TOKENS, {"text": "[other]"}]))
    assert task.problems == ["no caption has the token [other]: it is not trained"]


def test_only_bad_images_are_refused(mixed: Path) -> None:
    for name in ("good_one.png", "deeper/captioned.jpg"):
        (mixed / name).unlink()
    with pytest.raises(InvalidConfig, match="none of its 3 images can be read"):
        read(FolderImages(mixed, 32))


def test_an_image_lies_upright_and_on_white(tmp_path: Path) -> None:
    lying = Image.new("RGB", (40, 20), "red")
    exif = lying.getexif()
    exif[0x0112] = 6  # to be turned by a quarter
    lying.paste("blue", (0, 0, 20, 20))
    lying.save(tmp_path / "lying.png", exif=exif)
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "nothing.png")
    images, _ = read(FolderImages(tmp_path, 32))
    assert (images[0, 2, 16] == (0, 0, 255)).all()
    assert (images[0, -3, 16] == (255, 0, 0)).all()
    assert (images[1] == 255).all()


def test_a_tar_holds_what_its_folder_holds(mixed: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "shard-0.tar", "w") as tar:
        for path in sorted(mixed.rglob("*.*")):
            tar.add(path, path.relative_to(mixed).as_posix())
        info = tarfile.TarInfo("link.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    source, plain = FolderImages(tmp_path / "shard-0.tar", 32), FolderImages(mixed, 32)
    (images, captions), (plain_images, plain_captions) = read(source), read(plain)
    assert sorted(captions) == sorted(plain_captions)
    assert len(source.skipped) == 3
    assert np.array_equal(images[[captions.index(caption) for caption in plain_captions]], plain_images)
    (tmp_path / "bad.tar").write_bytes(b"x" * 600)
    with pytest.raises(InvalidConfig, match=r"bad\.tar"):
        read(FolderImages(tmp_path / "bad.tar", 32))


def test_what_a_run_remembers_of_images_follows_from_their_content(tmp_path: Path) -> None:
    """Not from their times: a folder that was copied is the same."""
    buffer = io.BytesIO()
    image(0).save(buffer, "PNG")
    for number, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(buffer.getvalue())
        os.utime(tmp_path / name / "x.png", (number, number))

    def source(name: str, size: int = 32) -> str:
        images = FolderImages(tmp_path / name, size)
        return cached(tmp_path / "cache", "x", images, lambda pixels: {"images": pixels}).source

    assert FolderImages(tmp_path / "a", 32).name != FolderImages(tmp_path / "b", 32).name
    first = source("a")
    assert source("b") == first
    assert source("b", 64) != first
    (tmp_path / "b" / "x.txt").write_text("another caption", encoding="utf-8")
    assert source("b") != first


def test_a_label_of_megabytes_is_cut() -> None:
    image = sheet([torch.zeros(1, 3, 8, 8)], labels=["owl " * 1_000_000])
    assert image.width == 128
    assert image.height < 1000


@pytest.mark.parametrize("variant", ["loha", "lokr", "oft", "words", "all"])
def test_a_lora_is_trained_further_from_its_file(folder: Path, tmp_path: Path, variant: str) -> None:
    section = {**VARIANTS[variant], "previewer": None}
    first = train(folder, tmp_path / "first", changes={"export_dtype": "float32"}, **section)
    trained = prediction(first)
    start = str(tmp_path / "first" / "lora.safetensors")
    task = TASKS["lora"].task(config(folder, str(tmp_path / "second"), start=start, **section))
    assert relative_error(prediction(task), trained) < 1e-5
    fresh = TASKS["lora"].task(config(folder, str(tmp_path / "third"), **section))
    assert relative_error(prediction(fresh), trained) > 1e-4


def test_a_start_of_another_form_is_refused(folder: Path, tmp_path: Path) -> None:
    train(folder, tmp_path, **VARIANTS["words"])
    start = {"start": str(tmp_path / "lora.safetensors"), "words": ["^red</w>", "a"]}
    for section, message in (
        ({**start, "rank": 3}, "is changed there by LoRA"),
        ({**start, "kind": "loha"}, "is changed there by LoRA"),
        ({**start, "target_modules": ["key_value"]}, "the file also changes .* target_modules"),
        ({**start, "words": None}, "the file also changes text_model.embeddings.* words"),
        ({**start, "tokens": [{"text": WORD, "vectors": 2}]}, "has 1 vectors"),
    ):
        with pytest.raises(InvalidConfig, match=message):
            TASKS["lora"].task(config(folder, str(tmp_path / "second"), **section))


def test_only_the_named_words_change(folder: Path, tmp_path: Path) -> None:
    task = train(folder, tmp_path, target_modules=None, words=["^red</w>"], token_learning_rate=0.1)
    [(_, name, words)] = task.adapter.trained()
    assert name == TABLE
    ids = words.to_change().indices.tolist()
    assert [tokenizer().id_to_token(index) for index in ids] == ["red</w>"]
    assert bool(words.to_change().values.abs().max() > 0)
    assert torch.equal(task._text_encoder.get_parameter(TABLE), small.part("text_encoder").get_parameter(TABLE))
    with pytest.raises(InvalidConfig, match=r"words: '\^xqzw</w>' names no token"):
        TASKS["lora"].task(config(folder, str(tmp_path), words=["^xqzw</w>"]))


def test_dora_is_of_the_kind_lora(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="use_dora is for the kind lora"):
        TASKS["lora"].task(config(folder, str(tmp_path), kind="lokr", use_dora=True))
