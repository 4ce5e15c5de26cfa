"""The tiny cascade's images as sources of a training."""

from __future__ import annotations

import numpy as np
import pytest

from cascade.errors import InvalidConfig
from cascade.tiny.grammar import COLORS
from cascade.tiny.hearts import COUNT, TOKEN
from cascade.tiny.image_sources import EXAMPLES, KINDS
from cascade.training.data import ImageSettings, open_images


def test_images_do_not_depend_on_how_they_are_read() -> None:
    source = open_images(ImageSettings(source="tiny", count=5, seed=4, size=64))
    assert len(source) == 5
    images, captions = source.read(0, 5)
    assert (images.shape, images.dtype) == ((5, 64, 64, 3), np.uint8)
    one, caption = source.read(3, 1)
    assert np.array_equal(one[0], images[3])
    assert caption[0] == captions[3]


def test_one_in_four_is_a_heart() -> None:
    mixed, shapes = (
        open_images(ImageSettings(source=kind, count=40, seed=4, size=64)) for kind in ("tiny_with_hearts", "tiny")
    )
    images, captions = mixed.read(0, 40)
    hearts = [i for i, caption in enumerate(captions) if TOKEN in caption]
    assert hearts == list(range(0, 40, 4))
    assert {caption.replace("small ", "").replace("large ", "").split()[1] for caption in captions[::4]} == set(COLORS)
    others = [i for i in range(40) if i % 4]
    assert np.array_equal(images[others], shapes.read(0, 40)[0][others])
    some, texts = mixed.read(6, 9)
    assert np.array_equal(some, images[6:15])
    assert texts == captions[6:15]


@pytest.mark.parametrize("source", KINDS)
def test_a_count_is_needed(source: str) -> None:
    with pytest.raises(InvalidConfig, match=f"{source} needs a count"):
        open_images(ImageSettings(source=source))


def test_examples_can_be_opened() -> None:
    sources = {name: open_images(ImageSettings(**settings, size=64)) for name, settings in EXAMPLES.items()}
    assert len(sources["hearts"]) == COUNT
    assert all(TOKEN in caption for caption in sources["hearts"].read(0, 3)[1])
    assert not any(TOKEN in caption for caption in sources["shapes"].read(0, 20)[1])
