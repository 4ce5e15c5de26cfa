"""Latents to images."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .host import checks, decoding
from .types import LATENT, field, schema

AUTO, NEVER, ALWAYS = "auto", "never", "always"


class CascadeDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeDecode",
            display_name="Decode (Stable Cascade)",
            category=LATENT,
            description="Stage A decodes Stage B's latent to the image. If it would not fit into memory, in tiles.",
            inputs=[
                field(io.Latent, "samples", tooltip="Stage B's result."),
                field(io.Vae, "vae", tooltip="Stage A."),
                field(
                    io.Combo,
                    "tiling",
                    options=[AUTO, NEVER, ALWAYS],
                    default=AUTO,
                    advanced=True,
                    tooltip="Decode in overlapping tiles. auto: only if the whole image would not fit into memory.",
                ),
                field(
                    io.Int,
                    "tile_size",
                    default=1024,
                    min=128,
                    max=8192,
                    step=64,
                    advanced=True,
                    tooltip="Side of a tile in pixels. Smaller tiles take less memory.",
                ),
            ],
            outputs=[io.Image.Output("image", display_name="image", tooltip="The image.")],
            search_aliases=["vae decode", "vae decode tiled", "latent to image"],
        )

    @classmethod
    def execute(cls, samples: Any, vae: Any, tiling: str, tile_size: int) -> io.NodeOutput:
        latents = checks.latents(samples, "Stage B")
        checks.autoencoder(vae, "Stage B")
        tiled = decoding.too_large(vae, latents) if tiling == AUTO else tiling == ALWAYS
        image = decoding.decode_tiled(vae, latents, tile_size) if tiled else vae.decode(latents)
        return io.NodeOutput(checks.finite(image, "Stage A", "image"))


class CascadePreviewDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadePreviewDecode",
            display_name="Preview Decode (Stable Cascade)",
            category=LATENT,
            description="Decodes Stage C's latent to a small image, quickly and without Stage B.",
            inputs=[
                field(io.Latent, "samples", tooltip="Stage C's result."),
                field(io.Vae, "encoder", tooltip="Encoder and previewer."),
            ],
            outputs=[
                io.Image.Output(
                    "image",
                    display_name="image",
                    tooltip="8 x 8 pixels for each position of the latent: 192 x 192 for 24 x 24.",
                )
            ],
            search_aliases=["preview", "previewer", "vae decode"],
        )

    @classmethod
    def execute(cls, samples: Any, encoder: Any) -> io.NodeOutput:
        latents = checks.latents(samples, "Stage C")
        checks.autoencoder(encoder, "Stage C")
        return io.NodeOutput(checks.finite(encoder.decode(latents), "The previewer", "image"))


NODES = [CascadeDecode, CascadePreviewDecode]
