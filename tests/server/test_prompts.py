"""Prompts over HTTP: right ones, bad ones, strange ones."""

from __future__ import annotations

import json
from typing import Any

import pytest
from PIL import Image

from tests.nodes.networks import file_name
from tests.server.prompts import Prompt, cascade, draws, node, with_input
from tests.server.serving import Server


def test_a_prompt_makes_an_image(server: Server) -> None:
    assert draws(server, cascade()) == (256, 192)


def test_the_same_seed_makes_the_same_image(server: Server) -> None:
    first, second = (
        server.saved_images(server.run(with_input(cascade(seed=5), "save", "filename_prefix", name)))[0]
        for name in "ab"
    )
    assert Image.open(first).tobytes() == Image.open(second).tobytes()


BAD = [
    ("c", "unet_name", "nothing.safetensors", "not in list"),
    ("c", "unet_name", "../../../etc/passwd", "not in list"),
    ("c", "unet_name", "/etc/passwd", "not in list"),
    ("c", "unet_name", "..\\small_stage_c.safetensors", "not in list"),
    ("c", "unet_name", None, "not in list"),
    ("c", "weight_dtype", "int3", "not in list"),
    ("stage_c", "steps", "many", "Failed to convert"),
    ("stage_c", "steps", 0, "smaller than min"),
    ("stage_c", "model", ["text", 0], "Return type mismatch"),
    ("stage_c", "sampler_name", "magic", "not in list"),
    ("size", "width", 10**12, "bigger than max"),
    ("size", "height", -1, "smaller than min"),
    ("size", "width", 0, "smaller than min"),
    ("size", "batch_size", 10**9, "bigger than max"),
]


@pytest.mark.parametrize(("name", "key", "value", "said"), BAD)
def test_bad_inputs_are_refused_by_name(server: Server, name: str, key: str, value: Any, said: str) -> None:
    status, answer = server.send(with_input(cascade(), name, key, value))
    assert status == 400
    [problem] = answer["node_errors"][name]["errors"]
    assert key in problem["details"]
    assert said in f"{problem['message']} {problem['details']}"


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ({}, "no outputs"),
        ({"a": {"inputs": {}}}, "no class_type"),
        ({"a": node("CascadeNothing")}, "not found"),
        ({name: each for name, each in cascade().items() if name != "save"}, "no outputs"),
        (with_input(cascade(), "stage_c", "model", ["nowhere", 0]), "nowhere"),
        (with_input(cascade(), "stage_c", "model", ["c", 99]), "index out of range"),
    ],
)
def test_what_is_no_prompt_is_refused(server: Server, prompt: Prompt, said: str) -> None:
    status, answer = server.send(prompt)
    assert status == 400
    assert said in json.dumps(answer)
    assert draws(server, cascade(seed=2)) == (256, 192)


def test_more_than_the_memory_is_explained(server: Server) -> None:
    prompt = cascade(width=16384, height=16384)
    error = server.error(server.run(with_input(prompt, "size", "batch_size", 4096)))
    assert error["node_type"] == "CascadeEmptyLatent"
    assert "A batch of 4096 images of 16384 x 16384 would take" in error["exception_message"]
    assert draws(server, cascade(seed=3)) == (256, 192)


def test_a_file_of_another_kind_is_explained(server: Server) -> None:
    error = server.error(server.run(with_input(cascade(), "c", "unet_name", file_name("stage_b"))))
    assert error["node_type"] == "CascadeLoadStageC"
    assert file_name("stage_b") in error["exception_message"]
    assert "Stage B" in error["exception_message"]
    assert "diffusion_models" in error["exception_message"]


def test_a_wrong_model_is_explained(server: Server) -> None:
    error = server.error(server.run(with_input(cascade(), "stage_c", "model", ["b", 0])))
    assert "the one that is connected is Stage B" in error["exception_message"]


@pytest.mark.parametrize(
    ("name", "key", "value", "said"),
    [
        ("stage_c", "positive", True, "positive is True: connect an output of type CONDITIONING."),
        ("stage_c", "latent_image", {"samples": 3}, "{'samples': 3}: connect an output of type LATENT."),
        ("stage_c", "model", "\ud800", "model is '\\ud800': connect an output of type MODEL."),
        ("decode", "vae", None, "vae is None: connect an output of type VAE."),
        ("size", "model", ["c", 0], "This node has no input 'model': remove it from the prompt."),
    ],
)
def test_values_that_no_node_gives_are_explained(server: Server, name: str, key: str, value: Any, said: str) -> None:
    """The host takes any value for an input that has no widget, and any link."""
    error = server.error(server.run(with_input(cascade(), name, key, value)))
    assert error["exception_message"].strip().endswith(said)
    assert error["exception_type"] == "stable_cascade.CascadeError"


@pytest.mark.parametrize("text", ["", "word " * 2000, "(" * 20 + "a" + ")" * 20, "\0\n\t", "日本語 🎨" * 200])
def test_strange_texts_make_images(server: Server, text: str) -> None:
    assert draws(server, cascade(text)) == (256, 192)


@pytest.mark.parametrize("size", [(32, 32), (32, 2048), (1056, 32), (288, 416)])
def test_strange_sizes_make_images(server: Server, size: tuple[int, int]) -> None:
    assert draws(server, cascade(width=size[0], height=size[1])) == size
