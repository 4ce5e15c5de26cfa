"""Editing: images changed by their prompt, images of your own inverted for it, maps of words."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..cascade.diffusion import Guidance, SamplingSettings
from ..cascade.editing import EditStrength, lit
from ..cascade.images import resize_mask
from ..cascade.pipelines import STAGE_C_SETTINGS
from ..cascade.pipelines.edit import RELEASED_STRENGTH
from .host import editing, imaging, sampling
from .types import (
    EDITING,
    PERCENT,
    RELEASED_OPTIONS,
    SamplingOptions,
    cfg_field,
    conditioning_fields,
    field,
    options_field,
    run_fields,
    schema,
    seed_field,
    shift_field,
    steps_field,
)


class CascadeInvertImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeInvertImage",
            display_name="Invert Image (Stable Cascade)",
            category=EDITING,
            description="Finds the noise from which Stage C makes exactly this image. Edit by Prompt then changes it, "
            "as often as you like.",
            inputs=[
                field(io.Model, "model", tooltip="Stage C, the same as in Edit by Prompt."),
                field(io.Conditioning, "positive", tooltip="What the image shows: the prompt that source gets too."),
                field(io.Conditioning, "negative", tooltip="The same as in Edit by Prompt. Trained: the empty prompt."),
                field(io.Latent, "latent_image", tooltip="The image: stage_c of Encode Image."),
                seed_field("Seed of the noise in which the image is looked for. Another seed gives another edit."),
                steps_field(STAGE_C_SETTINGS.steps),
                cfg_field(STAGE_C_SETTINGS.guidance.cfg),
                shift_field(STAGE_C_SETTINGS.shift),
            ],
            outputs=[
                io.Latent.Output("inverted", display_name="inverted", tooltip="For latent_image of Edit by Prompt.")
            ],
            search_aliases=["ddpm inversion", "edit friendly", "null text", "real image", "edit photo", "reverse"],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        latent_image: Any,
        seed: int,
        steps: int,
        cfg: float,
        shift: float,
    ) -> io.NodeOutput:
        settings = SamplingSettings(steps=steps, guidance=Guidance(cfg=cfg), shift=shift)
        return io.NodeOutput(editing.inverted(model, positive, negative, latent_image, seed, settings))


class CascadeEditByPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        _, negative = conditioning_fields()
        seed, steps, cfg, sampler_name, _, shift = run_fields(STAGE_C_SETTINGS, sampling.sampler_names())
        return schema(
            node_id="CascadeEditByPrompt",
            display_name="Edit by Prompt (Stable Cascade)",
            category=EDITING,
            description="Makes an image and its edit at once: the same image, changed as its prompt was changed. For a "
            "new image or one of Invert Image. Takes the place of Sample Stage C.",
            inputs=[
                field(io.Model, "model", tooltip="Stage C."),
                field(io.Conditioning, "source", tooltip="What the image shows before: the prompt that is changed."),
                field(
                    io.Conditioning,
                    "positive",
                    tooltip="The same prompt with words exchanged, added or left out: what it should show after.",
                ),
                negative,
                field(
                    io.Latent,
                    "latent_image",
                    tooltip="An empty latent: the image of source is made too. Of Invert Image: your own image.",
                ),
                seed,
                steps,
                cfg,
                sampler_name,
                shift,
                field(
                    io.Float,
                    "text_attention",
                    default=RELEASED_STRENGTH.text,
                    **PERCENT,
                    tooltip="Until this part of the run words act where they acted before. Lower lets new words find "
                    "their own place.",
                ),
                field(
                    io.Float,
                    "image_attention",
                    default=RELEASED_STRENGTH.image,
                    **PERCENT,
                    tooltip="Until this part of the run outlines stay. Higher (0.8) for another color alone, lower for "
                    "another shape.",
                ),
                field(
                    io.Float,
                    "blend",
                    default=RELEASED_STRENGTH.blend,
                    **PERCENT,
                    tooltip="Above 0, all that does not show the changed words stays as it was. Higher changes a "
                    "smaller part; try 0.3. 0: all may change.",
                ),
                field(
                    io.Int,
                    "skip",
                    default=0,
                    min=0,
                    max=999,
                    tooltip="For Invert Image: the first steps that are left out. More keeps more of the image; 0 to "
                    "7 of 20 are useful.",
                ),
                options_field(),
            ],
            outputs=[
                io.Latent.Output("stage_c", display_name="stage_c", tooltip="The edit, for the sampler of Stage B."),
                io.Latent.Output("before", display_name="before", tooltip="The image before, for another Stage B."),
                io.Mask.Output(
                    "mask",
                    display_name="mask",
                    tooltip="With blend: what may have changed. For Set Latent Noise Mask before Sample Stage B, so "
                    "that fine detail elsewhere stays. Without: all.",
                ),
            ],
            search_aliases=[
                "prompt to prompt",
                "p2p",
                "change prompt",
                "edit image",
                "edit photo",
                "replace",
                "recolor",
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        source: Any,
        positive: Any,
        negative: Any,
        latent_image: Any,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        shift: float,
        text_attention: float,
        image_attention: float,
        blend: float,
        skip: int,
        options: SamplingOptions = RELEASED_OPTIONS,
    ) -> io.NodeOutput:
        settings = options.settings("stage_c", 1.0, cfg=cfg, steps=steps, sampler_name=sampler_name, shift=shift)
        strength = EditStrength(text=text_attention, image=image_attention, blend=blend)
        prompts = (source, positive, negative)
        return io.NodeOutput(*editing.edited(model, prompts, latent_image, seed, settings, strength, skip))


class CascadeWordMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeWordMap",
            display_name="Word Map (Stable Cascade)",
            category=EDITING,
            description="Where an image shows a word of its prompt, as a mask. For generated images and your own.",
            inputs=[
                field(io.Model, "model", tooltip="Stage C."),
                field(io.Conditioning, "positive", tooltip="The prompt of the image, or what your own image shows."),
                field(io.Latent, "latent", tooltip="The image: stage_c of a sampler, or of Encode Image."),
                field(
                    io.String,
                    "words",
                    default="circle",
                    tooltip="A word as the prompt has it, or several that follow each other. With commas: a mask for "
                    "each.",
                ),
                field(
                    io.Float,
                    "threshold",
                    default=0.5,
                    min=0.0,
                    max=0.95,
                    step=0.01,
                    round=0.001,
                    tooltip="Part of a word's highest attention from which on the mask is white. Higher: a smaller "
                    "mask. 0: a soft mask, as the attention is.",
                ),
                field(io.Image, "image", optional=True, tooltip="The decoded image, which overlay then shows."),
            ],
            outputs=[
                io.Image.Output(
                    "overlay",
                    display_name="overlay",
                    tooltip="The image, bright where it shows the word; for your eyes.",
                ),
                io.Mask.Output(
                    "mask", display_name="mask", tooltip="For mask nodes, inpainting, or a Regional Prompt."
                ),
            ],
            search_aliases=["daam", "attention map", "heatmap", "segment", "mask by text", "clipseg"],
        )

    @classmethod
    def execute(
        cls, model: Any, positive: Any, latent: Any, words: str, threshold: float, image: Any = None
    ) -> io.NodeOutput:
        wanted = [word.strip() for word in words.split(",") if word.strip()] or [words]
        maps = torch.cat(editing.word_maps(model, positive, latent, wanted))
        masks = (maps >= threshold).float() if threshold else maps
        shown = torch.ones(1, 3, *maps.shape[-2:]) if image is None else imaging.from_image(image).cpu()
        maps = resize_mask(maps, shown.shape[-2:])
        over = lit(sampling.repeated(shown, len(maps)), maps)
        return io.NodeOutput(imaging.to_image(over), masks[:, 0])


NODES = [CascadeInvertImage, CascadeEditByPrompt, CascadeWordMap]
