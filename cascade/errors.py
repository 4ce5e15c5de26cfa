"""The errors that users see, one class for each case that a caller may handle. Their text is one line."""

from __future__ import annotations

import logging
import os
import reprlib
import sys

LONGEST = 1000
"""Characters of an error's text, without the path: a few lines on a screen. Names in files have any length."""


class _Shown(reprlib.Repr):
    """Python's short form, with numbers of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 100
        self.maxlevel = 3

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() < 200 else f"a number of {x.bit_length():,} bits"


def shown(value: object) -> str:
    """A value of a file, for a message: its repr, cut to a part of a line.

    Large or deeply nested values are not written out before that, which could take all memory.
    """
    return _Shown().repr(value)[:LONGEST]


def one_line(text: str) -> str:
    """A text of at most `LONGEST` characters without line breaks and control characters."""
    cut = text if len(text) <= LONGEST else f"{text[: LONGEST - 4]} ..."
    return _visible(cut.replace("\n", " "))


def _visible(text: str) -> str:
    """Text with what cannot be seen as its escape: control characters could change the rest of a line or a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def printable(text: str) -> str:
    """Text that every encoding of a terminal or a log takes: half of a surrogate pair is shown as its escape.

    Names of files and metadata may hold one, and it ends the thread that prints it: ComfyUI's queue until a restart.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _printable_causes() -> None:
    """Make the error that is being handled printable, with those that led to it: a traceback shows all of them, and
    their texts hold what a file has."""
    error = sys.exc_info()[1]
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        error.args = tuple(printable(arg) if isinstance(arg, str) else arg for arg in error.args)
        error = error.__cause__ or error.__context__


class Printable(logging.Filter):
    """Makes every message of a logger printable."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = printable(record.getMessage()), None
        return True


class CascadeError(Exception):
    """Base of every error that this library raises on purpose. Its text is one line that can be printed, and so is
    that of the error that it is raised for."""

    def __init__(self, *args: object) -> None:
        _printable_causes()
        super().__init__(*(one_line(arg) if isinstance(arg, str) else arg for arg in args))


class CheckpointError(CascadeError):
    """Base of errors about a checkpoint. The text begins with the file's path.

    Attributes:
        path: the file or folder; None for a state dict.
    """

    def __init__(self, message: str, path: str | os.PathLike[str] | None = None) -> None:
        _printable_causes()
        message = one_line(message)
        # Not counted with the message: a path is what the user needs, and has a limit of its own.
        Exception.__init__(self, f"{_visible(os.fspath(path))}: {message}" if path is not None else message)
        self.path = path


class BrokenCheckpoint(CheckpointError):
    """The file cannot be read: truncated, empty, damaged, not a checkpoint at all, or with NaN or infinity in it."""


class UnknownCheckpoint(CheckpointError):
    """The file is readable, but not a part of Stable Cascade."""


class IncompatibleCheckpoint(CheckpointError):
    """A part of Stable Cascade, but not the requested one, or its tensors do not fit its network."""


class UnsafeCheckpoint(CheckpointError):
    """A pickle that contains code. The code was not run."""


class InvalidConfig(CascadeError):
    """Training settings that are not valid."""


class RunConflict(InvalidConfig):
    """The output folder holds a training with other settings or images, which cannot go on with these."""


class FolderInUse(CascadeError):
    """Another process writes to the folder."""


class NotWritable(CascadeError):
    """A file or folder cannot be written: the disk is full, it is write-protected, or there is no permission."""


class InvalidImage(CascadeError):
    """An image or a mask that cannot be used."""


class InvalidSize(CascadeError):
    """A width or height of an image or latent that cannot be generated."""


class MissingPart(CascadeError):
    """A network that a task requires was not given or not found."""


class InvalidSettings(CascadeError, ValueError):
    """Settings of a run that contradict themselves or lie outside their range."""


class InvalidName(CascadeError, ValueError):
    """A name that no file can have, here or on another system."""
