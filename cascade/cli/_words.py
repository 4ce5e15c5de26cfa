"""Options that name words of a prompt, or places of an image with a prompt of their own."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CascadeError
from ._common import read_image

if TYPE_CHECKING:
    from torch import Tensor

    from ..pipelines import RegionalPrompt

_BOX = re.compile(r"\s*,\s*".join([r"(-?[0-9.]+)"] * 4))


def factor_of(text: str) -> tuple[str, float]:
    """WORD=F."""
    word, _, number = text.rpartition("=")
    try:
        factor = float(number)
    except ValueError:
        factor = math.nan
    if not word or not (0 <= factor < math.inf):
        raise argparse.ArgumentTypeError(f"{text!r} is not WORD=F with F from 0 on, such as snowy=2")
    return word, factor


def region_of(text: str) -> RegionalPrompt:
    """BOX=PROMPT with a box of left,top,right,bottom from 0 to 1, or MASK=PROMPT with an image file.

    Raises CascadeError for text of another form and what `mask_of` raises.
    """
    from ..pipelines import RegionalPrompt

    place, equals, prompt = text.partition("=")
    if not (place and equals and prompt.strip()):
        raise CascadeError(f'--region {text}: write BOX=PROMPT or MASK=PROMPT, such as 0,0,0.5,1="a red circle".')
    return RegionalPrompt(mask_of(place, f"--region {text}"), prompt)


def mask_of(place: str, option: str) -> Tensor:
    """The mask [1, 1, H, W] of a box of left,top,right,bottom from 0 to 1, or of an image file. option: for the error.

    Raises CascadeError for a box outside the image, InvalidImage or OSError for the file.
    """
    from ..editing import box_mask

    if found := _BOX.fullmatch(place.strip()):
        try:
            box = [float(number) for number in found.groups()]
        except ValueError as error:
            raise CascadeError(f"{option}: {place!r} is not left,top,right,bottom.") from error
        return box_mask(box)
    return read_image(Path(place))[:, :1]


def without_folder(region: str) -> str:
    """A region as `region_of` reads it; a mask's folder is private."""
    place, _, prompt = region.partition("=")
    return f"{Path(place).name}={prompt}"
