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
            description="Stage A makes the image of Stage B's latent. What is too large for memory goes in tiles.",
            inputs=[
                field(io.Latent, "latent", tooltip="Stage B's result."),
                field(io.Vae, "vae", tooltip="Stage A."),
                field(
                    io.Combo,
                    "tiling",
                    options=[AUTO, NEVER, ALWAYS],
                    default=AUTO,
                    advanced=True,
                    tooltip="Decode in overlapping tiles. auto: when the whole would not fit into the free memory.",
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
            search_aliases=["vae decode"],
        )

    @classmethod
    def execute(cls, latent: Any, vae: Any, tiling: str, tile_size: int) -> io.NodeOutput:
        samples = checks.latents(latent, "Stage B")
        checks.autoencoder(vae, "Stage B")
        tiled = decoding.too_large(vae, samples) if tiling == AUTO else tiling == ALWAYS
        image = decoding.decode_tiled(vae, samples, tile_size) if tiled else vae.decode(samples)
        return io.NodeOutput(checks.finite(image, "Stage A", "image"))


class CascadePreviewDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadePreviewDecode",
            display_name="Preview Decode (Stable Cascade)",
            category=LATENT,
            description="A quick, small image straight from Stage C's latent, before Stage B has drawn anything.",
            inputs=[
                field(io.Latent, "latent", tooltip="Stage C's result."),
                field(io.Vae, "vae", tooltip="Encoder and previewer."),
            ],
            outputs=[io.Image.Output("image", display_name="image", tooltip="8 pixels to a side of one latent.")],
            search_aliases=["preview", "previewer"],
        )

    @classmethod
    def execute(cls, latent: Any, vae: Any) -> io.NodeOutput:
        samples = checks.latents(latent, "Stage C")
        checks.autoencoder(vae, "Stage C")
        return io.NodeOutput(checks.finite(vae.decode(samples), "The previewer", "image"))


NODES = [CascadeDecode, CascadePreviewDecode]
