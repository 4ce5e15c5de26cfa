"""The weights that ship: what the files are, and what is in the images that they draw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cascade import tiny
from cascade.adapters import read_instruct, read_lora
from cascade.checkpoints import inspect_file, load_model
from cascade.models import StageA
from cascade.models.ip_adapter import check_encoder, check_stage_c
from cascade.pipelines import Parts, generate
from cascade.tiny import drawing, grammar
from cascade.tiny.analysis import describe
from cascade.tiny.control import evaluate_control
from cascade.tiny.evaluation import (
    LEARNED,
    OTHERS,
    OTHERS_BEFORE,
    SETTINGS,
    Evaluation,
    evaluate,
    evaluate_lora,
    judge,
)

PROMPTS = (
    "a large red circle on a blue background, left",
    "a large yellow triangle on a black background, right",
    "a large white square on a green background, center",
    "a large purple star on a white background, top",
    "an orange circle on a purple background, bottom",
    "a large black square on a yellow background, left",
    "a small blue triangle on a white background, center",
    "a green circle on the left and a white square on the right, red background",
    "a blue square on the top and a red circle on the bottom, yellow background",
    "a small red square on a white background, right",
)


@pytest.fixture(scope="module")
def drawn() -> list[tuple[str, Tensor]]:
    images = generate(Parts(tiny.parts()), PROMPTS, seeds=range(len(PROMPTS)), settings=SETTINGS).images
    return list(zip(PROMPTS, images, strict=True))


def test_files_are_small_and_say_what_they_are() -> None:
    assert sum(path.stat().st_size for path in tiny.parts().values()) <= 16_000_000
    for kind, path in tiny.parts().items():
        found = inspect_file(path)
        assert found.kind == kind
        assert found.layout == "cascade"


def test_the_ip_adapter_is_small_and_fits() -> None:
    path = tiny.path(tiny.IP_ADAPTER)
    assert path.stat().st_size <= 1_000_000
    assert inspect_file(path).kind == "ip_adapter"
    config = load_model(path).config
    check_stage_c(config.blocks, load_model(tiny.path("stage_c")))
    check_encoder(config, load_model(tiny.path("image_encoder")).config.hidden_size)


def test_the_instruct_network_is_small_and_fits() -> None:
    path = tiny.path(tiny.INSTRUCT)
    assert path.stat().st_size <= 1_000_000
    assert inspect_file(path).variant == "Instruct network, for a Stage C of width 128"
    network, stage_c = read_instruct(path), load_model(tiny.path("stage_c"))
    changes = network.lora.changes["stage_c"]
    assert all(change.fits(stage_c.get_parameter(name).shape) for name, change in changes.items())


@pytest.mark.numeric
def test_images_are_as_the_prompts_say(drawn: list[tuple[str, Tensor]]) -> None:
    answers: dict[str, list[float]] = {}
    for prompt, image in drawn:
        scene = grammar.parse(prompt)
        assert scene is not None, prompt
        for judged in judge(scene, describe(image)):
            answers.setdefault(judged.question, []).append(judged.answer)
    shares = {question: float(np.mean(values)) for question, values in answers.items()}
    assert shares["background color"] == 1, shares
    assert shares["shape color"] == 1, shares
    assert shares["place"] == 1, shares
    assert shares["size"] == 1, shares
    # One wrong outline in ten is what the model card allows.
    assert shares["all that the prompt says"] >= 0.9, shares


def test_the_analysis_would_notice_wrong_images(drawn: list[tuple[str, Tensor]]) -> None:
    """Against the next prompt's image nearly nothing is right: the check above can fail."""
    wrong = [image for _, image in drawn[1:] + drawn[:1]]
    answers = [
        judged.answer
        for (prompt, _), image in zip(drawn, wrong, strict=True)
        for judged in judge(grammar.parse(prompt), describe(image))
        if judged.question in ("background color", "shape color")
    ]
    assert np.mean(answers) < 0.4


SCORES = {
    "background color": 1.0,
    "shape color": 1.0,
    "shape": 0.976,
    "place": 1.0,
    "size": 1.0,
    "both of two shapes": 0.944,
    "the right number of shapes": 1.0,
    "all that the prompt says": 0.967,
    "reconstruction, same shapes": 0.90,
    "image variation, same color and shape": 0.50,
    "a color in the negative prompt does not appear": 1.0,
}
CONTROL_SCORES = {
    "canny: overlap of the outlines (IoU)": 0.82,
    "canny: the colors are the prompt's": 1.0,
    "inpainting: the hole has what the prompt says": 0.975,
    "inpainting: the rest is the source, bit for bit": 1.0,
    "outpainting: the background goes on": 1.0,
    "super resolution: the same colors and shapes": 0.90,
}
LORA_SCORES = {LEARNED: 0.82, OTHERS: 0.85}
"""What the shipped weights reach in the fixed cases of the tests below, the first ones of the card's tables."""
CASES = 40
NOISE = 0.06
"""What another processor may change: its rounding turns some images into others, with one or two of 40 answers."""


def missed(found: Evaluation, scores: dict[str, float]) -> dict[str, float]:
    """The questions whose score is lower than it was by more than the noise."""
    reached = {row.question: row.reached for row in found.rows}
    return {question: reached[question] for question, score in scores.items() if reached[question] < score - NOISE}


@pytest.mark.slow
def test_prompts_variations_and_reconstructions_are_as_good_as_the_card_says() -> None:
    found = evaluate(Parts(tiny.parts()), prompts=60)
    assert missed(found, SCORES) == {}
    reached = {row.question: row.reached for row in found.rows}
    assert reached["reconstruction (encoder, Stage B, Stage A), PSNR"] >= 27
    assert reached["Stage A alone, PSNR"] >= 34


@pytest.mark.slow
def test_controlnets_show_in_the_images() -> None:
    nets = {name: load_model(tiny.path(part), dtype=torch.float32) for name, part in tiny.CONTROLS.items()}
    assert missed(evaluate_control(Parts(tiny.parts()), nets, cases=CASES), CONTROL_SCORES) == {}


@pytest.mark.slow
def test_the_lora_draws_what_nothing_else_draws() -> None:
    found = evaluate_lora(Parts(tiny.parts()), read_lora(tiny.path("lora")), seeds=50, prompts=CASES)
    assert missed(found, LORA_SCORES) == {}
    reached = {row.question: row.reached for row in found.rows}
    # As the card promises: at most 3 points, which is one image of these.
    assert reached[OTHERS] >= reached[OTHERS_BEFORE] - 0.03


@pytest.mark.numeric
def test_stage_a_keeps_images() -> None:
    images = torch.from_numpy(drawing.batch(123, 8).images).permute(0, 3, 1, 2).float() / 255
    net = load_model(tiny.path("stage_a"), dtype=torch.float32)
    assert isinstance(net, StageA)
    with torch.no_grad():
        error = (net(images).clamp(0, 1) - images).square().mean(dim=(1, 2, 3))
    assert float((-10 * torch.log10(error)).mean()) >= 33
