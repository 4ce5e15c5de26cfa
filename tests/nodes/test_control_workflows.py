"""The templates of control run as they are, with the tiny cascade."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from cascade import models, tiny
from cascade.checkpoints import load_model, save_model
from cascade.models import ControlNet, ControlNetConfig
from cascade.tiny.analysis import describe
from tests.nodes.hosting import Failed, Graph
from tests.nodes.workflows import nodes_of, to_prompt, workflow

FILES = [*tiny.parts().values(), *map(tiny.path, tiny.CONTROLS.values())]
needs_tiny = pytest.mark.skipif(
    not all(path.exists() for path in FILES),
    reason="the tiny cascade's weights are not here",
)


def ran(host: Any, flow: dict[str, Any], **wanted: tuple[str, int]) -> Any:
    """What a template's nodes gave: name = (type of the node, number of the output); the last node of that type."""
    nodes = {node["type"]: str(node["id"]) for node in nodes_of(flow)}
    graph = Graph(to_prompt(flow, host.classes))
    return host.run(graph, **{name: [nodes[kind], output] for name, (kind, output) in wanted.items()})


@needs_tiny
@pytest.mark.parametrize(
    ("name", "last", "size", "background", "items"),
    [
        ("Canny", ("CascadeDecode", 0), (256, 256), "purple", [("yellow", "star")]),
        ("Super Resolution", ("CascadeDecode", 0), (256, 256), "white", [("purple", "square")]),
        ("Outpaint", ("ImageCompositeMasked", 0), (256, 256), "yellow", [("red", None)]),
        ("IP-Adapter", ("CascadeDecode", 0), (256, 256), "blue", [("red", None)]),
        ("Edit by instruction", ("CascadeDecode", 0), (256, 256), "blue", [("green", None)]),
        (
            "Inpaint (crop and stitch)",
            ("CascadeStitch", 0),
            (512, 512),
            "green",
            [("white", "square"), ("red", "circle")],
        ),
    ],
)
def test_its_image_shows_what_it_should(
    host: Any,
    name: str,
    last: tuple[str, int],
    size: tuple[int, int],
    background: str,
    items: list[tuple[str, str | None]],
) -> None:
    """Colors as in the prompts, and shapes; that of Outpaint is small and lies in the source. The source of the edit
    and of the IP-Adapter is red on blue."""
    image = ran(host, workflow(name), image=last).image
    assert image.shape == (1, *size, 3)
    step = size[0] // 256
    found = describe(image[0, ::step, ::step])
    assert found.background == background
    assert [item.color for item in found.items] == [color for color, _ in items]
    assert all(shape in (None, item.shape) for item, (_, shape) in zip(found.items, items, strict=True))


@needs_tiny
def test_inpainting_keeps_the_rest_bit_for_bit(host: Any) -> None:
    flow = workflow("Inpaint")
    found = ran(
        host, flow, image=("ImageCompositeMasked", 0), mask=("CascadeInpaintHint", 2), drawn=("CascadeDecode", 0)
    )
    outside = found.mask[0] == 0
    [composite] = [node for node in nodes_of(flow) if node["type"] == "ImageCompositeMasked"]
    source = next(link for link in flow["links"] if link[0] == composite["inputs"][0]["link"])
    kept = host.run(Graph(to_prompt(flow, host.classes)), source=[str(source[1]), source[2]])
    assert 0 < int(outside.sum()) < outside.numel()
    assert torch.equal(found.image[0][outside], kept.source[0][outside])
    assert torch.equal(found.image[0][~outside], found.drawn[0][~outside])


class DetectedFaces:
    """Stands for a face detector's node."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    RETURN_TYPES = ("*", "*")
    FUNCTION = "detect"
    CATEGORY = "tests"

    def detect(self) -> tuple[Any, Any]:
        generator = torch.Generator().manual_seed(0)
        return [[32.0, 64.0, 96.0, 160.0], [160.0, 64.0, 224.0, 128.0]], torch.randn(2, 512, generator=generator)


def test_the_identity_template_with_a_detector_and_a_net_of_that_kind(host: Any) -> None:
    width = load_model(tiny.path("stage_c"), part="stage_c").config.levels[0].width
    torch.manual_seed(0)
    net = models.initialize(
        ControlNet(ControlNetConfig(in_channels=512, width=width, blocks=(0, 2), backbone="simple"))
    )
    for projection in net.projections:
        nn.init.normal_(projection[2].weight, std=0.01)
    (host.models / "controlnet").mkdir(exist_ok=True)
    save_model(net, host.models / "controlnet" / "identity_of_the_test.safetensors")
    host.classes["DetectedFaces"] = DetectedFaces
    flow = copy.deepcopy(workflow("Face Identity"))
    prompt = to_prompt(flow, host.classes)
    prompt["detector"] = {"class_type": "DetectedFaces", "inputs": {}}
    for node in prompt.values():
        if node["class_type"] == "CascadeIdentityHint":
            node["inputs"] |= {"bboxes": ["detector", 0], "embeddings": ["detector", 1]}
        if node["class_type"] == "CascadeLoadControlNet":
            node["inputs"]["control_net_name"] = "identity_of_the_test.safetensors"
    decoded = next(name for name, node in prompt.items() if node["class_type"] == "CascadeDecode")
    hints = next(name for name, node in prompt.items() if node["class_type"] == "CascadeIdentityHint")
    found = host.run(Graph(prompt), image=[decoded, 0], hint=[hints, 0])
    assert found.image.shape == (1, 256, 256, 3)
    assert int((found.hint[0].abs().sum(dim=-1) > 0).sum()) == 2 * 3 + 2 * 2


def test_the_identity_template_says_what_is_missing(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "insightface.app", None)
    with pytest.raises(Failed, match="has no face detector"):
        host.run(Graph(to_prompt(workflow("Face Identity"), host.classes)))
