"""The pairs of images that the tiny cascade's IP-Adapter is trained on."""

from __future__ import annotations

import numpy as np
import pytest

from cascade.tiny import grammar, ip_adapter_images
from cascade.tiny.analysis import describe


@pytest.mark.parametrize("unseen", [False, True])
def test_both_show_one_thing_and_the_prompt_says_where_it_is_made(unseen: bool) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        pair = ip_adapter_images.sample(rng, unseen=unseen)
        assert grammar.fits(pair.image) is not unseen
        first, second = (describe(image) for image in ip_adapter_images.draw(pair, rng))
        [one], [two] = first.items, second.items
        looks = {(each.color, each.shape, each.size, where.background) for each, where in ((one, first), (two, second))}
        assert looks == {(two.color, pair.wanted.items[0].shape, two.size, pair.image.background)}
        assert pair.prompt == f"a shape, {two.place}"
        assert one.place != two.place


def test_a_pair_depends_on_its_number_alone() -> None:
    images, captions = ip_adapter_images.batch(3, 4, size=64)
    again, same = ip_adapter_images.batch(3, 2, start=2, size=64)
    assert np.array_equal(images[2:], again)
    assert captions[2:] == same
