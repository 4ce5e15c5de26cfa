"""Time of a training step and memory of each process, of a Stage C with random weights.

    python benchmarks/training.py --size small                 # seconds on a CPU
    python benchmarks/training.py --size 1B --what lora
    torchrun --nproc-per-node 4 benchmarks/training.py --size small

Under torchrun a finetuned network is split over the processes (`shard: true`). Held: what the process has of weights,
gradients, optimizer and average, counted; estimated: what `train --check` says; peak: of the whole process, or of the
card.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn

from cascade.models import STAGE_C_1B, STAGE_C_3_6B, Level, StageC, StageCConfig, initialize
from cascade.training.config import TrainingConfig
from cascade.training.loop import Trainer
from cascade.training.lora_layers import Adapter, Wiring
from cascade.training.networks import for_training
from cascade.training.processes import joined
from cascade.training.task import BaseTask, pick_device

SIZES = {
    "small": StageCConfig(condition_channels=256, levels=(Level(256, 4, 2), Level(256, 4, 6))),
    "1B": STAGE_C_1B,
    "3.6B": STAGE_C_3_6B,
}
EACH = 4 + 4 + 8
"""Bytes a trained number: weight, gradient, AdamW's averages; without the average of the weights."""


class Steps(BaseTask):
    """A network with random weights on random latents."""

    def __init__(self, config: TrainingConfig, size: StageCConfig, what: str) -> None:
        self.config, self.device = config, pick_device(config.device)
        torch.manual_seed(0)
        self.net = for_training(initialize(StageC(size)).to(self.device), self.device, config)
        self.modules: dict[str, nn.Module] = {"stage_c": self.net}
        if what == "lora":
            self.net.requires_grad_(False)
            if config.precision == "bfloat16":
                self.net.bfloat16()
            wiring = Wiring(Adapter())
            options: dict[str, Any] = {"dropout": 0.0, "dora": False}
            wiring.add_changes(self.net, "stage_c", ["attention"], rank=16, alpha=16, seed=0, **options)
            self.modules = {"adapter": wiring.adapter.to(self.device)}

    def batch(self, index: int) -> Tensor:
        return torch.randn(self.config.batch_size, 16, 24, 24, device=self.device)

    def loss(self, batch: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        config, count = self.net.config, len(batch)
        dtype = next(self.net.parameters()).dtype
        widths = {"clip_text": (77, config.clip_text), "clip_text_pooled": (1, config.clip_text_pooled)}
        inputs = {name: torch.randn(count, *shape, device=self.device, dtype=dtype) for name, shape in widths.items()}
        image = torch.zeros(count, 1, config.clip_img, device=self.device, dtype=dtype)
        found = self.net.denoise(
            batch, torch.rand(count, device=self.device), self.net.conditions(**inputs, clip_img=image)
        )
        return (found.float() - batch).square().mean(), {}


def held(trainer: Trainer, task: Steps) -> int:
    """Bytes of this process's parts."""
    tensors = [*task.net.parameters(), *trainer.parameters]
    tensors += [p.grad for p in trainer.parameters if p.grad is not None]
    tensors += [
        value for own in trainer.optimizer.state.values() for value in own.values() if isinstance(value, Tensor)
    ]
    local = {id(t): getattr(t, "to_local", lambda t=t: t)() for t in tensors}
    return sum(t.numel() * t.element_size() for t in local.values())


def peak(device: torch.device) -> int:
    """Bytes; 0 where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--what", choices=("finetune", "lora"), default="finetune")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    args = parser.parse_args()
    with joined() as processes, tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {
            "gradient_checkpointing": args.checkpointing,
            "ema": 0.0,
            "shard": processes.size > 1,
        }
        settings |= {"precision": "bfloat16" if args.bfloat16 else "float32", "batch_size": args.batch_size}
        config = TrainingConfig(task="x", output=Path(folder) / "run", steps=args.steps, **settings)
        task = Steps(config, SIZES[args.size], args.what)
        trainer = Trainer(task, config)
        trainer._train_step()
        start = time.perf_counter()
        for _ in range(args.steps - 1):
            trainer._train_step()
        seconds = (time.perf_counter() - start) / max(1, args.steps - 1)
        trained = sum(p.numel() for p in trainer.parameters)
        frozen = sum(p.numel() * p.element_size() for p in task.net.parameters() if not p.requires_grad)
        estimated = trained * EACH / (processes.size if args.what == "finetune" else 1) + frozen
        line = (
            f"{args.what} of {args.size} ({trained / 1e6:.1f} million trained), {processes.size} processes: "
            f"{seconds:.2f} s a step, held {held(trainer, task) / 1e9:.3f} GB, estimated {estimated / 1e9:.3f} GB, "
            f"peak {peak(task.device) / 1e9:.2f} GB"
        )
        for text in processes.gather(line):
            if processes.first:
                print(text)


if __name__ == "__main__":
    main()
