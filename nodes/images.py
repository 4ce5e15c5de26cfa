"""Images as the input: encoding, variation, reconstruction."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..cascade.diffusion import Guidance
from ..cascade.errors import MissingPart
from ..cascade.images import as_mask, fit, psnr, side_by_side, ssim
from ..cascade.images.resize import COMPRESSION
from ..cascade.pipelines import compression_warning, latent_sizes, with_short_side
from .host import checks, decoding, imaging, sampling, tiling
from .types import CONDITIONING, IMAGES, LATENT, field, frames_field, schema, seed_field

SHORT_SIDE, OWN_SIZE = "short side (image to image)", "own size (reconstruction)"
SEPARATE, ONE = "side by side", "mixed into one"
MORE = ("image_2", "image_3", "image_4")


class CascadeEncodeImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeEncodeImage",
            display_name="Encode Image (Stable Cascade)",
            category=LATENT,
            description="An image to start from: as Stage C's latent, and as Stage B's for its fine detail.",
            inputs=[
                field(io.Image, "image", tooltip="Any size and shape; gray, with alpha, or a batch."),
                field(io.Vae, "encoder", tooltip="Encoder and previewer."),
                field(
                    io.Combo,
                    "sizing",
                    options=[SHORT_SIDE, OWN_SIZE],
                    default=SHORT_SIDE,
                    tooltip="short side: the result is so large, whatever the image; the encoder sees 3/4 of that. "
                    "own size: the result is as large as the image, and the encoder sees 3/4 of it.",
                ),
                field(
                    io.Int,
                    "short_side",
                    default=1024,
                    min=64,
                    max=8192,
                    step=32,
                    tooltip="Short side of the result in pixels, for sizing by the short side. Tiny cascade: 256.",
                ),
                field(
                    io.Vae,
                    "stage_a",
                    optional=True,
                    tooltip="Stage A: stage_b is the image then, to keep its detail. Without it, stage_b is empty.",
                ),
                field(
                    io.Mask,
                    "mask",
                    optional=True,
                    tooltip="What is drawn anew: white all of it, black nothing, gray in part. Any size; it is laid "
                    "over the whole image.",
                ),
            ],
            outputs=[
                io.Latent.Output("stage_c", display_name="stage_c", tooltip="For the sampler of Stage C."),
                io.Latent.Output("stage_b", display_name="stage_b", tooltip="For latent of the sampler of Stage B."),
                io.Image.Output("image_out", display_name="image", tooltip="The image at the size of the result."),
            ],
            search_aliases=["image to image", "img2img", "vae encode", "inpaint", "effnet"],
        )

    @classmethod
    def execute(
        cls, image: Any, encoder: Any, sizing: str, short_side: int, stage_a: Any = None, mask: Any = None
    ) -> io.NodeOutput:
        checks.autoencoder(encoder, "Stage C")
        source = imaging.from_image(image)
        masks = None if mask is None else as_mask(mask)
        size = tuple(source.shape[-2:]) if sizing == OWN_SIZE else with_short_side(*source.shape[-2:], short_side)
        sizes = latent_sizes(*size)
        given = fit(source, *size)
        if sizing == OWN_SIZE:
            small = imaging.encode_effnet(encoder, given, COMPRESSION)
        else:
            small = imaging.encode_stage_c(encoder, source, sizes.stage_c[-2:])
        checks.finite(small, "Stage C", "latent")
        large = torch.zeros(len(given), *sizes.stage_b)
        if stage_a is not None:
            checks.autoencoder(stage_a, "Stage B")
            large = checks.finite(imaging.encode_stage_b(stage_a, given), "Stage B", "latent")
        latents = [imaging.masked(latent, masks) for latent in (small, large)]
        return io.NodeOutput(*latents, imaging.to_image(given))


def weight_field(name: str, optional: bool) -> Any:
    return field(
        io.Float,
        name,
        default=1.0,
        min=-10.0,
        max=10.0,
        step=0.05,
        round=0.001,
        optional=optional,
        tooltip="How much this image counts. Below 0 leads away from it.",
    )


class CascadeImageVariation(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        more = []
        for name in MORE:
            more.append(field(io.Image, name, optional=True, tooltip="Another image, or a batch of them."))
            more.append(weight_field(name.replace("image", "weight"), optional=True))
        return schema(
            node_id="CascadeImageVariation",
            display_name="Image Variation (Stable Cascade)",
            category=CONDITIONING,
            description="Images beside the prompt, or in its place: Stage C draws things like those in them.",
            inputs=[
                field(io.ClipVision, "clip_vision", tooltip="The image encoder."),
                field(
                    io.Conditioning,
                    "positive",
                    tooltip="The prompt that the images stand beside. An empty prompt leaves it to the images.",
                ),
                field(io.Image, "image_1", tooltip="The image to vary. A batch counts image by image."),
                weight_field("weight_1", optional=False),
                field(
                    io.Combo,
                    "combine",
                    options=[SEPARATE, ONE],
                    default=SEPARATE,
                    tooltip="side by side: Stage C hears of each image. mixed into one: of something between them.",
                ),
                *more,
                frames_field(
                    "More than 1: each latent of the sampler's batch hears of a place on the way from the first "
                    "image to the last, for frames of Mix Latents. Weights and combine do not count then.",
                    optional=True,
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "positive_out", display_name="positive", tooltip="For positive of the sampler of Stage C."
                )
            ],
            search_aliases=["unclip", "clip vision", "image prompt", "style"],
        )

    @classmethod
    def execute(
        cls,
        clip_vision: Any,
        positive: Any,
        image_1: Any,
        weight_1: float,
        combine: str,
        frames: int = 1,
        **more: Any,
    ) -> io.NodeOutput:
        if clip_vision is None:
            raise MissingPart("There is no image encoder: the checkpoint that was loaded has none.")
        given = [(image_1, weight_1)]
        given += [(more[name], more.get(name.replace("image", "weight"), 1.0)) for name in MORE if name in more]
        weights = [weight for _, weight in given]
        seen = [imaging.encode_vision(clip_vision, imaging.from_image(image)) for image, _ in given]
        if frames > 1:
            return io.NodeOutput(
                imaging.with_image_prompts(positive, [imaging.frame_outputs(seen, frames)], [1.0], one_each=True)
            )
        if combine == ONE:
            seen, weights = [imaging.blend_outputs(seen, weights)], [1.0]
        return io.NodeOutput(imaging.with_image_prompts(positive, seen, weights))


class CascadeReconstruct(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeReconstruct",
            display_name="Reconstruct (Stable Cascade)",
            category=IMAGES,
            description="An image through Stage C's small latent and back, and how near it comes. No Stage C needed.",
            inputs=[
                field(io.Image, "image", tooltip="The image; the reconstruction has its size."),
                field(io.Vae, "encoder", tooltip="Encoder and previewer."),
                field(io.Model, "model", tooltip="Stage B."),
                field(io.Vae, "stage_a", tooltip="Stage A."),
                field(io.Conditioning, "positive", tooltip="The empty prompt, as the released reconstruction."),
                field(io.Conditioning, "negative", tooltip="The empty prompt as well."),
                field(
                    io.Float,
                    "compression",
                    default=42.67,
                    min=8.0,
                    max=256.0,
                    step=0.01,
                    round=0.01,
                    tooltip="Pixels to a side of one latent. Trained: 32 to 64. Less: nearer to the image.",
                ),
                seed_field("The noise that Stage B starts from."),
                field(io.Int, "steps", default=10, min=1, max=1000, tooltip="Of Stage B. Released: 10."),
                field(
                    io.Float,
                    "guidance",
                    default=1.1,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Of Stage B. Released: 1.1.",
                ),
            ],
            outputs=[
                io.Image.Output("image_out", display_name="image", tooltip="The reconstruction."),
                io.Image.Output("beside", display_name="beside", tooltip="The image and its reconstruction."),
                io.Latent.Output("stage_c", display_name="stage_c", tooltip="The small latent that it came from."),
                io.Float.Output("psnr", display_name="psnr", tooltip="Peak signal to noise ratio, dB: more is nearer."),
                io.Float.Output("ssim", display_name="ssim", tooltip="Structural similarity: 1 is equal."),
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
        stage_a: Any,
        positive: Any,
        negative: Any,
        compression: float,
        seed: int,
        steps: int,
        guidance: float,
    ) -> io.NodeOutput:
        checks.model(model, "Stage B")
        checks.autoencoder(encoder, "Stage C")
        checks.autoencoder(stage_a, "Stage B")
        given = imaging.from_image(image)
        height, width = given.shape[-2:]
        sizes = latent_sizes(height, width)
        small = checks.finite(imaging.encode_effnet(encoder, given, compression), "Stage C", "latent")
        if warning := compression_warning(small.shape, sizes.stage_b):
            checks.warn(warning)
        empty = torch.zeros(len(given), *sizes.stage_b)
        if tiling.too_large(model, empty):
            model = tiling.tiled(model)
        guided = sampling.guider(
            sampling.shifted(model, 1.0),
            sampling.with_prior(positive, small),
            sampling.with_prior(negative, None),
            Guidance(scale=guidance),
        )
        sigmas = sampling.released_sigmas(steps, 1.0)
        large = sampling.run(guided, {}, empty, seed, "stage_b", "ddpm", sigmas)["samples"]
        again = decoding.decode(stage_a, checks.finite(large, "Stage B")).movedim(-1, 1)[..., :height, :width]
        again = checks.finite(again, "Stage A", "image")
        scores = [(psnr(a, b), ssim(a, b)) for a, b in zip(given.to(again), again, strict=True)]
        report = _report(given, small, scores)
        means = [sum(score) / len(scores) for score in zip(*scores, strict=True)]
        beside = side_by_side(given, again)
        return io.NodeOutput(imaging.to_image(again), imaging.to_image(beside), {"samples": small}, *means, report)


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
