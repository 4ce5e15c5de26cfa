"""How much of an image the attention blocks of Stage C see."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InvalidSettings


@dataclass(frozen=True)
class BlockWeights:
    """How much of an image the attention blocks see.

    ranges: first, last, weight. first and last are parts of the network's depth: 0 is its first attention block, 1 its
        last, 0.5 the middle between the way down and the way up. Blocks in none of them do not see the image.
    """

    ranges: tuple[tuple[float, float, float], ...] = ((0.0, 1.0, 1.0),)

    def __post_init__(self) -> None:
        for first, last, weight in self.ranges:
            if not (0 <= first < last <= 1 and 0 <= weight <= 1):
                raise InvalidSettings(
                    f"the range of blocks {first:g}-{last:g}={weight:g} is not valid: first and last are parts of the "
                    "network from 0 to 1, first below last, and the weight is from 0 to 1"
                )

    @classmethod
    def of(cls, text: str) -> BlockWeights:
        """Of a name in `BLOCK_WEIGHTS`, or of ranges such as 0-0.5=1, 0.5-1=0.2. Raises InvalidSettings otherwise."""
        if text in BLOCK_WEIGHTS:
            return BLOCK_WEIGHTS[text]
        return cls(tuple(_range(part) for part in text.split(",")))

    def at(self, block: int, blocks: int) -> float:
        """The weight in the block of this number, of so many."""
        place = (block + 0.5) / blocks
        return next((weight for first, last, weight in self.ranges if first <= place < last), 0.0)


def _range(text: str) -> tuple[float, float, float]:
    ends, _, weight = text.partition("=")
    first, _, last = ends.partition("-")
    try:
        return float(first), float(last), float(weight)
    except ValueError as error:
        raise InvalidSettings(
            f"{text.strip()!r} is not a range of blocks: write {', '.join(BLOCK_WEIGHTS)}, or ranges such as "
            "0-0.5=1, 0.5-1=0.2"
        ) from error


ALL = BlockWeights()
BLOCK_WEIGHTS = {
    "all": ALL,
    "composition": BlockWeights(((0.0, 0.5, 1.0),)),
    "style": BlockWeights(((0.5, 1.0, 1.0),)),
}
"""Block weights by name."""
