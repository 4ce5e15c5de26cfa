"""What is said about images: filters that are read and never run, captions, and which shape an image gets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from cascade.errors import InvalidConfig
from cascade.training.buckets import Size, bucket_sizes, closest, ratio, show
from cascade.training.metadata import CaptionSettings, parse_filter
from cascade.training.order import BucketOrder, Order

# Those of the released training's files.
RATIOS = ["1/1", "1/2", "1/3", "2/3", "3/4", "1/5", "2/5", "3/5", "4/5", "1/6", "5/6", "9/16"]


@pytest.mark.parametrize(
    ("keys", "text", "metadata", "expected"),
    [
        ("width", "lambda w: w >= 768", {"width": 768}, True),
        ("width", "lambda w: w >= 768", {"width": 767}, False),
        ("width", ">= 768", {"width": 800}, True),
        (["width", "height"], "lambda w, h: w * h > 1e6 and not w / h > 3", {"width": 4000, "height": 1000}, False),
        (["width", "height"], "lambda w, h: w * h > 1e6 and not w / h > 3", {"width": 2000, "height": 1000}, True),
        ("score", "lambda s: 5 < s <= 9.5", {"score": 9}, True),
        ("license", "in ['cc0', 'mit']", {"license": "gpl"}, False),
        ("tags", "lambda t: len(t) > 2", {"tags": ["a", "b", "c"]}, True),
        ("a.b", "== 3", {"a": '{"b": 3}'}, True),
        ("width", ">= 768", {}, False),
        ("width", ">= 768", {"width": "wide"}, False),
        ("name", "lambda n: n * 1000000000 == 1", {"name": "a"}, False),
    ],
)
def test_filters_compare(keys: Any, text: str, metadata: dict[str, Any], expected: bool) -> None:
    assert parse_filter(keys, text)(metadata) is expected


@pytest.mark.parametrize(
    "text",
    [
        "lambda w: __import__('os').system('true')",
        "lambda w: w.__class__",
        "lambda w: [x for x in w]",
        "lambda w: (lambda: w)()",
        "lambda w, h: w",
        "lambda *w: w",
        "lambda w=3: w",
        "lambda w: 9 ** 9 ** 9",
        "lambda w: eval('1')",
        "lambda w: f'{w}'",
        "lambda w: other > 3",
        "lambda w: min(w, key=abs)",
        "width >= 3",
        "import os",
        "",
        "lambda w: " + "not " * 200 + "w",
        "lambda w: w > " + "9" * 600,
        "(" * 400,
    ],
)
def test_other_code_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="the filter"):
        parse_filter("width", text)


def test_captions_come_from_where_the_settings_say() -> None:
    captions = CaptionSettings(keys={"txt": 1.0, "json.a.b": 3.0}, template="a photo of {caption}, {license}")
    texts = captions.texts("an owl", {"a": {"b": " two\n lines"}, "license": "mit"})
    assert texts == ["a photo of an owl, mit", "a photo of two lines, mit"]
    assert captions.texts(None, {}) == [None, None]
    random = np.random.default_rng(0)
    chosen = [captions.choose(texts, random) for _ in range(2000)]
    assert 0.71 < chosen.count(texts[1]) / 2000 < 0.79
    assert captions.choose([None, "b"], random) == "b"
    with pytest.raises(ValidationError, match=r"names no caption: write txt"):
        CaptionSettings(keys={"caption": 1.0})


def test_tags_change_places_and_some_are_left_out() -> None:
    captions = CaptionSettings(shuffle_tags=True, drop_tags=0.25, keep_tags=1)
    random = np.random.default_rng(0)
    chosen = [captions.choose(["owl, a, b, c, d"], random).split(", ") for _ in range(500)]
    assert all(tags[0] == "owl" for tags in chosen)
    assert 2.8 < np.mean([len(tags) - 1 for tags in chosen]) < 3.2
    assert len({tuple(tags) for tags in chosen if len(tags) == 5}) > 20
    plain = CaptionSettings()
    state = random.bit_generator.state
    assert plain.choose(["owl, a"], random) == "owl, a"
    assert random.bit_generator.state == state


def test_the_sizes_of_the_released_buckets() -> None:
    sizes = bucket_sizes(768, [ratio(each) for each in RATIOS])
    assert sizes[0] == (768, 768)
    assert len(sizes) == len(set(sizes)) == 21  # two pairs of the 23 ratios give one size
    assert all(side % 32 == 0 for size in sizes for side in size)
    assert all(0.85 < size.height * size.width / 768**2 <= 1 for size in sizes)
    assert {(size.width, size.height) for size in sizes} == {(size.height, size.width) for size in sizes}
    # Of 2/3 and 9/16: int(sqrt(area / r) // 32) * 32 by int(sqrt(area * r) // 32) * 32.
    assert (928, 608) in sizes
    assert (1024, 576) in sizes
    assert sizes[closest(Size(1080, 1920), sizes)] == (576, 1024)
    assert bucket_sizes(200, []) == ((200, 200),)
    for wrong in ("1/0", "x", "100", -1):
        with pytest.raises(ValueError, match="ratio"):
            ratio(wrong)


def test_the_part_that_is_shown() -> None:
    pixels = np.zeros((64, 256, 3), np.uint8)
    pixels[20:40, 200:230] = np.random.default_rng(0).integers(0, 256, (20, 30, 3))
    image, random = Image.fromarray(pixels), np.random.default_rng(1)
    center = show(image, Size(64, 64), "center", random)
    assert not center.pixels.any()
    assert (center.enlarged, center.cut) == (0, 0.75)
    assert show(image, Size(64, 64), "smart", random).pixels.any()
    shown = [show(image, Size(64, 64), "random", random).pixels.any() for _ in range(60)]
    assert 10 < sum(shown) < 50
    assert show(image, Size(128, 512), "center", random).enlarged == 1
    assert show(image, Size(32, 128), "center", random).pixels.shape == (32, 128, 3)


def test_batches_have_one_size_and_all_images_come_as_often() -> None:
    counts, size = [37, 11, 3], 8
    order = BucketOrder(counts, seed=5)
    batches = [order.rows(index, size) for index in range(51 * 3)]
    edges = np.cumsum([0, *counts])
    kinds = [set(np.searchsorted(edges, rows, side="right").tolist()) for rows in batches]
    assert all(len(kind) == 1 for kind in kinds)
    seen = np.bincount(np.concatenate(batches), minlength=51)
    assert seen.sum() == 51 * 3 * size
    assert abs(seen - 24).max() <= 3
    assert all(np.array_equal(BucketOrder(counts, 5).rows(i, size), batches[i]) for i in (152, 3, 77))


def test_held_out_images_are_in_no_bucket() -> None:
    order = BucketOrder([20, 9], seed=2, held_out=6)
    trained = {int(row) for index in range(60) for row in order.rows(index, 4)}
    held = {int(row) for index in range(30) for row in order.held_out().rows(index, 2)}
    assert trained | held == set(range(29))
    assert len(held) == 6
    with pytest.raises(InvalidConfig, match="leaves none"):
        BucketOrder([2, 1], 0, 3)


def test_one_bucket_is_the_order_of_squares() -> None:
    plain, one = Order(12, 4, 3), BucketOrder([12], 4, 3)
    assert {tuple(sorted(o.left_out)) for o in (plain,)} == {tuple(sorted(one.held_out().orders[0].images))}
