"""300 cases of every class, and the limits themselves: each is broken once on purpose."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.broken import BROKEN, USES
from tests.fuzz.classes import all_classes
from tests.fuzz.running import Runner

CASES = 300


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    with Runner(tmp_path_factory.mktemp("failures")) as found:
        yield found


@pytest.mark.fuzz
@pytest.mark.parametrize("name", all_classes())
def test_damaged_input_ends_in_a_result_or_an_error_of_ours(
    name: str, runner: Runner, request: pytest.FixtureRequest
) -> None:
    seed = str(request.config.getoption("--hypothesis-seed"))
    problems = [problem for index in range(CASES) if (problem := runner.run(name, seed, index))]
    assert not problems, f"{len(problems)} of {CASES}; the first, in {runner.keep}:\n{problems[0]}"


def test_every_broken_limit_is_found_and_its_file_kept(tmp_path: Path) -> None:
    with Runner(tmp_path, BROKEN, hang=10) as runner:
        for name, (_, wanted) in USES.items():
            problem = runner.run(name, "0", 1)
            kept = tmp_path / f"{name}-0-1"
            if wanted is None:
                assert problem is None
                assert not kept.exists()
            else:
                assert problem is not None
                assert wanted in problem
                assert (kept / "problem.txt").read_text(encoding="utf-8") == problem + "\n"
                assert (kept / "file").exists()


def test_a_case_can_be_made_again(tmp_path: Path) -> None:
    with Runner(tmp_path, BROKEN) as runner:
        found = []
        for seed, index in (("7", 2), ("7", 2), ("7", 3), ("8", 2)):
            runner.run("untyped", seed, index)
            found.append((tmp_path / f"untyped-{seed}-{index}" / "file").read_bytes())
    assert found[0] == found[1]
    assert len(set(found)) == 3
