"""Prompts to image embeddings."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..cascade.pipelines import PRIOR_SETTINGS
from .host import folders, prior
from .types import CONDITIONING, conditioning_fields, field, schema, seed_field


class CascadePrior(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadePrior",
            display_name="Prior (Stable Cascade)",
            category=CONDITIONING,
            description="Makes the image embedding of a prompt: what an image encoder would find in such an image. Use "
            "it in place of text, or mix it with images, in unCLIPConditioning.",
            inputs=[
                folders.file_field(
                    "prior",
                    "From ComfyUI's model_patches folder. The tiny one fits the tiny cascade only.",
                    "prior_name",
                ),
                *conditioning_fields(),
                seed_field("Seed of the embedding. Another one gives another image of the prompt."),
                field(
                    io.Int,
                    "steps",
                    default=PRIOR_SETTINGS.steps,
                    min=1,
                    max=1000,
                    tooltip="Sampling steps of the embedding. More hardly change it.",
                ),
                field(
                    io.Float,
                    "cfg",
                    default=PRIOR_SETTINGS.guidance.cfg,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance scale of the embedding. Higher follows the prompt more closely; 1 ignores the "
                    "negative prompt.",
                ),
            ],
            outputs=[
                io.ClipVisionOutput.Output(
                    "clip_vision_output", display_name="clip_vision_output", tooltip="For unCLIPConditioning."
                )
            ],
            search_aliases=["unclip", "karlo", "text to image embedding", "image prompt"],
        )

    @classmethod
    def fingerprint_inputs(cls, prior_name: str, **_: Any) -> Any:
        return folders.stamp(folders.find("prior", prior_name))

    @classmethod
    def execute(cls, prior_name: str, positive: Any, negative: Any, seed: int, steps: int, cfg: float) -> io.NodeOutput:
        net = prior.load_prior(folders.find("prior", prior_name))
        return io.NodeOutput(net.embedding(positive, negative, seed, steps, cfg))


NODES = [CascadePrior]
