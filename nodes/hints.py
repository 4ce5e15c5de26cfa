"""Hints: what each kind of ControlNet reads, as ordinary images."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..cascade.errors import CascadeError
from ..cascade.images import canny, inpaint_hint, outpaint, sketch
from ..cascade.images import identity_hint as faces_hint
from ..cascade.images.canny import LEARNED_SIZE
from ..cascade.images.hints import GRID, MAX_FACES, super_resolution_hint
from ..cascade.pipelines import latent_sizes
from .host import checks, faces, imaging
from .types import CONTROL, field, schema

TRAINED, FULL = f"as trained ({LEARNED_SIZE} x {LEARNED_SIZE})", "full size"


def start_of(images: torch.Tensor, mask: torch.Tensor, encoder: Any) -> dict[str, Any]:
    """Stage C's latent for images of this size: empty, or encoded with a mask of what is generated again."""
    _, height, width = latent_sizes(*images.shape[-2:]).stage_c
    if encoder is None:
        return {"samples": torch.zeros(len(images), 16, height, width)}
    checks.autoencoder(encoder, "Stage C")
    samples = checks.finite(imaging.encode_stage_c(encoder, images, (height, width)), "Stage C", "latent")
    return imaging.masked(samples, mask)


def encoder_field() -> Any:
    return field(
        io.Vae,
        "encoder",
        optional=True,
        tooltip="Encoder and previewer: stage_c is then the encoded image with the mask, so that the rest stays. Not "
        "connected: stage_c is empty.",
    )


def latent_output() -> Any:
    return io.Latent.Output("stage_c", display_name="stage_c", tooltip="For latent_image of the sampler of Stage C.")


class CascadeCannyHint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        threshold = {"min": 0.0, "max": 2040.0, "step": 1.0, "advanced": True}
        return schema(
            node_id="CascadeCannyHint",
            display_name="Canny Hint (Stable Cascade)",
            category=CONTROL,
            description="The edges of an image, for the canny ControlNet. It was trained with edges found at 224 x "
            "224 and scaled up: thick and soft. Thin edges at full size have little effect on it.",
            inputs=[
                field(io.Image, "image", tooltip="The image whose outlines the result should follow."),
                field(
                    io.Combo,
                    "resolution",
                    options=[TRAINED, FULL],
                    default=TRAINED,
                    tooltip="Size at which edges are found. as trained: for the released net. full size: for nets "
                    "trained that way.",
                ),
                field(
                    io.Float,
                    "low_threshold",
                    default=100.0,
                    **threshold,
                    tooltip="An edge continues while its gradient is above this. Lower gives longer edges. Released: "
                    "100.",
                ),
                field(
                    io.Float,
                    "high_threshold",
                    default=200.0,
                    **threshold,
                    tooltip="An edge starts where the gradient is above this. Lower gives more edges. Released: 200.",
                ),
            ],
            outputs=[io.Image.Output("hint", display_name="hint", tooltip="White edges on black.")],
            search_aliases=["canny", "edge detection", "preprocessor"],
        )

    @classmethod
    def execute(cls, image: Any, resolution: str, low_threshold: float, high_threshold: float) -> io.NodeOutput:
        size = LEARNED_SIZE if resolution == TRAINED else None
        low, high = sorted((low_threshold, high_threshold))
        edges = canny(imaging.from_image(image), size=size, low=low, high=high)
        return io.NodeOutput(imaging.to_image(edges.expand(-1, 3, -1, -1)))


class CascadeSketchHint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeSketchHint",
            display_name="Sketch Hint (Stable Cascade)",
            category=CONTROL,
            description="White lines on black, for the sketch adapter: the outlines of an image, or the lines of a "
            "drawing, on paper or on black.",
            inputs=[
                field(io.Image, "image", tooltip="A drawing, or an image whose outlines the result should follow.")
            ],
            outputs=[io.Image.Output("hint", display_name="hint", tooltip="For Apply ControlNet.")],
            search_aliases=["sketch", "scribble", "line art", "drawing", "t2i adapter", "preprocessor"],
        )

    @classmethod
    def execute(cls, image: Any) -> io.NodeOutput:
        return io.NodeOutput(imaging.to_image(sketch(imaging.from_image(image)).expand(-1, 3, -1, -1)))


class CascadeInpaintHint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeInpaintHint",
            display_name="Inpaint Hint (Stable Cascade)",
            category=CONTROL,
            description="An image with a hole, for the inpainting ControlNet: white where the mask is white, the mask "
            "itself as the fourth channel.",
            inputs=[
                field(io.Image, "image", tooltip="The image to fill in where the mask is white."),
                field(io.Mask, "mask", tooltip="White (1): generate again. Any size; scaled to the image."),
                encoder_field(),
            ],
            outputs=[
                io.Image.Output(
                    "hint", display_name="hint", tooltip="For Apply ControlNet. Previews show the mask as transparent."
                ),
                latent_output(),
                io.Mask.Output("mask_out", display_name="mask", tooltip="The mask at the image's size."),
            ],
            search_aliases=["inpaint", "mask", "fill"],
        )

    @classmethod
    def execute(cls, image: Any, mask: Any, encoder: Any = None) -> io.NodeOutput:
        images = imaging.from_image(image)
        cure = " Connect one mask, or one for each image."
        masks = imaging.masks_over(mask, images, "Inpaint Hint (Stable Cascade)", cure)
        hint = imaging.to_image(inpaint_hint(images, masks))
        return io.NodeOutput(hint, start_of(images, masks, encoder), masks[:, 0])


class CascadeOutpaintHint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        margin = {"default": 0, "min": 0, "max": 8192, "step": 8}
        return schema(
            node_id="CascadeOutpaintHint",
            display_name="Outpaint Hint (Stable Cascade)",
            category=CONTROL,
            description="An image with white margins to fill in, for the inpainting ControlNet.",
            inputs=[
                field(io.Image, "image", tooltip="The image to extend."),
                *(
                    field(io.Int, side, **margin, tooltip=f"Pixels to add at the {side}.")
                    for side in ("left", "top", "right", "bottom")
                ),
                field(
                    io.Int,
                    "feathering",
                    default=16,
                    min=0,
                    max=1024,
                    tooltip="Width in pixels of the soft edge of the mask, where the old image fades into the new.",
                ),
                encoder_field(),
            ],
            outputs=[
                io.Image.Output(
                    "hint", display_name="hint", tooltip="For Apply ControlNet. Previews show the mask as transparent."
                ),
                latent_output(),
                io.Image.Output("image_out", display_name="image", tooltip="The padded image, to put the result into."),
                io.Mask.Output("mask", display_name="mask", tooltip="White where the result goes."),
            ],
            search_aliases=["outpaint", "pad image", "uncrop"],
        )

    @classmethod
    def execute(
        cls, image: Any, left: int, top: int, right: int, bottom: int, feathering: int, encoder: Any = None
    ) -> io.NodeOutput:
        if not any((left, top, right, bottom)):
            raise CascadeError("Outpaint Hint (Stable Cascade): all margins are 0; give at least one side some pixels.")
        padded, mask = outpaint(imaging.from_image(image), left, top, right, bottom, feather=feathering)
        # In the soft edge the net still gets the old image.
        hint = inpaint_hint(padded, mask.floor())
        return io.NodeOutput(
            imaging.to_image(hint), start_of(padded, mask, encoder), imaging.to_image(padded), mask[:, 0]
        )


class CascadeSuperResolutionHint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeSuperResolutionHint",
            display_name="Super Resolution Hint (Stable Cascade)",
            category=CONTROL,
            description="Encodes a small image, for the super-resolution ControlNet, and makes the empty latents of "
            "the large image.",
            inputs=[
                field(io.Image, "image", tooltip="The small image."),
                field(io.Vae, "encoder", tooltip="Encoder and previewer."),
                field(
                    io.Int,
                    "scale_by",
                    default=2,
                    min=1,
                    max=8,
                    tooltip="Width and height of the result as a multiple of the image's. Released: 2.",
                ),
            ],
            outputs=[
                io.Image.Output("hint", display_name="hint", tooltip="Latents, for Apply ControlNet only."),
                latent_output(),
                io.Latent.Output(
                    "stage_b", display_name="stage_b", tooltip="For latent_image of the sampler of Stage B."
                ),
            ],
            search_aliases=["super resolution", "upscale"],
        )

    @classmethod
    def execute(cls, image: Any, encoder: Any, scale_by: int) -> io.NodeOutput:
        checks.autoencoder(encoder, "Stage C")
        images = imaging.from_image(image)
        height, width = images.shape[-2:]
        sizes = latent_sizes(height * scale_by, width * scale_by)
        grid = max(1, round(height / GRID)), max(1, round(width / GRID))
        hint = super_resolution_hint(images, lambda x: imaging.encode_stage_c(encoder, x, grid), scale_by)
        checks.finite(hint, "Stage C", "latent")
        return io.NodeOutput(
            imaging.to_image(hint),
            {"samples": torch.zeros(len(images), *sizes.stage_c)},
            {"samples": torch.zeros(len(images), *sizes.stage_b)},
        )


class CascadeIdentityHint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeIdentityHint",
            display_name="Identity Hint (Stable Cascade)",
            category=CONTROL,
            description="The hint for an identity ControlNet: the 512 numbers of each face at its position. Boxes and "
            "embeddings come from another node's face detector, or from insightface if it is installed.",
            inputs=[
                field(io.Image, "image", tooltip="The image with the faces, of the size of the result."),
                field(
                    io.Int,
                    "max_faces",
                    default=MAX_FACES,
                    min=1,
                    max=64,
                    tooltip=f"The most faces to use; the largest are kept. Released: {MAX_FACES}.",
                ),
                field(
                    io.AnyType,
                    "bboxes",
                    optional=True,
                    tooltip="Left, top, right and bottom of each face in pixels: a list or tensor [faces, 4], or a "
                    "list of those for a batch.",
                ),
                field(
                    io.AnyType,
                    "embeddings",
                    optional=True,
                    tooltip="512 numbers for each face: a list or tensor [faces, 512], or a list of those for a batch.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "hint", display_name="hint", tooltip="512 numbers for each position, for Apply ControlNet only."
                ),
                io.Image.Output(
                    "preview", display_name="preview", tooltip="The image, dark where the hint has no face."
                ),
            ],
            search_aliases=["face", "identity", "insightface", "face id"],
        )

    @classmethod
    def execute(cls, image: Any, max_faces: int, bboxes: Any = None, embeddings: Any = None) -> io.NodeOutput:
        images = imaging.from_image(image)
        if (bboxes is None) != (embeddings is None):
            missing = "embeddings" if embeddings is None else "bboxes"
            raise CascadeError(f"Identity Hint (Stable Cascade): {missing} are missing; both belong to each face.")
        found = faces.detected(images) if bboxes is None else faces.given(bboxes, embeddings, len(images))
        try:
            hint = faces_hint(found, *images.shape[-2:], limit=max_faces)
        except ValueError as error:
            raise CascadeError(f"Identity Hint (Stable Cascade): {error}.") from error
        marked = (hint != 0).any(dim=1, keepdim=True).float()
        shown = torch.nn.functional.interpolate(marked, images.shape[-2:], mode="nearest")
        return io.NodeOutput(imaging.to_image(hint), imaging.to_image(images * (0.4 + 0.6 * shown)))


NODES = [
    CascadeCannyHint,
    CascadeSketchHint,
    CascadeInpaintHint,
    CascadeOutpaintHint,
    CascadeSuperResolutionHint,
    CascadeIdentityHint,
]
