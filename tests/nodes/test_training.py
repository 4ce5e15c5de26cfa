"""A LoRA trained inside a real host: what comes out, how it stops and goes on, and what it leaves behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cascade.adapters import read_lora
from tests.nodes import networks
from tests.nodes.hosting import Failed, Graph
from tests.nodes.networks import file_name

TOKEN = "[owl]"
PARTS = {
    "unet_name": "stage_c",
    "clip_name": "text_encoder",
    "encoder_name": "effnet",
    "previewer": "previewer",
}
MATRICES = (
    sum(".attn.to_" in name or ".attn.out_proj." in name for name in networks.network("stage_c").state_dict()) // 2
)
"""Of attention: each has a weight and a bias."""


@pytest.fixture
def folder(host: Any) -> str:
    """Four images in the host's input folder, one of them broken, one without a caption."""
    place = host.base / "input" / "owls"
    place.mkdir(parents=True, exist_ok=True)
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (70, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"owl_{number}.png")
    for number in range(2):
        (place / f"owl_{number}.txt").write_text(f"a photo of {TOKEN}, {number}", encoding="utf-8")
    (place / "broken.jpg").write_bytes(b"no image")
    return "owls"


def settings(host: Any, name: str, **changes: Any) -> dict[str, Any]:
    defaults = {
        each.id: each.default for each in host.classes["CascadeTrainLora"].GET_SCHEMA().inputs if not each.optional
    }
    parts = {name: file_name(kind) for name, kind in PARTS.items()}
    small = {"steps": 4, "batch_size": 2, "resolution": 64, "rank": 2, "learning_rate": 1e-2, "token": TOKEN}
    return {**defaults, **parts, **small, "name": name, **changes}


def errors(host: Any) -> Any:
    """The library's errors as the host loaded them."""
    return host.pack("cascade.errors")


def train(host: Any, name: str, folder: str = "", **changes: Any) -> Any:
    return host.call("CascadeTrainLora", **settings(host, name, folder=folder, **changes))


def test_a_file_of_somebody_else_is_not_replaced(host: Any, folder: str) -> None:
    path = host.models / "loras" / "taken.safetensors"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"somebody else's")
    with pytest.raises(errors(host).CascadeError, match=r"taken\.safetensors is in models/loras already"):
        train(host, "taken", folder)
    assert path.read_bytes() == b"somebody else's"
    path.unlink()


def test_a_folder_becomes_a_lora(host: Any, folder: str) -> None:
    state = torch.random.get_rng_state()
    lora, loss, samples, report = train(host, "owls", folder, sample_every=2, sample_prompts=f"a {TOKEN}\na dog")
    assert torch.equal(torch.random.get_rng_state(), state)
    path = host.models / "loras" / "owls.safetensors"
    assert report.splitlines()[0] == str(path)
    assert "3 images" in report
    assert "left out broken.jpg" in report
    assert "1 of 3 images without a caption: owl_2.png" in report
    saved = read_lora(path)
    assert saved.format == "comfyui"
    assert [token.text for token in saved.tokens] == [token.text for token in lora.tokens] == [TOKEN]
    assert len(saved.changes["stage_c"]) == MATRICES
    assert saved.training["images"] == 3
    assert loss.shape == (1, 420, 900, 3)
    assert (samples.shape[0], *samples.shape[2:]) == (1, 256, 3)
    assert samples.shape[1] > 128  # the prompts stand below
    assert "owls.safetensors" in host.classes["CascadeLoadLora"].INPUT_TYPES()["required"]["lora_name"][1]["options"]


def test_samples_in_the_folder_of_a_run_are_read_as_any_image(host: Any, folder: str) -> None:
    train(host, "sampled", folder)
    samples = Path(host.base) / "output" / "stable_cascade" / "training" / "sampled" / "samples"
    # ComfyUI's page may upload files into the output folder. Pillow would start Ghostscript for this one.
    (samples / "step_99999999.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EOF\n")
    with pytest.raises(errors(host).InvalidImage):
        train(host, "sampled", folder)


def test_rates_and_resolution_by_the_size_of_the_model(host: Any, folder: str) -> None:
    by_size = {"learning_rate": 0.0, "token_learning_rate": 0.0, "resolution": 0}
    report = train(host, "by_size", folder, steps=1, **by_size)[3]
    assert "3 images at 256 x 256" in report
    assert "learning rate 0.002, of the token 0.003" in report
    given = {"learning_rate": 0.01, "token_learning_rate": 0.02, "resolution": 64}
    report = train(host, "given", folder, steps=1, **given)[3]
    assert "3 images at 64 x 64" in report
    assert "learning rate 0.01, of the token 0.02" in report


def test_it_is_used_in_the_same_graph(host: Any, folder: str) -> None:
    graph = Graph()
    trained = graph("CascadeTrainLora", **settings(host, "in_graph", folder=folder))
    stage = graph("CascadeLoadStageC", unet_name=file_name("stage_c"), weight_dtype="fp32", previewer="none")
    text = graph("CascadeLoadTextEncoder", clip_name=file_name("text_encoder"), weight_dtype="fp32")
    used = graph(
        "CascadeLoadLora",
        model=stage,
        clip=text,
        lora_name="tiny cascade (included)",
        lora=trained,
        strength_model=1.0,
        strength_clip=1.0,
    )
    coded = graph("CascadeTextEncode", clip=used[1], positive=f"a {TOKEN}", negative="")
    result = host.run(graph, report=used[2], coded=coded, samples=trained[2])
    assert f"Stage C: {MATRICES} of {MATRICES} tensors" in result.report
    assert result.coded[0][0].shape[1] == 77


def test_connected_images_and_captions(host: Any) -> None:
    images = torch.rand(3, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    lora, *_, report = train(host, "images", images=images, captions="one\ntwo\nthree", token="")
    assert not lora.tokens
    assert "3 images" in report
    assert "without a caption" not in report
    with pytest.raises(errors(host).CascadeError, match="3 images need as many lines"):
        train(host, "images2", images=images, captions="one\ntwo")


def test_stopping_saves_and_the_next_run_goes_on(host: Any, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management as management

    whole = train(host, "whole", folder, steps=6)[0]
    pack = host.pack("nodes.host.training")
    plain = pack.comfy.utils.ProgressBar

    class Stopping(plain):
        def update_absolute(self, value: int, total: Any = None, *more: Any) -> None:
            if value == 3:
                management.interrupt_current_processing()

    monkeypatch.setattr(pack.comfy.utils, "ProgressBar", Stopping)
    with pytest.raises(management.InterruptProcessingException):
        train(host, "stopped", folder, steps=6)
    monkeypatch.undo()
    assert not management.processing_interrupted()
    assert not (host.models / "loras" / "stopped.safetensors").exists()
    assert (host.base / "output" / "stable_cascade" / "training" / "stopped" / "state.pt").exists()
    stopped, *_, report = train(host, "stopped", folder, steps=6)
    assert "6 steps" in report
    for name, change in whole.changes["stage_c"].items():
        assert torch.equal(change.up, stopped.changes["stage_c"][name].up)
    assert torch.equal(whole.tokens[0].vectors, stopped.tokens[0].vectors)


def test_a_finished_run_is_made_longer_or_restarted(host: Any, folder: str) -> None:
    first = train(host, "longer", folder)[0]
    assert "8 steps" in train(host, "longer", folder, steps=8)[3]
    with pytest.raises(errors(host).CascadeError, match=r"rank was 2 and is 3.*set existing_run to 'restart'"):
        train(host, "longer", folder, steps=8, rank=3)
    again = train(host, "longer", folder, existing_run="restart")[0]
    query = next(iter(first.changes["stage_c"]))
    assert torch.equal(first.changes["stage_c"][query].up, again.changes["stage_c"][query].up)


def test_other_images_are_another_run(host: Any, folder: str) -> None:
    train(host, "changing", folder)
    text = host.base / "input" / "owls" / "owl_0.txt"
    before = text.read_text(encoding="utf-8")
    try:
        text.write_text("something else", encoding="utf-8")
        with pytest.raises(errors(host).CascadeError, match="the images or their captions are not those"):
            train(host, "changing", folder)
    finally:
        text.write_text(before, encoding="utf-8")


def test_the_hosts_models_work_on_as_before(host: Any, folder: str) -> None:
    import comfy.model_management as management

    model = host.call("CascadeLoadStageC", unet_name=file_name("stage_c"), weight_dtype="fp32", previewer="none")[0]
    management.load_models_gpu([model])
    weights = {name: value.clone() for name, value in model.model.state_dict().items()}
    layers = {"target_modules": "all", "text_encoder_modules": "all", "use_dora": True}
    train(host, "apart", folder, **layers, class_folder="tiny shapes (included)")
    assert not management.loaded_models()
    assert all(torch.equal(value, weights[name]) for name, value in model.model.state_dict().items())
    assert torch.is_inference_mode_enabled() is False
    management.load_models_gpu([model])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"folder": "nowhere"}, "There are no images at"),
        ({"folder": "\ud800"}, "There are no images at"),
        ({"folder": "n" * 300}, "There are no images at"),
        ({"folder": "d/" * 3000}, "There are no images at"),
        ({"name": "../outside"}, "no name for a file"),
        ({"name": "\ud800"}, "a name is Unicode text"),
        ({"name": "a\0b"}, "no control characters"),
        ({"name": "n" * 201}, "at most 200 bytes"),
        ({"name": "d/" * 2000 + "n"}, "the path has more than"),
        ({"name": "com1.owl"}, "a device of Windows"),
        ({"name": "owl."}, "end in a dot"),
        ({"token": "dog"}, "ordinary word"),
        ({"token": "two words"}, "cannot be a token"),
        ({"target_modules": "none", "token": ""}, "nothing to train"),
        ({"initializer_token": "^qqqqqqqqq</w>"}, "names no token"),
        ({"clip_name": "tiny cascade (included)"}, "take the one that it was trained with"),
        ({"encoder_name": file_name("previewer")}, "EfficientNet"),
    ],
)
def test_what_cannot_be_is_named_before_it_begins(host: Any, folder: str, changes: dict[str, Any], reason: str) -> None:
    graph = Graph()
    trained = graph("CascadeTrainLora", **settings(host, **{"name": "bad", "folder": folder, **changes}))
    with pytest.raises(Failed, match=reason) as error:
        host.run(graph, lora=trained)
    assert error.value.details["node_type"] == "CascadeTrainLora"


def test_the_run_lies_where_it_is_said(host: Any, folder: str) -> None:
    train(host, "sub/deep", folder)
    run = Path(host.base) / "output" / "stable_cascade" / "training" / "sub" / "deep"
    assert {"state.pt", "metrics.jsonl", "lora.safetensors", "cache"} <= {path.name for path in run.iterdir()}
    assert (host.models / "loras" / "sub" / "deep.safetensors").exists()


def test_names_are_checked_before_anything_is_written(host: Any, folder: str) -> None:
    runs = host.base / "output" / "stable_cascade" / "training"
    before = set(runs.iterdir()) if runs.exists() else set()
    for name in ("n" * 201, "a:b", "aux", "\ud800"):
        with pytest.raises(errors(host).InvalidName):
            train(host, name, folder, images=torch.rand(2, 64, 64, 3))
    assert (set(runs.iterdir()) if runs.exists() else set()) == before
    for node, values in (("CascadeSaveLora", {"lora_name": "tiny cascade (included)", "format": "cascade"}),):
        for name in ("n" * 201, "a:b", "lpt1", "a\ud800"):
            with pytest.raises(errors(host).InvalidName):
                host.call(node, filename_prefix=name, **values)


@pytest.fixture
def private(host: Any, tmp_path: Path) -> Path:
    """A folder of images that the server's owner has not named."""
    place = tmp_path / "private"
    place.mkdir()
    Image.new("RGB", (64, 64)).save(place / "owl.png")
    return place


def test_other_folders_are_not_read_and_not_told_of(host: Any, folder: str, private: Path) -> None:
    there, not_there = str(private), str(private.with_name("nothing"))
    (host.base / "output" / "images").mkdir(parents=True, exist_ok=True)
    up = "../" * 30
    for path in (there, up + there, f"{host.base}/output/images/{up}{there}", f"{host.base}/input/../../..{there}"):
        told = []
        for each in (path, path.replace(there, not_there)):
            for key in ("folder", "class_folder"):
                with pytest.raises(errors(host).MissingPart) as error:
                    train(host, "closed", **{"folder": folder, key: each})
                told.append(str(error.value).replace(each, "").replace(repr(each), ""))
        assert len({text.split(". Give")[1] for text in told}) == 1
        assert not any("private" in text.split(". Give")[1] for text in told)


def test_a_folder_that_the_owner_has_named_is_read(host: Any, private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import folder_paths

    name = host.pack("nodes.host.folders").TRAINING_FOLDERS
    monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(private.parent)], set()))
    assert "1 images" in train(host, "named", str(private), steps=1)[3]
    assert "1 images" in train(host, "named2", str(private / ".." / "private"), steps=1)[3]
    with pytest.raises(errors(host).MissingPart):
        train(host, "named", str(private.parent.parent))


def test_listing_is_stopped_by_the_stop_button(host: Any, folder: str) -> None:
    import comfy.model_management as management

    management.interrupt_current_processing()
    with pytest.raises(management.InterruptProcessingException):
        train(host, "listing", folder)
    assert not management.processing_interrupted()
    node = host.classes["CascadeTrainLora"]
    management.interrupt_current_processing()
    try:
        stamp = node.fingerprint_inputs(folder=folder, class_folder="", existing_run="continue")
        assert stamp != stamp, "what was not looked at to the end counts as changed"
    finally:
        management.interrupt_current_processing(False)
    first, second = (node.fingerprint_inputs(folder=folder, class_folder="", existing_run="") for _ in range(2))
    assert first == second


def test_a_second_training_of_the_name_is_refused(host: Any, folder: str) -> None:
    run = host.base / "output" / "stable_cascade" / "training" / "twice"
    code = (
        "import sys, time, pathlib\n"
        f"sys.path.insert(0, {str(networks.__file__).rsplit('/tests', 1)[0]!r})\n"
        "from cascade.training.lock import exclusive\n"
        f"with exclusive(pathlib.Path({str(run)!r})):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(errors(host).FolderInUse, match=f"process {other.pid} "):
            train(host, "twice", folder)
        other.kill()
    assert "4 steps" in train(host, "twice", folder)[3]
