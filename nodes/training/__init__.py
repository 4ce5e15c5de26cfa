"""Training inside ComfyUI, one file a node; what they share is in `rows`."""

from __future__ import annotations

from .controlnet import CascadeTrainControlNet
from .finetune import CascadeFinetune
from .lora import CascadeTrainLora

NODES = [CascadeTrainLora, CascadeTrainControlNet, CascadeFinetune]
