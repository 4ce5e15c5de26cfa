"""A guided Stage C step with a ControlNet: our MODEL and CONTROL_NET against ComfyUI's own pair, taking turns.

    COMFYUI_PATH=.hosts/0.30.0 python benchmarks/controlnet.py           # about 10 minutes on two cores, 14 GB
    COMFYUI_PATH=.hosts/0.30.0 python benchmarks/controlnet.py --small   # a trial of the script in a minute

Stage C 1B at 24 x 24 with a canny net of the released size, random weights, float32; whole runs of the host's own
sampler, so that a step holds its share of reading the hint, which both sides do once a run. Outputs must agree to 1e-4.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import SMALL_C, arguments, machine, print_table, with_random_weights
from host import HEAD, STEPS, boot, compared, conditioning, native_model, our_model
from torch import Tensor

from cascade.checkpoints import save_model
from cascade.models import STAGE_C_1B, ControlNet, ControlNetConfig, StageC

SIDE = 24


def write(folder: Path, small: bool) -> tuple[Path, Path, ControlNetConfig]:
    """Files of Stage C and of a canny net for it, with random weights."""
    stage_c = SMALL_C if small else STAGE_C_1B
    last = 2 * sum(level.depth for level in stage_c.levels) - 1
    # The host's Stage C wants a list as long as it has blocks.
    blocks = (0, last) if small else (0, 4, 8, 12, 19, 23, 27, last)
    config = ControlNetConfig(in_channels=1, width=stage_c.levels[0].width, blocks=blocks)
    for name, cls, each in (("stage_c", StageC, stage_c), ("canny", ControlNet, config)):
        with torch.device("meta"):
            net: Any = cls(each)
        save_model(with_random_weights(net), folder / f"{name}.safetensors")
    return folder / "stage_c.safetensors", folder / "canny.safetensors", config


def native_control(path: Path, config: ControlNetConfig) -> Any:
    """The host's own object around its own network, which it would not build for this width by itself."""
    import comfy.controlnet
    import comfy.ldm.cascade.controlnet
    from safetensors.torch import load_file

    net = comfy.ldm.cascade.controlnet.ControlNet(config.in_channels, config.width, list(config.blocks))
    net.load_state_dict(load_file(path), assign=True)
    return comfy.controlnet.T2IAdapter(net.eval(), config.in_channels, 32, "bilinear")


def sample(host: Any, model: Any, control: Any, hint: Tensor) -> Tensor:
    import comfy.sample

    apply = host.classes["ControlNetApplyAdvanced"]().apply_controlnet
    latent = torch.zeros(1, 16, SIDE, SIDE)
    torch.manual_seed(0)
    with torch.inference_mode():
        conds = apply(conditioning(1), conditioning(2), control, hint, 0.5, 0.0, 1.0)
        return comfy.sample.sample(
            model, torch.randn(latent.shape), STEPS, 4.0, "ddpm", "simple", *conds, latent, disable_pbar=True, seed=1
        )


def main() -> None:
    options = arguments(__doc__ or "", repeats=3)
    host = boot(os.environ["COMFYUI_PATH"])
    print(f"ComfyUI {host.version}, {machine()}\n", flush=True)
    hint = (
        (torch.rand(1, 1024, 1024, 1, generator=torch.Generator().manual_seed(0)) > 0.9).float().expand(-1, -1, -1, 3)
    )
    with tempfile.TemporaryDirectory() as folder:
        stage_c, canny, config = write(Path(folder), options.small)
        theirs = native_model(stage_c, "stage_c", options.small), native_control(canny, config)
        ours = our_model(host, stage_c, "stage_c"), host.pack("nodes.host.control").load_control(canny)[0]
        sides = {
            "ComfyUI": lambda: sample(host, *theirs, hint),
            "ours": lambda: sample(host, *ours, hint),
        }
        title = f"Stage C 1B with canny, guided step, {SIDE} x {SIDE}"
        print_table(HEAD, [compared(title, sides, options.repeats, STEPS)])


if __name__ == "__main__":
    main()
