"""Empty latents of the right sizes, and mixes of latents."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from comfy_api.latest import io

from ..cascade.diffusion import lerp, sequence, slerp
from ..cascade.errors import InvalidSettings
from ..cascade.pipelines import latent_sizes
from ..cascade.pipelines.sizes import LARGEST, SMALLEST
from .host import checks, sampling
from .types import LATENT, field, frames_field, schema

CUSTOM = "custom"
PRESETS: dict[str, tuple[int, int] | None] = {
    "256 x 256 (tiny cascade)": (256, 256),
    "1024 x 1024 (1:1)": (1024, 1024),
    "1152 x 928 (5:4)": (1152, 928),
    "1184 x 896 (4:3)": (1184, 896),
    "1248 x 832 (3:2)": (1248, 832),
    "1376 x 768 (16:9)": (1376, 768),
    "1440 x 736 (2:1)": (1440, 736),
    "928 x 1152 (4:5)": (928, 1152),
    "896 x 1184 (3:4)": (896, 1184),
    "832 x 1248 (2:3)": (832, 1248),
    "768 x 1376 (9:16)": (768, 1376),
    "736 x 1440 (1:2)": (736, 1440),
    CUSTOM: None,
}
"""Width and height; around the million pixels that the released models were trained at."""


class CascadeEmptyLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        side = {"min": SMALLEST, "max": LARGEST, "step": 8, "default": 256}
        return schema(
            node_id="CascadeEmptyLatent",
            display_name="Empty Latent (Stable Cascade)",
            category=LATENT,
            description="Sets the image size: empty latents for Stage C (size / 42.67) and for Stage B (size / 4).",
            inputs=[
                field(
                    io.Combo,
                    "preset",
                    options=list(PRESETS),
                    default=next(iter(PRESETS)),
                    tooltip="Writes its size into width and height. custom: any width and height. Tiny cascade: "
                    "256 x 256.",
                ),
                field(io.Int, "width", **side, tooltip="Width in pixels. Another one than the preset's: custom."),
                field(io.Int, "height", **side, tooltip="Height in pixels. Another one than the preset's: custom."),
                field(
                    io.Int,
                    "batch_size",
                    default=1,
                    min=1,
                    max=4096,
                    tooltip="Number of images. The first has the sampler's seed, the next seed + 1, and so on.",
                ),
            ],
            outputs=[
                io.Latent.Output("stage_c", display_name="stage_c", tooltip="For the sampler of Stage C."),
                io.Latent.Output(
                    "stage_b",
                    display_name="stage_b",
                    tooltip="For the sampler of Stage B, which otherwise takes its size from Stage C's latent.",
                ),
            ],
            search_aliases=["empty latent image", "size", "resolution", "aspect ratio", "wuerstchen"],
        )

    @classmethod
    def execute(cls, preset: str, width: int, height: int, batch_size: int) -> io.NodeOutput:
        if PRESETS[preset] not in (None, (width, height)):
            raise InvalidSettings(
                f"Empty Latent: the preset is {preset}, and width and height are {width} x {height}. Choose the preset "
                "custom for these, or write the preset's numbers into width and height."
            )
        sizes = latent_sizes(height, width)
        shapes = [(batch_size, *size) for size in (sizes.stage_c, sizes.stage_b)]
        checks.affordable(shapes, f"A batch of {batch_size} images of {width} x {height}")
        return io.NodeOutput(*({"samples": torch.zeros(shape)} for shape in shapes))


BLEND_MODES = {"slerp": slerp, "lerp": lerp}


class CascadeMixLatents(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeMixLatents",
            display_name="Mix Latents (Stable Cascade)",
            category=LATENT,
            description="Blends two latents of one stage: one mix, or a sequence from the first to the second.",
            inputs=[
                field(io.Latent, "samples1", tooltip="The first latent: an encoded image, or a sampler's result."),
                field(
                    io.Latent,
                    "samples2",
                    tooltip="The second latent, of the same stage; resized to the size of the first.",
                ),
                field(
                    io.Float,
                    "blend_factor",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="How much of samples2 is in the result: 0 is only samples1, 1 only samples2.",
                ),
                field(
                    io.Combo,
                    "blend_mode",
                    options=list(BLEND_MODES),
                    default="slerp",
                    tooltip="slerp keeps the strength of the latents. lerp is the weighted sum, which is paler in the "
                    "middle.",
                ),
                frames_field("More than 1: a batch that goes from samples1 to samples2. blend_factor is then ignored."),
            ],
            outputs=[io.Latent.Output("latent", display_name="latent", tooltip="For the sampler of that stage.")],
            search_aliases=["latent blend", "interpolate", "slerp", "morph"],
        )

    @classmethod
    def execute(cls, samples1: Any, samples2: Any, blend_factor: float, blend_mode: str, frames: int) -> io.NodeOutput:
        stage, blend = checks.stage_of(samples1), BLEND_MODES[blend_mode]
        first, second = (checks.latents(latent, stage) for latent in (samples1, samples2))
        if second.shape[-2:] != first.shape[-2:]:
            second = F.interpolate(second, first.shape[-2:], mode="bilinear")
        if frames > 1:
            # From the first image of one latent to the first of the other.
            mixed = sequence(torch.cat([first[:1], second[:1]]), frames, blend)
        else:
            batch = max(len(first), len(second))
            mixed = blend(sampling.repeated(first, batch), sampling.repeated(second, batch), blend_factor)
        kept = {name: samples1[name] for name in ("noise_mask",) if name in samples1}
        # All frames get the same noise, so that only the image changes from one to the next.
        places = {"batch_index": [0] * len(mixed)} if frames > 1 else {}
        return io.NodeOutput({**kept, **places, "samples": mixed})


NODES = [CascadeEmptyLatent, CascadeMixLatents]
