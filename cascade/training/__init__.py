"""Training: one loop for every task, from a file of settings to files that load_model reads.

config     settings, read from a file and checked by pydantic
data       settings of images, pixels as tensors; what a training reads of its images
listing    where images lie: folders, tars, lists; `remote`: s3:// and pipe:
folders    images and edits as they are trained on; `buckets`: their shapes; `metadata`: captions and filters;
           `beside`: hints, masks and faces beside them; `class_images`: those that are generated
cache      what is computed once from them, in shards; `preparation` makes it before a training
stream     images that are computed as they come
order      which images a batch has
loop       the loop (`fit`), with exact continuation
schedule, average, signals   the learning rate, the average of the weights, how a run is stopped
reference  the released training's files in our settings
needs      what a training needs: files, memory, disk; step_memory: by a step without numbers
optimizers by name; rounding: weights in bfloat16
processes  several processes, one training; sharding: networks split over them
trackers   TensorBoard and wandb
task       what the loop asks of a training
state, metrics   what a run leaves in its folder; background: while the training goes on
stage_a encoder captions stage_c stage_b controlnet lora instruct prior   one file a task
filters    what a ControlNet is shown; backbones: what its EfficientNet starts with
plain      a LoRA of a folder of images without a settings file
lora_layers, lora_kinds   what a LoRA trains: the changes beside the layers, learned tokens and words
"""

from __future__ import annotations

from .config import TrainingConfig, parse_config, read_config, read_mapping
from .loop import Outcome, Task, fit
from .processes import launched
from .tasks import SETTINGS, TASKS, ProgressBars, train

__all__ = [
    "SETTINGS",
    "TASKS",
    "Outcome",
    "ProgressBars",
    "Task",
    "TrainingConfig",
    "fit",
    "launched",
    "parse_config",
    "read_config",
    "read_mapping",
    "train",
]
