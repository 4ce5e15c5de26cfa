"""Images as the input: encoding, variation, reconstruction."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import io

from ..cascade.diffusion import Guidance
from ..cascade.images import as_mask, fit, psnr, side_by_side, ssim
from ..cascade.images.resize import COMPRESSION
from ..cascade.pipelines import STAGE_B_SETTINGS, Tiles, latent_sizes, with_short_side
from .host import checks, decoding, imaging, sampling
from .host.tiling import too_large
from .types import CONDITIONING, IMAGES, LATENT, cfg_field, field, frames_field, schema, seed_field

SHORT_SIDE, OWN_SIZE = "short side (image to image)", "own size (reconstruction)"
CONCAT, AVERAGE = "concat", "average"
MORE = (2, 3, 4)
"""Numbers of the optional images."""


class CascadeEncodeImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeEncodeImage",
            display_name="Encode Image (Stable Cascade)",
            category=LATENT,
            description="Encodes an image to start from: to Stage C's latent, and to Stage B's for its fine detail.",
            inputs=[
                field(io.Image, "image", tooltip="Any size and shape; gray, with alpha, or a batch."),
                field(io.Vae, "encoder", tooltip="Encoder and previewer."),
                field(
                    io.Combo,
                    "resize_mode",
                    options=[SHORT_SIDE, OWN_SIZE],
                    default=SHORT_SIDE,
                    tooltip="short side: the image is scaled so that its short side is short_side. own size: it keeps "
                    "its size.",
                ),
                field(
                    io.Int,
                    "short_side",
                    default=1024,
                    min=64,
                    max=8192,
                    step=32,
                    tooltip="Short side of the result in pixels, for resize_mode short side. Tiny cascade: 256.",
                ),
                field(
                    io.Vae,
                    "vae",
                    optional=True,
                    tooltip="Stage A: stage_b is then the encoded image, to keep its detail. Not connected: stage_b is "
                    "empty.",
                ),
                field(
                    io.Mask,
                    "mask",
                    optional=True,
                    tooltip="What to generate again: white (1) fully, black (0) not at all, gray in part. Any size; "
                    "scaled to the image.",
                ),
            ],
            outputs=[
                io.Latent.Output("stage_c", display_name="stage_c", tooltip="For the sampler of Stage C."),
                io.Latent.Output(
                    "stage_b", display_name="stage_b", tooltip="For latent_image of the sampler of Stage B."
                ),
                io.Image.Output("image_out", display_name="image", tooltip="The image at the size of the result."),
            ],
            search_aliases=["image to image", "img2img", "vae encode", "inpaint", "effnet"],
        )

    @classmethod
    def execute(
        cls, image: Any, encoder: Any, resize_mode: str, short_side: int, vae: Any = None, mask: Any = None
    ) -> io.NodeOutput:
        checks.autoencoder(encoder, "Stage C")
        source = imaging.from_image(image)
        masks = None if mask is None else as_mask(mask)
        height, width = source.shape[-2:]
        if resize_mode != OWN_SIZE:
            height, width = with_short_side(height, width, short_side)
        sizes = latent_sizes(height, width)
        given = fit(source, height, width)
        if resize_mode == OWN_SIZE:
            small = imaging.encode_effnet(encoder, given, COMPRESSION)
        else:
            small = imaging.encode_stage_c(encoder, source, sizes.stage_c[-2:])
        checks.finite(small, "Stage C", "latent")
        large = torch.zeros(len(given), *sizes.stage_b)
        if vae is not None:
            checks.autoencoder(vae, "Stage B")
            large = checks.finite(imaging.encode_stage_b(vae, given), "Stage B", "latent")
        latents = [imaging.masked(latent, masks) for latent in (small, large)]
        return io.NodeOutput(*latents, imaging.to_image(given))


def strength_field(number: int, optional: bool) -> Any:
    return field(
        io.Float,
        f"strength{number}",
        default=1.0,
        min=-10.0,
        max=10.0,
        step=0.05,
        round=0.001,
        optional=optional,
        tooltip="Weight of this image. 0: no effect; below 0: the opposite of it.",
    )


class CascadeImageVariation(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        more = []
        for number in MORE:
            more.append(field(io.Image, f"image{number}", optional=True, tooltip="Another image, or a batch of them."))
            more.append(strength_field(number, optional=True))
        return schema(
            node_id="CascadeImageVariation",
            display_name="Image Variation (Stable Cascade)",
            category=CONDITIONING,
            description="Adds images to the prompt, or replaces it with them: Stage C generates variations of the "
            "images.",
            inputs=[
                field(io.ClipVision, "clip_vision", tooltip="The image encoder."),
                field(
                    io.Conditioning,
                    "conditioning",
                    tooltip="The text prompt that the images are added to. With an empty prompt only the images count.",
                ),
                field(io.Image, "image1", tooltip="The image to vary, or a batch of them."),
                strength_field(1, optional=False),
                field(
                    io.Combo,
                    "combine",
                    options=[CONCAT, AVERAGE],
                    default=CONCAT,
                    tooltip="For several images. concat: Stage C gets each of them. average: it gets their weighted "
                    "mean.",
                ),
                *more,
                frames_field(
                    "More than 1: a sequence from the first image to the last, one frame for each latent of the "
                    "sampler's batch (frames of Mix Latents). Strengths and combine are then ignored.",
                    optional=True,
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "conditioning_out", display_name="conditioning", tooltip="For positive of the sampler of Stage C."
                )
            ],
            search_aliases=["unclip", "ipadapter", "ip-adapter", "clip vision", "image prompt", "style", "redux"],
        )

    @classmethod
    def execute(
        cls,
        clip_vision: Any,
        conditioning: Any,
        image1: Any,
        strength1: float,
        combine: str,
        frames: int = 1,
        **more: Any,
    ) -> io.NodeOutput:
        given = [(image1, strength1)]
        given += [(more[f"image{n}"], more.get(f"strength{n}", 1.0)) for n in MORE if f"image{n}" in more]
        strengths = [strength for _, strength in given]
        seen = [imaging.encode_vision(clip_vision, imaging.from_image(image)) for image, _ in given]
        if frames > 1:
            return io.NodeOutput(
                imaging.with_image_prompts(conditioning, [imaging.frame_outputs(seen, frames)], [1.0], one_each=True)
            )
        if combine == AVERAGE:
            seen, strengths = [imaging.blend_outputs(seen, strengths)], [1.0]
        return io.NodeOutput(imaging.with_image_prompts(conditioning, seen, strengths))


class CascadeReconstruct(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeReconstruct",
            display_name="Reconstruct (Stable Cascade)",
            category=IMAGES,
            description="Encodes an image to Stage C's small latent, decodes it, and measures the similarity. Needs "
            "no Stage C.",
            inputs=[
                field(io.Image, "image", tooltip="The image; the reconstruction has its size."),
                field(io.Vae, "encoder", tooltip="Encoder and previewer."),
                field(io.Model, "model", tooltip="Stage B."),
                field(io.Vae, "vae", tooltip="Stage A."),
                field(io.Conditioning, "positive", tooltip="The empty prompt, as in the released code."),
                field(io.Conditioning, "negative", tooltip="The empty prompt too."),
                field(
                    io.Float,
                    "compression",
                    default=COMPRESSION,
                    min=8.0,
                    max=256.0,
                    step=0.01,
                    round=0.01,
                    tooltip="Pixels along a side for each position of the latent. Lower is more similar to the image. "
                    "Released: 42.67; trained: 32 to 64.",
                ),
                seed_field("Seed of Stage B's noise."),
                field(
                    io.Int,
                    "steps",
                    default=STAGE_B_SETTINGS.steps,
                    min=1,
                    max=1000,
                    tooltip="Steps of Stage B. Released: 10.",
                ),
                cfg_field(STAGE_B_SETTINGS.guidance.cfg),
            ],
            outputs=[
                io.Image.Output("image_out", display_name="image", tooltip="The reconstruction."),
                io.Image.Output(
                    "comparison",
                    display_name="comparison",
                    tooltip="The image on the left, its reconstruction on the right.",
                ),
                io.Latent.Output("stage_c", display_name="stage_c", tooltip="The small latent of the image."),
                io.Float.Output(
                    "psnr", display_name="psnr", tooltip="Peak signal-to-noise ratio in dB: higher is more similar."
                ),
                io.Float.Output("ssim", display_name="ssim", tooltip="Structural similarity: 1 is identical."),
                io.String.Output("report", display_name="report", tooltip="Sizes and scores of each image."),
            ],
            search_aliases=["psnr", "ssim", "compression", "effnet"],
        )

    @classmethod
    def execute(
        cls,
        image: Any,
        encoder: Any,
        model: Any,
        vae: Any,
        positive: Any,
        negative: Any,
        compression: float,
        seed: int,
        steps: int,
        cfg: float,
    ) -> io.NodeOutput:
        checks.autoencoder(encoder, "Stage C")
        checks.autoencoder(vae, "Stage B")
        given = imaging.from_image(image)
        height, width = given.shape[-2:]
        sizes = latent_sizes(height, width)
        small = checks.finite(imaging.encode_effnet(encoder, given, compression), "Stage C", "latent")
        stage_c = {"samples": small}
        empty = {"samples": torch.zeros(len(given), *sizes.stage_b)}
        settings = replace(STAGE_B_SETTINGS, steps=steps, guidance=Guidance(cfg=cfg))

        def tiles(samples: torch.Tensor) -> Tiles | None:
            return Tiles() if too_large(model, samples) else None

        stage_b = sampling.sample_stage_b(model, positive, negative, stage_c, empty, seed, settings, tiles)
        again = decoding.decode(vae, stage_b["samples"]).movedim(-1, 1)[..., :height, :width]
        again = checks.finite(again, "Stage A", "image")
        scores = [(psnr(a, b), ssim(a, b)) for a, b in zip(given.to(again), again, strict=True)]
        report = _report(given, small, scores)
        means = [sum(score) / len(scores) for score in zip(*scores, strict=True)]
        comparison = imaging.to_image(side_by_side(given, again))
        return io.NodeOutput(imaging.to_image(again), comparison, stage_c, *means, report)


def _report(given: torch.Tensor, small: torch.Tensor, scores: list[tuple[float, float]]) -> str:
    batch, _, height, width = given.shape
    latent = " x ".join(map(str, small.shape[1:]))
    lines = [
        f"{batch} of 3 x {height} x {width} -> {latent}: compression {height / small.shape[-2]:.2f} x "
        f"{width / small.shape[-1]:.2f}, {given[0].numel() / small[0].numel():.0f} times fewer numbers"
    ]
    lines += [f"{i}: PSNR {decibels:.2f} dB, SSIM {likeness:.3f}" for i, (decibels, likeness) in enumerate(scores, 1)]
    return "\n".join(lines)


NODES = [CascadeEncodeImage, CascadeImageVariation, CascadeReconstruct]
