"""Every template fits the nodes as they are, and makes an image."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cascade.tiny.analysis import describe
from tests.nodes.image_checks import AT_ITS_SIZE, needs_tiny, wrong
from tests.nodes.networks import file_name
from tests.nodes.workflows import (
    FOLDER,
    NAMES,
    NOTES,
    SAMPLES,
    UPLOAD,
    choices_of,
    is_widget,
    nodes_of,
    prompt_of,
    run,
    specs_of,
    unmuted,
    values_of,
    with_values,
    workflow,
)

TINY = "tiny cascade (included)"
ANYTHING = "*"
"""The type of an input that takes every type."""
RELEASED = {
    "stage_c_bf16.safetensors": file_name("stage_c"),
    "stage_b_bf16.safetensors": file_name("stage_b"),
    "model.bf16.safetensors": file_name("text_encoder"),
    "stage_a.safetensors": file_name("stage_a"),
}
"""Released files -> the small random ones that stand for them here."""


def test_there_are_templates_and_nothing_that_would_be_taken_for_one() -> None:
    assert {"Text to Image (tiny, no download)", "Text to Image (Stable Cascade)"} <= set(NAMES)
    # A host serves templates from the first of these folders that is there, and finds none of the others' files.
    others = ["example_workflows", "example", "examples", "workflow"]
    assert [name for name in others if (FOLDER.parent / name).exists()] == []
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.{kind}" for name in NAMES for kind in ("json", "jpg")}


@pytest.mark.parametrize("name", NAMES)
def test_nodes_and_inputs_are_those_of_the_schemas(host: Any, name: str) -> None:
    for node in nodes_of(workflow(name)):
        kind = host.classes[node["type"]]
        specs = specs_of(kind)
        slots: dict[str, Any] = {}
        for slot in node["inputs"]:
            if slot["name"] != UPLOAD:
                # An input that grows is saved as its parts: images.image0, images.image1.
                slots.setdefault(slot["name"].split(".")[0], slot)
        # The page saves what has no widget first.
        ordered = sorted(specs, key=lambda name: is_widget(specs[name]))
        assert list(slots) == ordered, node["type"]
        assert ["widget" in slot for slot in slots.values()] == [is_widget(specs[name]) for name in ordered]
        assert set(values_of(node, specs)) == {key for key, spec in specs.items() if is_widget(spec)}
        types, returned = [slot["type"] for slot in node["outputs"]], list(kind.RETURN_TYPES)
        # Older hosts' own nodes may give less: SaveImage gives on its image in 0.30.0, not in 0.24.0.
        ours = node["type"].startswith("Cascade")
        assert types == returned if ours else not types or types[: len(returned)] == returned, node["type"]


@pytest.mark.parametrize("name", NAMES)
def test_values_are_among_the_choices(host: Any, name: str) -> None:
    """Files that are to be fetched apart, which the template tells where to get."""
    for node in nodes_of(workflow(name)):
        specs = specs_of(host.classes[node["type"]])
        fetched = {model["name"] for model in node["properties"].get("models", ())}
        for key, value in values_of(node, specs).items():
            choices = choices_of(specs[key])
            assert choices is None or value in choices or value in fetched, (node["type"], key, value)


@pytest.mark.parametrize("name", NAMES)
def test_links_are_told_alike_at_both_ends(name: str) -> None:
    flow = workflow(name)
    nodes = {node["id"]: node for node in flow["nodes"]}
    for link, source, output, target, slot, kind in flow["links"]:
        assert link in nodes[source]["outputs"][output]["links"]
        assert nodes[target]["inputs"][slot]["link"] == link
        assert nodes[source]["outputs"][output]["type"] == kind
        assert nodes[target]["inputs"][slot]["type"] in (kind, ANYTHING)
    assert flow["last_link_id"] == max(link[0] for link in flow["links"])
    assert flow["last_node_id"] == max(nodes)


@pytest.mark.parametrize("name", NAMES)
def test_a_note_says_what_to_change(name: str) -> None:
    notes = [node for node in workflow(name)["nodes"] if node["type"] in NOTES]
    assert "What to change" in [node["title"] for node in notes]
    # The page shows code in blue, which cannot be read on a note.
    assert [node for node in notes if "`" in node["widgets_values"][0]] == []


def test_templates_start_from_images_that_the_page_copies() -> None:
    named = {
        node["widgets_values"][0] for name in NAMES for node in nodes_of(workflow(name)) if node["type"] == "LoadImage"
    }
    script = (SAMPLES.parent / "js" / "samples.js").read_text(encoding="utf-8")
    [listed] = re.findall(r"const SAMPLES = \[(.*?)\]", script, re.DOTALL)
    assert named == {path.name for path in SAMPLES.iterdir()}
    assert named == {f"stable_cascade_{name}.png" for name in re.findall(r'"(\w+)"', listed)}


def test_missing_files_are_offered_with_their_folder(host: Any) -> None:
    folders = host.pack("nodes.host.folders").FOLDERS
    kinds = {
        "CascadeLoadStageC": "stage_c",
        "CascadeLoadStageB": "stage_b",
        "CascadeLoadStageA": "stage_a",
        "CascadeLoadTextEncoder": "text_encoder",
    }
    loaders = [node for node in nodes_of(workflow("Text to Image (Stable Cascade)")) if node["type"] in kinds]
    assert len(loaders) == len(kinds)
    for node in loaders:
        [model] = node["properties"]["models"]
        assert model["name"] == node["widgets_values"][0] == model["url"].rsplit("/", 1)[1]
        assert model["directory"] == folders[kinds[node["type"]]][0]
        assert model["url"].startswith("https://huggingface.co/stabilityai/stable-cascade/resolve/main/")


def test_the_released_template_runs_with_files_of_its_kinds(host: Any) -> None:
    flow = copy.deepcopy(workflow("Text to Image (Stable Cascade)"))
    for node in nodes_of(flow):
        node["widgets_values"] = [RELEASED.get(str(value), value) for value in node["widgets_values"]]
        if node["type"] == "CascadeEmptyLatent":
            node["widgets_values"] = ["custom", 256, 192, 1]
    [image] = run(host, flow)
    assert image.size == (256, 192)


@needs_tiny
@pytest.mark.parametrize(
    "name", ["Text to Image (tiny, no download)", "Text to Image (custom sampling)", "Batch and seeds"]
)
def test_templates_draw_what_their_prompts_say(host: Any, name: str) -> None:
    flow = workflow(name)
    [image] = run(host, flow)
    assert wrong(prompt_of(flow), np.asarray(image), AT_ITS_SIZE) == []


def newest(host: Any, prefix: str) -> np.ndarray:
    return np.asarray(Image.open(max((Path(host.base) / "output").glob(f"{prefix}*.png"))).convert("RGB"))


@needs_tiny
def test_the_lora_template_draws(host: Any) -> None:
    run(host, workflow("LoRA"))
    image = newest(host, "cascade_lora_0")
    assert image.shape == (256, 256, 3)
    assert describe(image).background == "white"


@needs_tiny
def test_the_training_template_trains_and_draws(host: Any) -> None:
    short = with_values(workflow("Train a LoRA"), host, "CascadeTrainLora", steps=2, batch_size=1, class_folder="")
    run(host, short)
    assert newest(host, "cascade_trained_").shape == (256, 256, 3)
    assert (host.models / "loras" / "my_heart.safetensors").exists()


@needs_tiny
@pytest.mark.usefixtures("no_merged_file_stays")
def test_the_template_of_files_writes_them(host: Any) -> None:
    merged = host.models / "diffusion_models" / "merged_00001_.safetensors"
    run(host, workflow("LoRA files"))
    assert newest(host, "cascade_lora_norms_").shape == (420, 1024, 3)
    assert (host.models / "loras" / "one_of_several_00001_.safetensors").exists()
    # As large as Stage C: only where its nodes are asked for.
    assert not merged.exists()
    run(host, unmuted(workflow("LoRA files")))
    assert merged.exists()
