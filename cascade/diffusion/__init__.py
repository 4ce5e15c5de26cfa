"""The mathematics of diffusion: functions of (x, noise, log_snr), independent of any network.

schedules         t -> log_snr
scalings          log_snr -> (a, b) of x = a x0 + b epsilon
targets           what the network predicts, and x0 and epsilon from it
noise_conditions  log_snr -> r, the noise level as the network reads it
loss_weights      log_snr -> factor of the training loss
process           the five above as one object (`Diffusion`), for training and for sampling
interval          a part of a sampling run
guidance          classifier-free guidance
samplers          one step
caching           work of earlier steps that is used again
settings          how a stage is sampled, and its noise levels
noise             seeded noise for each image
sampling          the loop (`sample`)
inversion         the noise with which the loop ends at a given image
mixing            blends of latents or embeddings: weighted sum, lerp, slerp
"""

from __future__ import annotations

from .caching import Cache, CacheRun
from .guidance import Guidance
from .interval import InInterval, Interval
from .inversion import Inverted, Inverting
from .loss_weights import LOSS_WEIGHTS, LossWeight
from .mixing import blend, lerp, sequence, slerp, weighted
from .noise import SeededNoise
from .noise_conditions import NOISE_CONDITIONS, NoiseCondition
from .process import RELEASED_DIFFUSION, Diffusion, TrainingBatch
from .samplers import SAMPLERS
from .sampling import Keeping, Kept, NetworkArguments, OnStep, Steering, StepArguments, sample
from .scalings import SCALINGS, Scaling
from .schedules import SCHEDULES, Schedule
from .settings import NoiseLevel, SamplingSettings
from .targets import TARGETS, Target

__all__ = [
    "LOSS_WEIGHTS",
    "NOISE_CONDITIONS",
    "RELEASED_DIFFUSION",
    "SAMPLERS",
    "SCALINGS",
    "SCHEDULES",
    "TARGETS",
    "Cache",
    "CacheRun",
    "Diffusion",
    "Guidance",
    "InInterval",
    "Interval",
    "Inverted",
    "Inverting",
    "Keeping",
    "Kept",
    "LossWeight",
    "NetworkArguments",
    "NoiseCondition",
    "NoiseLevel",
    "OnStep",
    "SamplingSettings",
    "Scaling",
    "Schedule",
    "SeededNoise",
    "Steering",
    "StepArguments",
    "Target",
    "TrainingBatch",
    "blend",
    "lerp",
    "sample",
    "sequence",
    "slerp",
    "weighted",
]
