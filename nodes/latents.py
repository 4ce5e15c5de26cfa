"""Empty latents of the right sizes."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..cascade.pipelines import latent_sizes
from ..cascade.pipelines.sizes import LARGEST, SMALLEST
from .host import guards
from .types import LATENT, field, schema

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
        side = {"min": SMALLEST, "max": LARGEST, "step": 8, "default": 1024}
        return schema(
            node_id="CascadeEmptyLatent",
            display_name="Empty Latent (Stable Cascade)",
            category=LATENT,
            description="Where sampling starts: Stage C's latent (a 42.67th of the size) and Stage B's (a quarter).",
            inputs=[
                field(
                    io.Combo,
                    "preset",
                    options=list(PRESETS),
                    default=next(iter(PRESETS)),
                    tooltip="The size of the picture. custom: width and height below. Tiny cascade: 256 x 256.",
                ),
                field(io.Int, "width", **side, tooltip="Width in pixels, with the preset custom."),
                field(io.Int, "height", **side, tooltip="Height in pixels, with the preset custom."),
                field(
                    io.Int,
                    "batch_size",
                    default=1,
                    min=1,
                    max=4096,
                    tooltip="Pictures at once. The first has the sampler's seed, the next that seed + 1, and so on.",
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
            search_aliases=["size", "resolution", "aspect ratio"],
        )

    @classmethod
    def execute(cls, preset: str, width: int, height: int, batch_size: int) -> io.NodeOutput:
        width, height = PRESETS[preset] or (width, height)
        sizes = latent_sizes(height, width)
        shapes = [(batch_size, *size) for size in (sizes.stage_c, sizes.stage_b)]
        guards.affordable(shapes, f"A batch of {batch_size} pictures of {width} x {height}")
        return io.NodeOutput(*({"samples": torch.zeros(shape)} for shape in shapes))


NODES = [CascadeEmptyLatent]
