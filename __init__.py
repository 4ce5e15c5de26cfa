"""Stable Cascade for ComfyUI: drop this folder into `custom_nodes`. The library that it stands on is in `cascade/`."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .nodes import NODES

WEB_DIRECTORY = "./web"


class CascadeExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> ComfyExtension:
    return CascadeExtension()
