"""Chains of Stable Cascade with Stable Diffusion 2.x, through the host's own nodes: every template runs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.nodes import stable_diffusion
from tests.nodes.hosting import Failed, Graph
from tests.nodes.workflows import CHAINS, nodes_of, run, specs_of, values_of, with_values, workflow

KINDS = {
    "Chain to SD 2.1 (refine)": "base",
    "Chain to SD 2 (inpaint)": "inpaint",
    "Chain to SD 2.1 (depth)": "base",
    "Chain to SD x4 upscaler": "x4",
    "Chain to SD 2.1 unCLIP (variation)": "unclip",
    "Chain from SD 2.1 (image to image)": "base",
    "Chain from SD 2.1 (image prompt)": "base",
}
"""Template -> the checkpoint of Stable Diffusion that it runs with."""
SIZES = {"Chain to SD x4 upscaler": (128, 128)}
SIZE = (64, 64)
FOLDERS = {"checkpoints", "diffusion_models", "controlnet"}
SMALL = {"CascadeLoadCheckpoint": {"ckpt_name": "small_c.safetensors", "second_ckpt_name": "small_b.safetensors"}} | {
    "CascadeEmptyLatent": {"preset": "custom", "width": 64, "height": 64},
    "CascadeEncodeImage": {"short_side": 64},
    "CascadeSampleStageC": {"steps": 2},
    "CascadeSampleStageB": {"steps": 1},
    "KSampler": {"steps": 1},
    "EmptyLatentImage": {"width": 64, "height": 64},
}


@pytest.fixture
def written(host: Any) -> Iterator[dict[str, Path]]:
    """The files that a test asked for; they are too large to stay."""
    files: dict[str, Path] = {}
    yield files
    host.executor.reset()
    for path in files.values():
        path.unlink()


def checkpoint(host: Any, files: dict[str, Path], kind: str) -> str:
    files[kind] = stable_diffusion.write(host.models / "checkpoints", kind)
    return files[kind].name


def small(host: Any, files: dict[str, Path], name: str) -> dict[str, Any]:
    """A template with small files and few pixels."""
    flow = workflow(name)
    for kind, values in SMALL.items():
        flow = with_values(flow, host, kind, **values)
    loader = "unCLIPCheckpointLoader" if KINDS[name] == "unclip" else "CheckpointLoaderSimple"
    flow = with_values(flow, host, loader, ckpt_name=checkpoint(host, files, KINDS[name]))
    for node in nodes_of(flow):
        if node["type"] == "SolidMask":
            node["widgets_values"][1:] = [side // 16 for side in node["widgets_values"][1:]]
        if node["type"] == "MaskComposite":
            node["widgets_values"][:2] = [place // 16 for place in node["widgets_values"][:2]]
    if "depth" in name:
        for folder, file, shapes in (
            ("diffusion_models", "lotus-depth-d-v1-1.safetensors", stable_diffusion.unet("lotus")),
            ("controlnet", "control_v11p_sd21_depth.safetensors", stable_diffusion.controlnet()),
        ):
            files[file] = host.models / folder / file
            files[file].parent.mkdir(exist_ok=True)
            stable_diffusion.write_tensors(files[file], shapes)
    return flow


def drawn(host: Any, flow: dict[str, Any]) -> np.ndarray:
    [image] = run(host, flow)
    return np.asarray(image, dtype=float)


def test_every_chain_is_run_here() -> None:
    assert sorted(KINDS) == CHAINS


@pytest.mark.parametrize("name", CHAINS)
def test_files_are_offered_with_their_folder(name: str) -> None:
    for node in nodes_of(workflow(name)):
        offered = node["properties"].get("models", [])
        for model in offered:
            assert model["url"].startswith("https://huggingface.co/")
            assert model["url"].rsplit("/", 1)[1] == model["name"]
            assert model["directory"] in FOLDERS
        files = {str(value) for value in node["widgets_values"] if str(value).endswith((".safetensors", ".ckpt"))}
        assert files == {model["name"] for model in offered}


@pytest.mark.parametrize("name", CHAINS)
def test_sizes_are_those_of_their_presets(host: Any, name: str) -> None:
    for node in nodes_of(workflow(name)):
        if node["type"] == "CascadeEmptyLatent":
            specs = specs_of(host.classes[node["type"]])
            stage_c, stage_b = host.call("CascadeEmptyLatent", **values_of(node, specs))
            assert (stage_c["samples"].shape, stage_b["samples"].shape) == ((1, 16, 24, 24), (1, 4, 256, 256))


@pytest.mark.parametrize("name", CHAINS)
def test_the_second_model_reads_what_the_first_made(host: Any, written: dict[str, Path], name: str) -> None:
    flow = small(host, written, name)
    image = drawn(host, flow)
    assert image.shape == (*SIZES.get(name, SIZE)[::-1], 3)
    assert image.std() > 1
    first = "CascadeSampleStageC" if name.startswith("Chain to") else "KSampler"
    assert not np.array_equal(drawn(host, with_values(flow, host, first, seed=2)), image)
    noise = "SD_4XUpscale_Conditioning" if "x4" in name else "unCLIPConditioning"
    if any(node["type"] == noise for node in nodes_of(flow)):
        noisier = with_values(flow, host, noise, noise_augmentation=0.9)
        assert not np.array_equal(drawn(host, noisier), image)


@pytest.mark.parametrize("name", ["Chain to SD 2.1 (refine)", "Chain from SD 2.1 (image to image)"])
def test_batches_and_other_sizes_pass(host: Any, written: dict[str, Path], name: str) -> None:
    """Each image of a batch goes its way, at sizes that are no multiple of 64."""
    flow = with_values(small(host, written, name), host, "EmptyLatentImage", batch_size=2, width=64, height=72)
    flow = with_values(flow, host, "CascadeEmptyLatent", batch_size=2, width=72, height=104)
    flow = with_values(flow, host, "CascadeEncodeImage", short_side=72)
    images = run(host, flow)
    assert len({image.tobytes() for image in images}) == 2
    assert len({image.size for image in images}) == 1
    assert min(images[0].size) == 72


@pytest.mark.parametrize(("kind", "predicts"), [("base", "EPS"), ("v", "V_PREDICTION")])
def test_both_kinds_of_prediction_sample(host: Any, written: dict[str, Path], kind: str, predicts: str) -> None:
    graph = Graph()
    loaded = graph("CheckpointLoaderSimple", ckpt_name=checkpoint(host, written, kind))
    text = graph("CLIPTextEncode", clip=loaded[1], text="a red circle")
    settings = {"seed": 1, "steps": 2, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    latent = graph("EmptyLatentImage", width=64, height=64, batch_size=1)
    sampled = graph("KSampler", model=loaded[0], positive=text, negative=text, latent_image=latent, **settings)
    result = host.run(graph, model=loaded[0], image=graph("VAEDecode", samples=sampled, vae=loaded[2]))
    assert result.model.model.model_type.name == predicts
    assert result.image.shape == (1, 64, 64, 3)
    assert torch.isfinite(result.image).all()


def test_the_host_does_not_run_the_depth_checkpoint(host: Any, written: dict[str, Path]) -> None:
    """What docs/chains.md says; when this passes in a newer host, the template can use that checkpoint."""
    flow = copy.deepcopy(small(host, written, "Chain to SD 2.1 (refine)"))
    flow = with_values(flow, host, "CheckpointLoaderSimple", ckpt_name=checkpoint(host, written, "depth"))
    with pytest.raises(Failed, match="channels"):
        run(host, flow)
