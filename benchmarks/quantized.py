"""What quantized files cost: the error of a step, and images of the tiny cascade.

    python benchmarks/quantized.py    # about 5 minutes on two cores

The networks of the tiny cascade are written as bfloat16, fp8_scaled and int8 and read again. The error of a guided step
is relative to the largest value of float32; images are compared with those of float32 (PSNR) and with their prompts.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from caches import ALL, Way, images_of, right
from common import arguments, difference, machine, print_table
from steps import KINDS, step_of

from cascade import tiny
from cascade.checkpoints import convert, load_model
from cascade.images import psnr
from cascade.pipelines import Parts

SIDES = {"stage_c": 6, "stage_b": 64}
FORMATS: dict[str, dict[str, object]] = {
    "bfloat16": {"dtype": torch.bfloat16},
    "fp8_scaled": {"dtype": torch.bfloat16, "quantize": "fp8_scaled"},
    "int8": {"dtype": torch.bfloat16, "quantize": "int8"},
}


def step_error(kind: str, path: Path) -> float:
    """Of a step in float32 with the weights of a file."""
    results = []
    for file in (tiny.path(kind), path):
        torch.manual_seed(0)
        net = load_model(file, dtype=torch.float32)
        results.append(step_of(net, kind, SIDES[kind], "cpu", torch.float32)())
    return difference(results[1], results[0])


@torch.inference_mode()
def main() -> None:
    options = arguments(__doc__ or "", repeats=1)
    prompts = 20 if options.small else 60
    plain, lines = images_of(Parts(tiny.parts()), prompts, Way()), []
    lines.append(["float32", "", "", "", f"{100 * right(plain):.1f} %", ""])
    for name, settings in FORMATS.items():
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            files = {kind: Path(folder) / f"{kind}.safetensors" for kind in KINDS}
            for kind, path in files.items():
                convert(tiny.path(kind), path, **settings)  # type: ignore[arg-type]
            size = sum(path.stat().st_size for path in files.values()) / sum(tiny.path(k).stat().st_size for k in files)
            images = images_of(Parts({**tiny.parts(), **files}), prompts, Way())
            errors = [f"{step_error(kind, path):.4f}" for kind, path in files.items()]
        near = statistics.median(psnr(image, other) for image, other in zip(images, plain))
        lines.append([name, f"{size:.2f}", *errors, f"{100 * right(images):.1f} %", f"{near:.1f} dB"])
        print(*lines[-1], flush=True)
    print(f"\n{machine()}; {prompts} prompts\n")
    print_table(["weights", "size", "Stage C, error", "Stage B, error", ALL, "PSNR to float32"], lines)


if __name__ == "__main__":
    main()
