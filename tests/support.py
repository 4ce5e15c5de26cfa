"""What tests in several rooms use: the reference's golden cases, and weights by its rule."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cascade import models

DATA = Path(__file__).parent / "data"
REFERENCE = DATA / "reference"
INDEX: dict[str, dict[str, Any]] = json.loads((REFERENCE / "golden" / "index.json").read_text(encoding="utf-8"))
SHAPES: dict[str, dict[str, list[int]]] = json.loads((REFERENCE / "golden" / "shapes.json").read_text(encoding="utf-8"))
NETWORKS = {
    "stage_c": (models.StageC, models.StageCConfig),
    "stage_b": (models.StageB, models.StageBConfig),
    "stage_a": (models.StageA, models.StageAConfig),
    "previewer": (models.Previewer, models.PreviewerConfig),
    "effnet": (models.EffnetEncoder, models.EffnetConfig),
    "controlnet": (models.ControlNet, models.ControlNetConfig),
    "ultrapixel_inr": (models.HighResGuide, models.HighResGuideConfig),
    "ultrapixel_stage_c": (models.StageC, models.StageCConfig),
}


def golden(case: str) -> dict[str, Tensor]:
    """Inputs and outputs of a golden case."""
    return load_file(REFERENCE / "golden" / INDEX[case]["file"])


def manifest(name: str) -> dict[str, list[int]]:
    """Tensor names and shapes of a released file."""
    return json.loads((REFERENCE / "manifests" / f"{name}.json").read_text(encoding="utf-8"))["tensors"]


def reference_weights(shapes: dict[str, list[int]], seed: int = 0) -> dict[str, Tensor]:
    """Weights by the rule of the reference data, under the reference's names."""
    return {name: _weight(name, shape, seed) for name, shape in shapes.items()}


def _weight(name: str, shape: list[int], seed: int) -> Tensor:
    if name.endswith(("num_batches_tracked", ".indices")):
        return torch.zeros(shape, dtype=torch.int64)
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()) + seed))
    z = torch.from_numpy(np.asarray(generator.standard_normal(shape, dtype=np.float32)))
    if name.endswith("running_var"):
        return 0.5 + z.abs()
    if len(shape) <= 1 or all(n == 1 for n in shape[:-1]):
        return 1 + 0.1 * z if name.endswith("weight") else 0.5 * z
    return z / float(np.sqrt(np.prod(shape[1:])))


def split_attention(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Reference names to ours: the fused projection as three."""
    ours: dict[str, Tensor] = {}
    for name, value in state.items():
        for fused, part in (("in_proj_weight", "weight"), ("in_proj_bias", "bias")):
            if name.endswith(fused):
                stem = name.removesuffix(fused)
                ours |= {f"{stem}to_{q}.{part}": chunk for q, chunk in zip("qkv", value.chunk(3), strict=True)}
                break
        else:
            ours[name] = value
    return ours


def assigned(net: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """A network from the meta device with these weights, ready to run."""
    if os.environ.get("CASCADE_TEST_MISALIGNED"):
        state = {name: misaligned(tensor) for name, tensor in state.items()}
    net.load_state_dict(state, assign=True)
    return net.eval().requires_grad_(False)


def misaligned(tensor: Tensor) -> Tensor:
    """A copy that begins 56 bytes after a multiple of 64, as in a file whose header is not padded to one."""
    memory = torch.empty(tensor.nbytes + 120, dtype=torch.uint8)
    start = (56 - memory.data_ptr()) % 64
    return memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)


class MisalignedFile:
    """`safe_open` with tensors that lie so."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.file: Any = safe_open(*args, **options)

    def __enter__(self) -> MisalignedFile:
        self.file.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.file.__exit__(*error)

    def get_tensor(self, name: str) -> Tensor:
        return misaligned(self.file.get_tensor(name))


def meta(kind: str, config: Any) -> nn.Module:
    with torch.device("meta"):
        return NETWORKS[kind][0](config)


def golden_network(case: str) -> nn.Module:
    """The network of a golden case, with its weights."""
    entry = INDEX[case]
    config = NETWORKS[entry["kind"]][1].from_reference(**entry["config"])
    return assigned(meta(entry["kind"], config), split_attention(reference_weights(SHAPES[case], entry["seed"])))


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """max |ours - theirs| / max |theirs|."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    ours, theirs = ours.detach().float(), theirs.detach().float()
    return float((ours - theirs).abs().max() / theirs.abs().max())


def randomised(net: nn.Module) -> nn.Module:
    """Initialised, and with nothing left at zero that would hide a mistake."""
    torch.manual_seed(0)
    models.initialize(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net.eval().requires_grad_(False)


class Waits(TorchDispatchMode):
    """Finds what asks for a number of a tensor, for which a graphics card must finish its work."""

    ASKS = ("aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.found = 0, list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        if func.name().partition(".")[0] in self.ASKS:
            self.found.append(func.name())
        return func(*args, **(kwargs or {}))
