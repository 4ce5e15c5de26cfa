"""What it costs that weights lie at addresses that are no multiple of 64 bytes, as a foreign file may map them.

    python benchmarks/alignment.py            # about 5 minutes on two cores, 7 GB of memory
    python benchmarks/alignment.py --small    # a trial of the script in seconds

The same random weights twice: in a file as we write it, whose tensors begin at multiples of 64 bytes, and in one with a
header 56 bytes longer. Both are mapped by `load_model`. Rows: a Stage A decode to 512 x 512, a Stage B forward (700M,
64 x 64), in float32 and bfloat16; "copying once" puts all weights into aligned memory. The outputs differ by rounding,
where kernels add in another order.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import SMALL_B, arguments, difference, interleaved, machine, print_table, with_random_weights

from cascade.checkpoints import load_model, save_model
from cascade.models import STAGE_A, STAGE_B_700M, StageA, StageB

SHIFT = 56


def shifted(path: Path) -> Path:
    """A copy of a safetensors file with a header that is longer by spaces."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    other = path.with_name(f"shifted_{path.name}")
    with other.open("wb") as file:
        file.write((length + SHIFT).to_bytes(8, "little") + data[8 : 8 + length] + b" " * SHIFT)
        file.write(memoryview(data)[8 + length :])
    return other


def askew(net: Any) -> float:
    """The share of a network's bytes in tensors that begin at no multiple of 64."""
    tensors = list(net.state_dict().values())
    return sum(tensor.nbytes for tensor in tensors if tensor.data_ptr() % 64) / sum(tensor.nbytes for tensor in tensors)


def row(name: str, net: Any, dtype: torch.dtype, run: Callable[[Any], torch.Tensor], repeats: int) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_model(net, path, dtype=dtype)
        aligned, foreign = load_model(path), load_model(shifted(path))
    if askew(aligned) > 0.01 or askew(foreign) < 0.99:
        raise SystemExit(f"{name}: the weights do not lie as they should: {askew(aligned)}, {askew(foreign)}")
    error = difference(run(foreign), run(aligned))
    sides = {
        "aligned": lambda: run(aligned),
        "foreign": lambda: run(foreign),
        "copying": lambda: [tensor.clone() for tensor in foreign.state_dict().values()],
    }
    seconds = interleaved(sides, repeats)
    times = [f"{seconds[side]:.3f} s" for side in sides]
    ratio = f"{seconds['foreign'] / seconds['aligned']:.3f}"
    return [name, str(dtype).removeprefix("torch."), *times, ratio, f"{error:.0e}"]


@torch.inference_mode()
def main() -> None:
    options = arguments(__doc__ or "", repeats=7)
    side = 16 if options.small else 128
    config = SMALL_B if options.small else STAGE_B_700M
    with torch.device("meta"):
        stage_a, stage_b = StageA(STAGE_A), StageB(config)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        latents = torch.randn(1, 4, side, side).to(dtype)
        x, effnet, clip = (
            torch.randn(shape).to(dtype) for shape in ((1, 4, side // 2, side // 2), (1, 16, 6, 6), (1, 1, config.clip))
        )
        r = torch.tensor([0.5])
        for name, net, run in (
            (f"Stage A decode, {4 * side} x {4 * side}", stage_a, lambda net, latents=latents: net.decode(latents)),
            (f"Stage B step, {side // 2} x {side // 2}", stage_b, lambda net, given=(x, r, effnet, clip): net(*given)),
        ):
            rows.append(row(name, with_random_weights(net), dtype, run, options.repeats))
    print(f"{machine()}; median of {options.repeats} runs of each side\n")
    print_table(["", "dtype", "aligned", "foreign", "copying once", "ratio", "difference"], rows)


if __name__ == "__main__":
    main()
