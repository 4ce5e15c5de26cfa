"""Stable Cascade for ComfyUI: drop this folder into `custom_nodes`. The library that it stands on is in `cascade/`."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .nodes import NODES
from .nodes.host import routes

WEB_DIRECTORY = "./web"


class CascadeExtension(ComfyExtension):
    async def on_load(self) -> None:
        routes.register()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> ComfyExtension:
    return CascadeExtension()
