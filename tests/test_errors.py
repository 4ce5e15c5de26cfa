"""What all errors and log messages of the library have in common."""

from __future__ import annotations

import inspect
import logging
import traceback

import pytest

import cascade
from cascade import errors
from cascade.errors import CascadeError, CheckpointError, shown

ERRORS = [each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, CascadeError)]
SURROGATE = "folder \ud800"
"""As a name that is not UTF-8 arrives in Python; no encoding takes it."""


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_can_be_printed(error: type[CascadeError]) -> None:
    assert str(error(SURROGATE)).encode("utf-8") == b"folder \\ud800"
    assert str(error("a\u00e9\u4e2d")) == "a\u00e9\u4e2d"


def test_a_path_that_is_not_utf_8_can_be_printed() -> None:
    error = CheckpointError("damaged", SURROGATE)
    assert str(error).encode("utf-8") == b"folder \\ud800: damaged"
    assert error.path == SURROGATE


def test_a_path_with_a_line_break_stays_in_its_line() -> None:
    assert str(CheckpointError("damaged", "a\nb\x1b.safetensors")) == "a\\nb\\x1b.safetensors: damaged"


def test_values_of_files_are_cut_before_they_are_written_out() -> None:
    doubled: list[object] = []
    for _ in range(200):
        doubled = [doubled, doubled]
    for value in (doubled, {"a": doubled}, "a" * 10**8, 10**100_000, {n: n for n in range(10**5)}):
        assert len(shown(value)) <= 1000
    assert shown("a\n") == r"'a\n'"


def test_log_messages_can_be_printed(caplog: pytest.LogCaptureFixture) -> None:
    assert cascade.__version__
    logging.getLogger("cascade").warning("passed over: %s", SURROGATE)
    assert caplog.messages == ["passed over: folder \\ud800"]


@pytest.mark.parametrize("error", ERRORS)
def test_a_traceback_with_the_errors_before_can_be_printed(error: type[CascadeError]) -> None:
    try:
        try:
            try:
                raise RuntimeError(SURROGATE)
            except RuntimeError:
                raise ValueError(SURROGATE)  # noqa: B904  an error while another is handled
        except ValueError as problem:
            raise error(f"damaged: {problem}") from problem
    except CascadeError as found:
        text = "".join(traceback.format_exception(found))
    assert text.count("folder \\ud800") == 3
    assert text.encode("utf-8")
