"""Work of earlier steps that is used again: faster and less exact."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..cascade.diffusion import Cache
from .host import caching
from .types import PERCENT, SAMPLING, field, schema


class CascadeCache(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CascadeCache",
            display_name="Cache (Stable Cascade)",
            category=SAMPLING,
            description="Makes sampling faster and a little less exact: work of earlier steps is used again. The "
            "sampler says how much.",
            inputs=[
                field(io.Model, "model", tooltip="Stage C or Stage B."),
                field(
                    io.Int,
                    "inner_every",
                    default=2,
                    min=1,
                    max=100,
                    tooltip="The inner levels, which are most of the work, run at least at every n-th step. 1: at "
                    "every step.",
                ),
                field(
                    io.Float,
                    "threshold",
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    round=0.001,
                    tooltip="Between those steps the inner levels also run where their input has changed by more than "
                    "this share since they last ran. 0: the change is not measured. Try 0.4 with ddpm, 0.1 with "
                    "ddim, and inner_every 5.",
                ),
                field(
                    io.Int,
                    "cfg_every",
                    default=2,
                    min=1,
                    max=100,
                    tooltip="The negative prompt is computed at every n-th step. 1: at every step.",
                ),
                field(
                    io.Float,
                    "start_percent",
                    default=0.2,
                    **PERCENT,
                    tooltip="From where on work is used again: 0 is the start of sampling, 1 the end. The first steps "
                    "decide what is in the image.",
                ),
                field(
                    io.Float,
                    "end_percent",
                    default=1.0,
                    **PERCENT,
                    tooltip="Up to where work is used again: 0 is the start of sampling, 1 the end.",
                ),
            ],
            outputs=[io.Model.Output("model", display_name="model", tooltip="For any sampler.")],
            search_aliases=["speed", "faster", "easycache", "teacache", "first block cache", "deepcache"],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        inner_every: int,
        threshold: float,
        cfg_every: int,
        start_percent: float,
        end_percent: float,
    ) -> io.NodeOutput:
        cache = Cache(
            inner_every=inner_every,
            threshold=threshold,
            cfg_every=cfg_every,
            start_percent=start_percent,
            end_percent=end_percent,
        )
        return io.NodeOutput(caching.cached(model, cache))


NODES = [CascadeCache]
