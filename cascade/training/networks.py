"""Networks for a training: new ones from a config section, trained ones from files, sheets of what they make."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor, nn

from ..errors import InvalidConfig
from ..images import normalize
from ..models import Attention, initialize, scaled_dot_product_attention
from ..models.blocks import AttnBlock
from .config import TrainingConfig
from .data import resize, to_halves, to_pixels
from .task import derive_seed

C = TypeVar("C")


def model_config(cls: type[C], section: Mapping[str, Any], where: str) -> C:
    """A network's config from its section: the config's own names, or `reference:` with the reference's arguments.

    Raises InvalidConfig with `where` for names or sizes that do not fit.
    """
    kind: Any = cls
    try:
        if set(section) == {"reference"}:
            return kind.from_reference(**section["reference"])
        return kind.from_dict(section)
    except (TypeError, ValueError) as error:
        raise InvalidConfig(f"{where}: {error}") from error


def new_network(net: nn.Module, seed: int, name: str, device: torch.device) -> nn.Module:
    """The network with fresh weights that follow from the seed and its name, on the device."""
    torch.manual_seed(derive_seed(seed, "weights", name))
    return on_device(initialize(net), device)


def new_clip(kind: str, section: Mapping[str, Any], seed: int, device: torch.device) -> nn.Module:
    """A text encoder ("text") or image encoder ("image") with fresh weights; `section` is the transformers config."""
    import transformers

    config_class = {"text": transformers.CLIPTextConfig, "image": transformers.CLIPVisionConfig}[kind]
    model_class = {
        "text": transformers.CLIPTextModelWithProjection,
        "image": transformers.CLIPVisionModelWithProjection,
    }[kind]
    torch.manual_seed(derive_seed(seed, "weights", kind))
    # On a CPU plain matrix products train faster than torch's fused attention (see matmul_attention).
    attention = "eager" if device.type == "cpu" else "sdpa"
    return on_device(model_class._from_config(config_class(**section), attn_implementation=attention), device)


def load_encoders(folder: Path, text: nn.Module, image: nn.Module) -> None:
    """The weights of text_encoder.safetensors and image_encoder.safetensors into networks of their sizes."""
    for name, net in {"text_encoder": text, "image_encoder": image}.items():
        net.load_state_dict(frozen(folder / f"{name}.safetensors", next(net.parameters()).device).state_dict())


def grown(weights: Mapping[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """Weights of a network with smaller filters for `net`: each in the middle of a larger one, zeros around it."""
    result = {}
    for name, wanted in net.state_dict().items():
        weight = weights[name]
        if weight.dim() == 4 and weight.shape[-1] < wanted.shape[-1]:
            side = (wanted.shape[-1] - weight.shape[-1]) // 2
            weight = F.pad(weight, (side, side, side, side))
        result[name] = weight
    return result


def matmul_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """As scaled_dot_product_attention of the models, in plain matrix products.

    On a CPU the backward pass of torch's own is three times slower in bfloat16.
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return (weights.softmax(dim=-1).to(v.dtype) @ v).transpose(1, 2).flatten(-2)


def training_attention(device: torch.device) -> Attention:
    """The attention that trains fastest on the device."""
    return matmul_attention if device.type == "cpu" else scaled_dot_product_attention


def for_training(net: Any, device: torch.device, config: TrainingConfig) -> Any:
    """The network itself, Stage C or Stage B, ready for gradients that go through it, as the settings want it."""
    for block in net.blocks(AttnBlock):
        block.attend = training_attention(device)
    net.gradient_checkpointing = config.gradient_checkpointing
    if config.torch_compile_backend is not None:
        for block in net.blocks(nn.Module):
            block.compile(backend=config.torch_compile_backend)
    return net


def to_finetune(path: Path | None, kind: str, device: torch.device, config: TrainingConfig) -> Any:
    """The network of a file, of its own sizes, to train all of it. Raises InvalidConfig without a file."""
    if path is None:
        raise InvalidConfig(f"{kind}: give model (the sizes of a new network) or start (a file)")
    return for_training(frozen(path, device, kind), device, config).requires_grad_(True)


def frozen(path: Path, device: torch.device, part: str | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """A trained network from a file, in eval mode, that takes no gradients.

    `part` is its kind, where the file holds several.
    """
    from ..checkpoints import load_model

    net = load_model(path, part=part, dtype=dtype, device=str(device))
    return on_device(net, device).eval().requires_grad_(False)


def encode_latents(encoder: nn.Module, images: Tensor, size: int | tuple[int, int]) -> np.ndarray:
    """float16 [B, 16, h / 32, w / 32]: what the EfficientNet encoder makes of images in [0, 1] at this size."""
    return to_halves(encoder(normalize(resize(images, size))))


def on_device(net: nn.Module, device: torch.device) -> nn.Module:
    """Filters lie channels last, as the networks' activations do."""
    return net.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@torch.no_grad()
def recalibrate_batch_norm(net: nn.Module, runs: Sequence[Any]) -> None:
    """Replace the running statistics of every batch norm by the mean over `runs`: functions that call the network once.

    Statistics gathered while the weights moved do not fit their average.
    """
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for run in runs:
        run()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


LABEL = 500
"""Characters of a label, about as many as a text encoder reads of a prompt; one of a megabyte would be an image of
gigabytes."""


def sheet(rows: Sequence[Tensor], size: int = 128, labels: Sequence[str] = ()) -> Image.Image:
    """Rows of images [B, 3, h, w] in [0, 1] as one image, each `size` pixels wide; a label below each column."""
    lines = []
    for row in rows:
        tiles = [Image.fromarray(image).resize((size, size), Image.Resampling.NEAREST) for image in to_pixels(row)]
        lines.append(np.concatenate([np.asarray(tile) for tile in tiles], axis=1))
    if labels:
        lines.append(_labels(labels, size))
    return Image.fromarray(np.concatenate(lines, axis=0))


def _labels(texts: Sequence[str], size: int) -> np.ndarray:
    """Texts on white side by side, each wrapped to `size` pixels."""
    wrapped = ["\n".join(textwrap.wrap(text[:LABEL], size // 6)) for text in texts]
    image = Image.new("RGB", (size * len(texts), 8 + 14 * max(text.count("\n") + 1 for text in wrapped)), "white")
    pen = ImageDraw.Draw(image)
    for column, text in enumerate(wrapped):
        pen.text((column * size + 3, 3), text, fill="black")
    return np.asarray(image)
