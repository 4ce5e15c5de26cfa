"""How well the tiny cascade's IP-Adapter follows images that it has not seen, and the prompt beside them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..models import IPAdapter
from ..pipelines import IPAdapterImages, Parts, Settings, generate
from . import ip_adapter_images
from .analysis import Description, describe
from .evaluation import SETTINGS, Evaluation, Judged, OnProgress, Sample, to_rows
from .grammar import Item, Scene

FOLLOWED = "IP-Adapter: shape and color of an unseen image, place from the prompt"
AIMS: dict[str, float | None] = {
    FOLLOWED: 0.85,
    "IP-Adapter: shape": None,
    "IP-Adapter: color": None,
    "IP-Adapter: background": None,
    "IP-Adapter: size": None,
    "IP-Adapter: place": None,
    "two images, weights 1 and 0: the first": None,
    "two images, weights 0 and 1: the second": None,
    "two images, weights 0.5 and 0.5: shape and color each of one of them": None,
}
"""The questions in the order of the table, and the score to reach."""

SEEDS = 12_000
"""The first of the images' seeds: no training image has one of these."""


def evaluate_ip_adapter(
    parts: Parts,
    adapter: IPAdapter,
    *,
    cases: int = 100,
    settings: Settings = SETTINGS,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Follow so many drawn images, each with a place as the prompt, and as many pairs of images; always the same ones.

    Every fourth image has colors and a shape in a combination that was kept from training.

    parts: of the tiny cascade, with its image encoder. Raises as `pipelines.generate`.
    """
    report = on_progress or (lambda _what, _done, _all: None)
    judged: list[Judged] = []
    samples: list[Sample] = []
    for what, measure in (("IP-Adapter", _followed), ("IP-Adapter, two images", _mixed)):
        for number in range(cases):
            judged += measure(parts, adapter, number, settings, samples)
            report(what, number + 1, cases)
    return Evaluation(to_rows(judged, AIMS), tuple(samples))


def _followed(
    parts: Parts, adapter: IPAdapter, number: int, settings: Settings, samples: list[Sample]
) -> Iterator[Judged]:
    rng, unseen = np.random.default_rng((SEEDS + number, 0)), number % 4 == 0
    wanted = ip_adapter_images.sample(rng, unseen=unseen)
    shown = _drawn(wanted, rng)
    made = _made(parts, wanted.prompt, number, settings, [IPAdapterImages(adapter=adapter, images=shown)])
    samples.extend(Sample(wanted.prompt, image) for image in (shown[0], made))
    right = found_of(wanted.wanted, describe(made))
    yield Judged(FOLLOWED, float(right["shape"] and right["color"] and right["place"]), unseen)
    for name, answer in right.items():
        yield Judged(f"IP-Adapter: {name}", float(answer), unseen)


def _mixed(
    parts: Parts, adapter: IPAdapter, number: int, settings: Settings, samples: list[Sample]
) -> Iterator[Judged]:
    """Three runs in turn with two images of other colors and shapes."""
    rng = np.random.default_rng((SEEDS + number, 1))
    weights, question = (
        ((1.0, 0.0), "two images, weights 1 and 0: the first"),
        ((0.0, 1.0), "two images, weights 0 and 1: the second"),
        ((0.5, 0.5), "two images, weights 0.5 and 0.5: shape and color each of one of them"),
    )[number % 3]
    while True:
        pair = [ip_adapter_images.sample(rng) for _ in range(2)]
        items = [each.wanted.items[0] for each in pair]
        if items[0].color != items[1].color and items[0].shape != items[1].shape:
            break
    prompt = pair[0].prompt
    shown = [_drawn(each, rng) for each in pair]
    images = [IPAdapterImages(adapter=adapter, images=x, weight=w) for x, w in zip(shown, weights, strict=True)]
    made = _made(parts, prompt, number, settings, images)
    samples.extend(Sample(prompt, image) for image in (shown[0][0], shown[1][0], made))
    seen = describe(made)
    taken = [item for item, weight in zip(items, weights, strict=True) if weight]
    yield Judged(question, float(len(seen.items) == 1 and _of_one(seen.items[0].color, seen.items[0].shape, taken)))


def _of_one(color: str, shape: str | None, items: list[Item]) -> bool:
    return color in {item.color for item in items} and shape in {item.shape for item in items}


def _drawn(shown: ip_adapter_images.Shown, rng: np.random.Generator) -> Tensor:
    """The image that is shown [1, 3, 256, 256]."""
    image, _ = ip_adapter_images.draw(shown, rng)
    return torch.from_numpy(image).movedim(-1, 0)[None].float() / 255


def _made(parts: Parts, prompt: str, number: int, settings: Settings, images: list[IPAdapterImages]) -> Tensor:
    return generate(parts, [prompt], seeds=[SEEDS + number], settings=settings, ip_adapters=images).images[0]


def found_of(wanted: Scene, seen: Description) -> dict[str, bool]:
    """What of a scene with one item is in an image."""
    [item] = wanted.items
    background = seen.background == wanted.background
    if len(seen.items) != 1:
        return dict.fromkeys(("shape", "color", "size", "place"), False) | {"background": background}
    [found] = seen.items
    names = ("shape", "color", "size", "place")
    return {name: getattr(found, name) == getattr(item, name) for name in names} | {"background": background}
