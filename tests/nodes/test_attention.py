"""Control of attention on a MODEL: what a controller is told, and that the plain run does not change by a bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cascade.editing import AttentionController
from tests.nodes.node_calls import model, stage_c


class Recorded(AttentionController):
    """Changes nothing, or what the blocks with the prompt compute."""

    def __init__(self, changes: bool = False) -> None:
        self.changes = changes
        self.calls: list[Any] = []
        self.sizes: set[tuple[int, int]] = set()

    def around(self, call: Any) -> Any:
        self.calls.append(call)

        def attend(block: Any) -> Tensor:
            self.sizes.add(block.size)
            assert block.k.shape[1] == block.size[0] * block.size[1] + call.tokens.count
            made = block.plain()
            rows = call.rows(len(made))
            if self.changes and rows is not None:
                made = made.clone()
                made[rows] = 0
            return made

        return attend


def controlled(host: Any, controllers: list[Recorded], changes: bool = False) -> Any:
    def make(shape: Any) -> Recorded:
        assert tuple(shape) == (2, 16, 5, 6)
        controllers.append(Recorded(changes))
        return controllers[-1]

    return host.pack("nodes.host.attention").controlled(model(host, "stage_c"), make)


def test_a_controller_that_does_nothing_changes_no_bit(host: Any) -> None:
    controllers: list[Recorded] = []
    plain, found = stage_c(host, batch=2), stage_c(host, batch=2, model=controlled(host, controllers))
    assert torch.equal(found, plain)
    [seen] = controllers
    assert seen.sizes == {(5, 6)}
    parts = [part for call in seen.calls for part in call.with_prompt]
    # Four steps, with and without the prompt, in one call or in two.
    assert (parts.count(True), parts.count(False)) == (4, 4)
    assert {(call.tokens.text, call.tokens.pooled, call.tokens.images) for call in seen.calls} == {(9, 4, 4)}
    percents = [call.percent for call in seen.calls]
    assert percents == sorted(percents)
    assert percents[0] < 0.05


def test_each_run_has_a_controller_of_its_own(host: Any) -> None:
    controllers: list[Recorded] = []
    changed = controlled(host, controllers, changes=True)
    first, second = stage_c(host, batch=2, model=changed), stage_c(host, batch=2, model=changed)
    assert torch.equal(first, second)
    assert not torch.equal(first, stage_c(host, batch=2))
    assert len(controllers) == 2
