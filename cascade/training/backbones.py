"""What a new ControlNet's EfficientNet starts with: the weights of one that was trained on images."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints.sources import TensorSource, open_tensors
from ..errors import InvalidConfig
from ..models import ControlNet

log = logging.getLogger("cascade")

IMAGENET = "efficientnet_v2_s-dd5fe13b.pth"
"""torchvision's file, as it keeps it once it was fetched; it is never fetched here."""
_PREFIXES = ("features.", "backbone.", "")
"""Before the names of layers: torchvision's, those of encoders and ControlNets, none."""


def start_backbone(net: ControlNet, path: Path | None) -> None:
    """Load the EfficientNet of a file into a ControlNet's; without a file, that of ImageNet where torchvision has it at
    hand and it is of these sizes. A first layer that reads other channels gets those that both have, as released.

    The file may be torchvision's, an EfficientNet encoder's, or another ControlNet's.

    Raises:
        InvalidConfig: the file has no EfficientNet of these sizes, or the ControlNet has no EfficientNet.
        CheckpointError: the file cannot be read.
    """
    if path is not None and not net.config.reads_images:
        raise InvalidConfig(f"controlnet: backbone: a ControlNet of the kind {net.config.backbone} takes no such file")
    found = path or Path(torch.hub.get_dir()) / "checkpoints" / IMAGENET
    if not net.config.reads_images or not found.exists():
        if path is None:
            return
        raise InvalidConfig(f"controlnet: backbone: {path} is not there")
    if _load(net, found):
        log.info("the ControlNet's backbone starts with %s", found)
    elif path is not None:
        raise InvalidConfig(f"controlnet: backbone: {path} has no EfficientNet of the ControlNet's sizes")


@torch.no_grad()
def _load(net: ControlNet, path: Path) -> bool:
    """Whether the file has the weights of the backbone, which are then taken."""
    wanted = {name: value for name, value in net.backbone.state_dict().items() if "num_batches" not in name}
    first = next(iter(wanted))
    for source in open_tensors(path).values():
        prefix = next((each for each in _PREFIXES if _fits(source, each, wanted, first)), None)
        if prefix is None:
            continue
        with source.reader() as read:
            for name, value in wanted.items():
                _take(value, read(f"{prefix}{name}").to(value), name == first)
        return True
    return False


def _fits(source: TensorSource, prefix: str, wanted: dict[str, Tensor], first: str) -> bool:
    """Whether all layers are there, of the same sizes; the first one may read other channels."""
    for name, value in wanted.items():
        info = source.tensors.get(f"{prefix}{name}")
        shape = () if info is None else tuple(info.shape)
        if name == first:
            shape = (*shape[:1], value.shape[1], *shape[2:])
        if shape != tuple(value.shape):
            return False
    return True


def _take(value: Tensor, found: Tensor, first: bool) -> None:
    if not first:
        value.copy_(found)
        return
    both = min(value.shape[1], found.shape[1])
    value.zero_()
    value[:, :both] = found[:, :both]
