"""Edits by instructions."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..cascade.conditioning import check_prompt
from ..cascade.errors import MissingPart
from ..cascade.pipelines.instruct import IMAGE_CFG, check_instruction
from .host import folders, instruct
from .types import EDITING, field, schema


class CascadeEditByInstruction(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        choices = folders.instruct_choices()
        return schema(
            node_id="CascadeEditByInstruction",
            display_name="Edit by Instruction (Stable Cascade)",
            category=EDITING,
            description="Lets Stage C change an image as an instruction says, such as: make it green. Takes the place "
            "of Text Encode; needs an instruct network that was trained for this Stage C.",
            inputs=[
                field(
                    io.Combo,
                    "instruct_name",
                    options=choices,
                    default=choices[0],
                    tooltip="From ComfyUI's controlnet folder. The tiny one fits the tiny cascade only.",
                ),
                field(io.Model, "model", tooltip="Stage C."),
                field(io.Clip, "clip", tooltip="The text encoder."),
                field(
                    io.Latent,
                    "stage_c",
                    tooltip="The image to change, from Encode Image. Connect it to latent_image of Sample Stage C too.",
                ),
                field(
                    io.String,
                    "instruction",
                    multiline=True,
                    dynamic_prompts=True,
                    default="make it green",
                    tooltip="What to change. Tiny cascade: make it green, make it small, turn it into a star, move it "
                    "to the left, make the background white.",
                ),
                field(
                    io.Float,
                    "image_cfg",
                    default=IMAGE_CFG,
                    min=0.0,
                    max=20.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Higher keeps more of the image; cfg of the sampler follows the instruction more. 1: not "
                    "guided by the image, and faster.",
                ),
                field(
                    io.Float,
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    round=0.001,
                    tooltip="Strength of the instruct network. 1: as trained; 0: as if it were not there.",
                ),
            ],
            outputs=[
                io.Model.Output("model_out", display_name="model", tooltip="For Sample Stage C."),
                io.Conditioning.Output("positive", display_name="positive", tooltip="For positive of the samplers."),
                io.Conditioning.Output("negative", display_name="negative", tooltip="For negative of the samplers."),
            ],
            search_aliases=["instruct pix2pix", "instruction", "edit", "kontext", "change image", "ip2p"],
        )

    @classmethod
    def fingerprint_inputs(cls, instruct_name: str, **_: Any) -> Any:
        return folders.stamp(folders.find_instruct(instruct_name))

    @classmethod
    def execute(
        cls,
        instruct_name: str,
        model: Any,
        clip: Any,
        stage_c: Any,
        instruction: str,
        image_cfg: float,
        strength: float,
    ) -> io.NodeOutput:
        if clip is None:
            raise MissingPart("There is no text encoder: the checkpoint that was loaded has none.")
        check_instruction(instruction)
        check_prompt(instruction)
        positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (instruction, ""))
        path = folders.find_instruct(instruct_name)
        return io.NodeOutput(*instruct.instruct(model, positive, negative, stage_c, path, image_cfg, strength))


NODES = [CascadeEditByInstruction]
