"""The released Stage C at its full size on this machine: 3.6B parameters, bfloat16, random weights, in a real ComfyUI.

    COMFYUI_PATH=.hosts/0.30.0 python benchmarks/full_size.py    # 8 GB of disk and 16 GB of memory

Writes the file, then loads it with our loader and runs one step of the host's sampler at 24 x 24, in a process of its
own; says how long each took and how large that process became.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

import torch
from common import machine, print_table, with_random_weights
from load_once import resident
from safetensors.torch import save_file

from cascade.models import STAGE_C_3_6B, StageC
from tests.nodes.hosting import boot


def write(path: Path) -> None:
    """A file with the names and shapes of the released one."""
    with torch.device("meta"):
        net = StageC(STAGE_C_3_6B).bfloat16()
    save_file(with_random_weights(net).state_dict(), path)


def load_and_step(path: Path) -> None:
    host = boot(os.environ["COMFYUI_PATH"])
    import comfy.sample

    before, start = resident("VmRSS"), time.perf_counter()
    model = host.pack("nodes.host.models").load_stage("stage_c", path, "bf16")
    loaded = time.perf_counter()
    text = [[torch.randn(1, 77, 1280), {"pooled_output": torch.randn(1, 1280)}]]
    latent = torch.zeros(1, 16, 24, 24)
    with torch.inference_mode():
        result = comfy.sample.sample(
            model, torch.randn_like(latent), 1, 1.0, "ddpm", "simple", text, text, latent, disable_pbar=True, seed=1
        )
    assert torch.isfinite(result).all()
    rows = [
        ["file", f"{path.stat().st_size / 1e9:.1f} GB"],
        ["loading", f"{loaded - start:.1f} s"],
        ["a step", f"{time.perf_counter() - loaded:.1f} s"],
        ["memory at its peak, less the idle host", f"{(resident('VmHWM') - before) / 1e9:.1f} GB"],
    ]
    print(f"ComfyUI {host.version}, {machine()}\n")
    print_table(["Stage C 3.6B, bfloat16", ""], rows)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        load_and_step(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "stage_c_bf16.safetensors"
            write(file)
            subprocess.run([sys.executable, __file__, str(file)], check=True)
