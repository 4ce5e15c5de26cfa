"""The errors users meet, one class for each thing a caller may want to handle. Their text is one line, fit to show."""

from __future__ import annotations

import os


class CascadeError(Exception):
    """Base of every error that this library raises on purpose."""


class CheckpointError(CascadeError):
    """Base of what can be wrong with a checkpoint; names the file first.

    Attributes:
        path: the file or folder, or None for a state dict.
    """

    def __init__(self, message: str, path: str | os.PathLike[str] | None = None) -> None:
        message = message.replace("\n", " ")  # as names of tensors may have it
        super().__init__(f"{os.fspath(path)}: {message}" if path is not None else message)
        self.path = path


class BrokenCheckpoint(CheckpointError):
    """The file cannot be read: truncated, empty, not a checkpoint at all, contradicting itself, or not finite."""


class UnknownCheckpoint(CheckpointError):
    """The file is whole, but no part of Stable Cascade."""


class IncompatibleCheckpoint(CheckpointError):
    """A part of Stable Cascade, but not the one that was wanted, or one that its network does not fit."""


class UnsafeCheckpoint(CheckpointError):
    """A pickle that wants to run code. It was not run."""


class InvalidConfig(CascadeError):
    """A training configuration that cannot be carried out as it is written."""


class RunConflict(InvalidConfig):
    """The output folder holds a training with other settings or images, which cannot go on with these."""


class InvalidImage(CascadeError):
    """An image or a mask that cannot be used."""


class InvalidSize(CascadeError):
    """An image's width or height, or a latent's, that cannot be made."""


class MissingPart(CascadeError):
    """A job needs a network that was not given or not found."""
