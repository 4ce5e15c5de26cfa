"""LoHa, LoKr and OFT on a real host: with our loader and with its own they do what they do in the library."""

from __future__ import annotations

from typing import Any

import pytest

from cascade.adapters import OFT, Lora
from cascade.adapters.changes import Change
from tests.adapters.test_lycoris import KINDS, change
from tests.nodes import test_adapters as adapters
from tests.support import relative_error

SHAPES = {
    adapters.QUERY: (64, 64),
    "down_blocks.0.0.depthwise.weight": (64, 1, 3, 3),
    "clf.1.weight": (16, 64, 1, 1),
}


def lora_of(kind: str, dora: int | None = None, *, plain: bool = False) -> Lora:
    """plain: without the rescaling of OFT, which the host leaves out."""

    def made(shape: tuple[int, ...]) -> Change:
        found = change(kind, shape, dora=dora)
        return OFT(found.blocks) if plain and isinstance(found, OFT) else found

    return Lora({"stage_c": {name: made(shape) for name, shape in SHAPES.items()}})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dora", [None, 0])
def test_our_loader_applies_them_as_the_library_does(host: Any, kind: str, dora: int | None) -> None:
    lora, base = lora_of(kind, dora), adapters.model(host)
    changed, _, report = adapters.load(host, adapters.put(host, lora, "lycoris.safetensors"), base, None, (0.7, 1.0))
    assert relative_error(adapters.predicted(changed), adapters.expected(lora, 0.7)) < 1e-4
    assert relative_error(adapters.predicted(base), adapters.expected(lora, 0.7)) > 1e-3
    assert "Stage C: 3 of 3 tensors" in report


@pytest.mark.parametrize("kind", KINDS)
def test_the_hosts_loader_reads_what_we_write(host: Any, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    lora = lora_of(kind, plain=True)
    result = adapters.by_the_host(host, adapters.put(host, lora, f"{kind}.safetensors"))
    assert relative_error(adapters.predicted(result.model), adapters.expected(lora, 1.0)) < 1e-4
    assert not [record for record in caplog.records if "key not loaded" in record.getMessage()]
