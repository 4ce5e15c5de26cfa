"""The networks, each a module with a frozen config and the released sizes as constants.

A constructor does not initialize weights: build on the meta device and assign tensors, or build and call `initialize`.
Layers come from `ops` (torch.nn, or a host's factory), attention from `attention`.
"""

from .blocks import AroundAttention, Attention, AttentionCall, scaled_dot_product_attention
from .config import Config, Level, Process, StackConfig
from .controlnet import (
    CONTROLNET_CANNY,
    CONTROLNET_IDENTITY,
    CONTROLNET_INPAINTING,
    CONTROLNET_SUPER_RESOLUTION,
    T2I_ADAPTER,
    ControlNet,
    ControlNetConfig,
)
from .effnet import EFFNET_V2_S, EffnetConfig, EffnetEncoder, EffnetStage
from .high_res import ULTRAPIXEL, Features, HighResGuide, HighResGuideConfig, HighResGuides
from .initialization import initialize
from .ip_adapter import IPAdapter, IPAdapterConfig
from .previewer import PREVIEWER, Previewer, PreviewerConfig
from .prior import Prior, PriorConditions, PriorConfig
from .stack import Conditions, Residuals
from .stage_a import STAGE_A, StageA, StageAConfig
from .stage_b import STAGE_B_1_5B, STAGE_B_700M, StageB, StageBConfig
from .stage_c import STAGE_C_1B, STAGE_C_3_6B, StageC, StageCConfig

__all__ = [
    "CONTROLNET_CANNY",
    "CONTROLNET_IDENTITY",
    "CONTROLNET_INPAINTING",
    "CONTROLNET_SUPER_RESOLUTION",
    "EFFNET_V2_S",
    "PREVIEWER",
    "STAGE_A",
    "STAGE_B_1_5B",
    "STAGE_B_700M",
    "STAGE_C_1B",
    "STAGE_C_3_6B",
    "T2I_ADAPTER",
    "ULTRAPIXEL",
    "AroundAttention",
    "Attention",
    "AttentionCall",
    "Conditions",
    "Config",
    "ControlNet",
    "ControlNetConfig",
    "EffnetConfig",
    "EffnetEncoder",
    "EffnetStage",
    "Features",
    "HighResGuide",
    "HighResGuideConfig",
    "HighResGuides",
    "IPAdapter",
    "IPAdapterConfig",
    "Level",
    "Previewer",
    "PreviewerConfig",
    "Prior",
    "PriorConditions",
    "PriorConfig",
    "Process",
    "Residuals",
    "StackConfig",
    "StageA",
    "StageAConfig",
    "StageB",
    "StageBConfig",
    "StageC",
    "StageCConfig",
    "initialize",
    "scaled_dot_product_attention",
]
