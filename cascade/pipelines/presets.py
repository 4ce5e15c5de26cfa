"""Ways to sample both stages, from the released one to a few steps."""

from __future__ import annotations

from typing import NamedTuple

from ..diffusion import Guidance, SamplingSettings
from .plan import STAGE_B_SETTINGS, STAGE_C_SETTINGS


class Preset(NamedTuple):
    """How Stage C and Stage B are sampled. `few_steps`: only good with LoRAs that were distilled for these steps."""

    stage_c: SamplingSettings
    stage_b: SamplingSettings
    few_steps: bool = False

    def of(self, stage: str) -> SamplingSettings:
        """For "stage_c" or "stage_b"."""
        return self.stage_c if stage == "stage_c" else self.stage_b


RELEASED, FAST, TURBO = "released", "fast", "turbo"
PRESETS = {
    RELEASED: Preset(STAGE_C_SETTINGS, STAGE_B_SETTINGS),
    FAST: Preset(
        SamplingSettings(steps=8, guidance=Guidance(cfg=4.0), shift=2.0, sampler_name="res_multistep"),
        SamplingSettings(steps=4, guidance=Guidance(cfg=1.0), sampler_name="ddpm"),
    ),
    TURBO: Preset(
        SamplingSettings(steps=4, guidance=Guidance(cfg=1.0), shift=2.0, sampler_name="ddim"),
        SamplingSettings(steps=2, guidance=Guidance(cfg=1.0), sampler_name="ddim"),
        few_steps=True,
    ),
}
"""Name -> settings. fast was found by measurement (docs/performance.md)."""
