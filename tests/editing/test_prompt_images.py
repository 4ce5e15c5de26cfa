"""Image prompts: what Stage C sees of them, by a network of random weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cascade.conditioning import StageCInputs, TextEmbedding
from cascade.editing import (
    BLOCK_WEIGHTS,
    COMBINE,
    BlockWeights,
    NetworkCall,
    PlacedImages,
    PromptImages,
    Region,
    Regions,
    SeenImages,
    StyleAligned,
    Together,
    Tokens,
    box_mask,
)
from cascade.errors import IncompatibleCheckpoint, InvalidSettings
from cascade.models import AttentionCall, scaled_dot_product_attention
from tests.support import relative_error

pytestmark = pytest.mark.numeric

HEADS, WIDTH, SIZE, TEXT, EACH = 2, 8, (4, 6), 3, 4
PLACES = SIZE[0] * SIZE[1]
FIRST, SECOND = (torch.full((1, 1, 5), value) for value in (1.0, 2.0))
NONE = torch.zeros(1, 1, 5)
PLAIN = StageCInputs(torch.zeros(1, TEXT, 5), torch.zeros(1, 1, 5), NONE)
LEFT = box_mask((0, 0, 0.5, 1))


def one(embedding: Tensor = FIRST, weight: float = 1.0, **where: object) -> PlacedImages:
    return PlacedImages(images=PromptImages(embedding, (weight,)), **where)  # type: ignore[arg-type]


def call_of(control: SeenImages, percent: float = 0.5, blocks: int = 8) -> NetworkCall:
    tokens = Tokens.of(**control.inputs(PLAIN).as_kwargs(), each=EACH)
    return NetworkCall(percent, (True,), tokens, blocks)


def block(call: NetworkCall, number: int = 0) -> AttentionCall:
    made = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(1, n, WIDTH, generator=made) for n in (PLACES, *[PLACES + call.tokens.count] * 2))
    return AttentionCall(q, k, v, HEADS, scaled_dot_product_attention, number, SIZE)


def seen(control: SeenImages | Together, call: NetworkCall, number: int = 0) -> Tensor:
    """How much each position sees of each token of the conditions [h w, tokens], in the first head."""
    given = block(call, number)
    shares = []
    for token in range(call.tokens.count):
        values = torch.zeros_like(given.v)
        values[:, PLACES + token] = 1
        around = control.around(call)
        assert around is not None
        shares.append(around(given._replace(v=values))[0, :, 0])
    return torch.stack(shares, dim=1)


def images_of(control: SeenImages, call: NetworkCall, number: int = 0) -> Tensor:
    """How much each position sees of no image, and of each image [h w, 1 + images]."""
    return seen(control, call, number)[:, TEXT + EACH :].unflatten(1, (-1, EACH)).sum(-1)


def test_images_that_are_seen_in_full_are_only_tokens() -> None:
    control = SeenImages([one(FIRST), one(SECOND)])
    assert not control.acting
    assert torch.equal(control.inputs(PLAIN).clip_img, torch.cat([FIRST, SECOND], 1))
    assert control.negative_inputs(PLAIN) is PLAIN
    assert control.beside(None) is None
    batch = torch.cat([FIRST, SECOND])
    assert torch.equal(SeenImages([one(batch)]).of([1]).inputs(PLAIN).clip_img, SECOND)
    beside = SeenImages(negative=[one(SECOND)])
    assert beside.inputs(PLAIN) is PLAIN
    assert torch.equal(beside.negative_inputs(PLAIN).clip_img, SECOND)


@pytest.mark.parametrize("images", [one(strength=0.0), PlacedImages(images=COMBINE["concat"]([FIRST], [0.0]))])
def test_what_has_no_weight_is_not_there(images: PlacedImages) -> None:
    control = SeenImages([images], [images])
    assert not control.acting
    assert control.inputs(PLAIN) is PLAIN
    assert control.negative_inputs(PLAIN) is PLAIN


def test_a_weight_is_a_factor_on_what_attention_sees() -> None:
    plain = SeenImages([one(weight=1.0), one(SECOND, strength=0.5)])
    call = call_of(plain)
    whole = images_of(plain, call)
    assert not whole[:, 0].any()
    halved = SeenImages([one(weight=0.5), one(SECOND, strength=0.5)])
    found = images_of(halved, call)
    # Half of it, half of no image, each as a part of a sum that has changed.
    assert torch.allclose(found[:, 1] / found[:, 2], 0.5 * whole[:, 1] / whole[:, 2], rtol=1e-4)
    assert (found[:, 0] > 0).all()


def test_an_image_is_seen_where_its_mask_is_white() -> None:
    control = SeenImages([one(mask=LEFT), one(SECOND, mask=1 - LEFT)])
    none, first, second = (x.unflatten(0, SIZE) > 1e-6 for x in images_of(control, call_of(control)).unbind(1))
    assert first[:, :3].all()
    assert not first[:, 3:].any()
    assert second[:, 3:].all()
    assert not second[:, :3].any()
    assert not none.any()
    alone = SeenImages([one(mask=LEFT)])
    none = images_of(alone, call_of(alone))[:, 0].unflatten(0, SIZE)
    assert (none[:, 3:] > 0).all()
    assert not none[:, :3].any()
    soft = SeenImages([one(mask=torch.linspace(0.02, 0.98, 60).expand(1, 1, 40, 60))])
    none, first = images_of(soft, call_of(soft)).unbind(1)
    assert (none > 0).all()
    assert (first > 0).all()


def test_outside_its_part_of_the_run_the_run_is_the_plain_one() -> None:
    control = SeenImages([one(start_percent=0.2, end_percent=0.6)])
    inside, outside = (call_of(control, percent) for percent in (0.4, 0.8))
    assert (images_of(control, inside) > 0).all(0).tolist() == [False, True]
    given = block(outside)
    around = control.around(outside)
    assert around is not None
    keys = slice(0, given.k.shape[1] - EACH)
    assert torch.equal(around(given), given._replace(k=given.k[:, keys], v=given.v[:, keys]).plain())


def test_blocks_have_weights_of_their_own() -> None:
    control = SeenImages([one(blocks=BlockWeights.of("0-0.5=1, 0.5-0.75=0.25"))])
    call = call_of(control)
    none, image = zip(*(images_of(control, call, number).mean(0).tolist() for number in range(8)), strict=True)
    assert [n > 0 for n in none] == [False] * 4 + [True] * 4
    assert [i > 0 for i in image] == [True] * 6 + [False] * 2
    assert image[4] < image[3]
    assert [BLOCK_WEIGHTS["composition"].at(i, 4) for i in range(4)] == [1, 1, 0, 0]
    assert [BLOCK_WEIGHTS["style"].at(i, 4) for i in range(4)] == [0, 0, 1, 1]
    assert BlockWeights.of("all") == BlockWeights.of("0-1=1")


@pytest.mark.parametrize("text", ["colors", "0.5-0=1", "0-2=1", "0-1=2", "0-1", "0.2=1", "0-1=nan", ""])
def test_blocks_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(InvalidSettings, match="range of blocks"):
        BlockWeights.of(text)


def test_ways_to_combine_images() -> None:
    first, second = (torch.randn(2, 1, 5, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    found = COMBINE["concat"]([first, second], [0.5, -2.0])
    assert found.weights == (0.5, 2.0)
    assert torch.equal(found.embeddings, torch.cat([first, -second], 1))
    assert COMBINE["concat"]([first, second], [0, 1]).weights == (1,)
    mean, difference = (COMBINE[name]([first, second], [1.0, 1.0]) for name in ("average", "subtract"))
    length = (first.norm(dim=-1) + second.norm(dim=-1)) / 2
    for found, expected in ((mean, first + second), (difference, first - second)):
        assert found.weights == (1.0,)
        assert torch.allclose(found.embeddings.norm(dim=-1), length, rtol=1e-5)
        assert torch.allclose(torch.cosine_similarity(found.embeddings, expected, dim=-1), torch.ones(2, 1))
    for name in COMBINE:
        assert relative_error(COMBINE[name]([first, second], [1.0, 0.0]).embeddings, first) < 1e-6
        assert COMBINE[name]([first, second], [0.0, 0.0]).weights == ()


def test_regions_and_image_prompts_are_seen_together() -> None:
    text = TextEmbedding(torch.ones(1, TEXT, 5), torch.ones(1, 1, 5))
    regions, images = Regions([Region(LEFT, text)], base=0.0), SeenImages([one(mask=1 - LEFT)])
    both = images.beside(regions)
    assert isinstance(both, Together)
    tokens = Tokens.of(**regions.inputs(images.inputs(PLAIN)).as_kwargs(), each=EACH)
    found = seen(both, NetworkCall(0.5, (True,), tokens, 8)).unflatten(0, SIZE) > 1e-6
    region, image = found[..., TEXT], found[..., -1]
    assert region[:, :3].all()
    assert not region[:, 3:].any()
    assert image[:, 3:].all()
    assert not image[:, :3].any()
    with pytest.raises(InvalidSettings, match="so does a style: use one of them"):
        images.beside(StyleAligned())
    aligned = StyleAligned()
    assert SeenImages([one()]).beside(aligned) is aligned


def test_too_many_images_and_another_encoder_are_refused() -> None:
    many = PlacedImages(images=PromptImages(FIRST.expand(1, 65, 5), (1.0,) * 65))
    with pytest.raises(InvalidSettings, match="have 65 images, and at most 64 can be read"):
        SeenImages([many])
    with pytest.raises(IncompatibleCheckpoint, match="of width 5, and these have 7"):
        SeenImages([one(torch.ones(1, 1, 7))]).inputs(PLAIN)
    with pytest.raises(InvalidSettings, match="strength of an image prompt must be from 0 to 1"):
        one(strength=1.5)
    with pytest.raises(InvalidSettings, match="mask of an image prompt is empty"):
        one(mask=torch.zeros(1, 1, 8, 8))
    with pytest.raises(InvalidSettings, match="must not be above end_percent"):
        one(start_percent=0.8, end_percent=0.2)
