"""Files to models. The included tiny cascade is the first choice everywhere: nothing has to be downloaded."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .host import checkpoint_sets, encoders, folders
from .host.autoencoders import DTYPES as VAE_DTYPES
from .host.autoencoders import load_coder, load_stage_a
from .host.models import DTYPES, load_stage
from .types import LOADERS, field, schema

WEIGHT_DTYPE_TIP = (
    "Number format of the weights in memory. default: what the file and the machine suggest. fp16 is safe, for Stage C "
    "too. fp8_e4m3fn takes half the memory of bf16 and is slightly less exact; fp32 is exact and takes twice as much."
)
VAE_WEIGHT_DTYPE_TIP = (
    "Number format of the weights in memory. default: bf16 where the machine is fast with it. fp32 is exact."
)
PREVIEWER_TIP = (
    "Network for live previews, with any sampler. auto: the one in the same file, or one in the vae folder. none: "
    "ComfyUI's own, which are coarser. ComfyUI's setting says whether there are previews."
)


def weight_dtype_field(options: Any = DTYPES, tip: str = WEIGHT_DTYPE_TIP) -> Any:
    return field(io.Combo, "weight_dtype", options=list(options), default="default", tooltip=tip)


def previewer_field() -> Any:
    options = [checkpoint_sets.AUTO, checkpoint_sets.NONE, *folders.choices("previewer")]
    return field(io.Combo, "previewer", options=options, default=checkpoint_sets.AUTO, tooltip=PREVIEWER_TIP)


class CascadeLoadStageC(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeLoadStageC",
            display_name="Load Stage C (Stable Cascade)",
            category=LOADERS,
            description="Loads Stage C, which turns a prompt into a small latent: a released file (3.6B or 1B), or "
            "one you trained.",
            inputs=[
                folders.file_field(
                    "stage_c",
                    "A Stage C, from diffusion_models or a merged checkpoint from checkpoints.",
                    name="unet_name",
                ),
                weight_dtype_field(),
                previewer_field(),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="Stage C, for samplers of ComfyUI's too.")],
            search_aliases=["unet", "unet loader", "load diffusion model", "prior", "wuerstchen"],
        )

    @classmethod
    def fingerprint_inputs(cls, unet_name: str | None, previewer: str | None, **_: Any) -> Any:
        return checkpoint_sets.fingerprint("stage_c", unet_name, previewer)

    @classmethod
    def execute(cls, unet_name: str, weight_dtype: str, previewer: str) -> io.NodeOutput:
        path = folders.find("stage_c", unet_name)
        return io.NodeOutput(
            load_stage("stage_c", path, weight_dtype, checkpoint_sets.previewer(path, unet_name, previewer))
        )


class CascadeLoadStageB(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeLoadStageB",
            display_name="Load Stage B (Stable Cascade)",
            category=LOADERS,
            description="Loads Stage B, which turns Stage C's small latent into a large one: 1.5B, 700M, or one you "
            "trained.",
            inputs=[
                folders.file_field(
                    "stage_b",
                    "A Stage B, from diffusion_models or a merged checkpoint from checkpoints.",
                    name="unet_name",
                ),
                weight_dtype_field(),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="Stage B, for samplers of ComfyUI's too.")],
            search_aliases=["unet", "unet loader", "load diffusion model", "decoder", "wuerstchen"],
        )

    @classmethod
    def fingerprint_inputs(cls, unet_name: str | None, **_: Any) -> Any:
        return checkpoint_sets.fingerprint("stage_b", unet_name)

    @classmethod
    def execute(cls, unet_name: str, weight_dtype: str) -> io.NodeOutput:
        return io.NodeOutput(load_stage("stage_b", folders.find("stage_b", unet_name), weight_dtype))


class CascadeLoadStageA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeLoadStageA",
            display_name="Load Stage A (Stable Cascade)",
            category=LOADERS,
            description="Loads Stage A, which decodes Stage B's latent to an image, and encodes an image to such a "
            "latent.",
            inputs=[
                folders.file_field(
                    "stage_a", "A Stage A, from vae or a merged checkpoint from checkpoints.", name="vae_name"
                ),
                weight_dtype_field(VAE_DTYPES, VAE_WEIGHT_DTYPE_TIP),
            ],
            outputs=[io.Vae.Output(display_name="vae", tooltip="Stage A, for ComfyUI's VAE nodes too.")],
            search_aliases=["vae", "load vae", "vqgan"],
        )

    @classmethod
    def fingerprint_inputs(cls, vae_name: str | None, **_: Any) -> Any:
        return checkpoint_sets.fingerprint("stage_a", vae_name)

    @classmethod
    def execute(cls, vae_name: str, weight_dtype: str) -> io.NodeOutput:
        return io.NodeOutput(load_stage_a(folders.find("stage_a", vae_name), weight_dtype))


class CascadeLoadEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeLoadEncoder",
            display_name="Load Encoder and Previewer (Stable Cascade)",
            category=LOADERS,
            description=(
                "Loads the VAE of Stage C's latents: the EfficientNet encoder turns images into them, "
                "the previewer decodes them to small images, quickly."
            ),
            inputs=[
                folders.file_field(
                    "effnet",
                    "An EfficientNet encoder, a previewer, or a file with both, from vae or checkpoints.",
                    name="vae_name",
                ),
                previewer_field(),
                weight_dtype_field(VAE_DTYPES, VAE_WEIGHT_DTYPE_TIP),
            ],
            outputs=[io.Vae.Output(display_name="encoder", tooltip="Encodes to and previews Stage C's latents.")],
            search_aliases=["effnet", "efficientnet", "previewer", "load vae"],
        )

    @classmethod
    def fingerprint_inputs(cls, vae_name: str | None, previewer: str | None, **_: Any) -> Any:
        return checkpoint_sets.fingerprint("effnet", vae_name, previewer)

    @classmethod
    def execute(cls, vae_name: str, previewer: str, weight_dtype: str) -> io.NodeOutput:
        path = folders.find("effnet", vae_name)
        return io.NodeOutput(load_coder(*checkpoint_sets.coder(path, vae_name, previewer), weight_dtype))


class CascadeLoadTextEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeLoadTextEncoder",
            display_name="Load Text Encoder (Stable Cascade)",
            category=LOADERS,
            description="Loads the CLIP model for prompts: CLIP bigG/14 for the released stages.",
            inputs=[
                folders.file_field(
                    "text_encoder",
                    "A text encoder, from text_encoders or a merged checkpoint from checkpoints.",
                    name="clip_name",
                ),
                weight_dtype_field(),
            ],
            outputs=[io.Clip.Output(display_name="clip", tooltip="For ComfyUI's CLIP nodes too.")],
            search_aliases=["clip", "load clip"],
        )

    @classmethod
    def fingerprint_inputs(cls, clip_name: str | None, **_: Any) -> Any:
        return checkpoint_sets.fingerprint("text_encoder", clip_name)

    @classmethod
    def execute(cls, clip_name: str, weight_dtype: str) -> io.NodeOutput:
        return io.NodeOutput(encoders.load_text_encoder(folders.find("text_encoder", clip_name), weight_dtype))


class CascadeLoadImageEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeLoadImageEncoder",
            display_name="Load Image Encoder (Stable Cascade)",
            category=LOADERS,
            description="Loads the CLIP vision model for image variations: CLIP ViT-L/14 for the released Stage C.",
            inputs=[
                folders.file_field(
                    "image_encoder",
                    "An image encoder, from clip_vision or a merged checkpoint from checkpoints.",
                    name="clip_name",
                ),
            ],
            outputs=[
                io.ClipVision.Output(display_name="clip_vision", tooltip="For ComfyUI's CLIP vision and unCLIP nodes.")
            ],
            search_aliases=["clip vision", "load clip vision"],
        )

    @classmethod
    def fingerprint_inputs(cls, clip_name: str | None, **_: Any) -> Any:
        return checkpoint_sets.fingerprint("image_encoder", clip_name)

    @classmethod
    def execute(cls, clip_name: str) -> io.NodeOutput:
        return io.NodeOutput(encoders.load_image_encoder(folders.find("image_encoder", clip_name)))


class CascadeLoadCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        checkpoints = folders.checkpoint_choices()
        return schema(
            node_id="CascadeLoadCheckpoint",
            display_name="Load Checkpoint (Stable Cascade)",
            category=LOADERS,
            description=(
                "Loads all networks at once: from merged checkpoints, a diffusers folder (under models/diffusers), or "
                "single files in ComfyUI's folders. Networks that the chosen files do not have are taken from the "
                "other files; the report lists them."
            ),
            inputs=[
                field(
                    io.Combo,
                    "ckpt_name",
                    options=[folders.TINY, checkpoint_sets.SEARCH, *checkpoints],
                    default=folders.TINY,
                    tooltip=f"Where to look first. {checkpoint_sets.SEARCH}: the largest networks that fit together.",
                ),
                field(
                    io.Combo,
                    "second_ckpt_name",
                    options=[checkpoint_sets.AUTO, *checkpoints],
                    default=checkpoint_sets.AUTO,
                    tooltip="Where to look next, such as the checkpoint of Stage B. auto: in all of ComfyUI's folders.",
                ),
                weight_dtype_field(),
            ],
            outputs=[
                io.Model.Output("stage_c", display_name="stage_c", tooltip="Stage C."),
                io.Model.Output("stage_b", display_name="stage_b", tooltip="Stage B."),
                io.Clip.Output("clip", display_name="clip", tooltip="The text encoder."),
                io.Vae.Output("vae", display_name="vae", tooltip="Stage A, which decodes the image."),
                io.Vae.Output("encoder", display_name="encoder", tooltip="EfficientNet encoder and previewer."),
                io.ClipVision.Output("clip_vision", display_name="clip_vision", tooltip="The image encoder."),
                io.String.Output("report", display_name="report", tooltip="Which network was loaded from which file."),
            ],
            search_aliases=["checkpoint", "load checkpoint", "ckpt", "diffusers", "wuerstchen"],
        )

    @classmethod
    def fingerprint_inputs(cls, ckpt_name: str | None, second_ckpt_name: str | None, **_: Any) -> Any:
        return checkpoint_sets.fingerprint_of_all(ckpt_name, second_ckpt_name)

    @classmethod
    def execute(cls, ckpt_name: str, second_ckpt_name: str, weight_dtype: str) -> io.NodeOutput:
        return io.NodeOutput(*checkpoint_sets.load(ckpt_name, second_ckpt_name, weight_dtype))


NODES = [
    CascadeLoadStageC,
    CascadeLoadStageB,
    CascadeLoadStageA,
    CascadeLoadEncoder,
    CascadeLoadTextEncoder,
    CascadeLoadImageEncoder,
    CascadeLoadCheckpoint,
]
