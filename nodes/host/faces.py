"""Faces: from other nodes' outputs, or from insightface if it is installed."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import torch
from torch import Tensor

from ...cascade.errors import CascadeError, MissingPart
from ...cascade.images import Faces

MODEL = "buffalo_l"


def given(boxes: Any, embeddings: Any, batch: int) -> list[Faces]:
    """The faces of each image from what a detector's node gives. Raises CascadeError for what cannot be read."""
    all_boxes, all_embeddings = _each(boxes, 4, batch), _each(embeddings, None, batch)
    if len(widths := {each.shape[-1] for each in all_embeddings if each.numel()}) > 1:
        raise CascadeError(f"Identity Hint (Stable Cascade): embeddings of different lengths: {sorted(widths)}.")
    if len(all_boxes) != len(all_embeddings):
        raise CascadeError(
            f"Identity Hint (Stable Cascade): bboxes for {len(all_boxes)} images and embeddings for "
            f"{len(all_embeddings)}."
        )
    return [Faces(*pair) for pair in zip(all_boxes, all_embeddings)]


def _each(values: Any, width: int | None, batch: int) -> list[Tensor]:
    """A tensor [faces, width] for each image."""
    tensors = [_table(value) for value in values] if _depth(values) > 2 else [_table(values)]
    wrong = [tensor.shape for tensor in tensors if tensor.numel() and width not in (None, tensor.shape[-1])]
    if wrong:
        raise CascadeError(
            f"Identity Hint (Stable Cascade): a box is left, top, right and bottom; found {list(wrong[0])}."
        )
    # The faces of a single image are used for every image of a batch.
    return tensors * batch if len(tensors) == 1 else tensors


def _depth(value: Any) -> int:
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim
    return 1 + max(map(_depth, value), default=1) if isinstance(value, Sequence) and not isinstance(value, str) else 0


def _table(values: Any) -> Tensor:
    try:
        rows = values if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values, dtype=np.float32))
    except (TypeError, ValueError) as error:
        raise CascadeError(f"Identity Hint (Stable Cascade): bboxes and embeddings are numbers: {error}.") from error
    rows = torch.atleast_1d(rows.detach().float().cpu())
    return rows.reshape(-1, rows.shape[-1]) if rows.numel() else torch.zeros(0, 4)


def detected(images: Tensor) -> list[Faces]:
    """The faces that insightface finds in images [B, 3, H, W]. Raises MissingPart where there is no detector."""
    folder = Path(folder_paths.models_dir) / "insightface"
    try:
        analysis = importlib.import_module("insightface.app").FaceAnalysis
    except ImportError as error:
        raise MissingPart(
            "Identity Hint (Stable Cascade) has no face detector. Connect bboxes and embeddings of another node's "
            "detector, or install insightface (pip install insightface onnxruntime)."
        ) from error
    # insightface would download them by itself.
    if not (folder / "models" / MODEL).is_dir():
        raise MissingPart(
            f"Identity Hint (Stable Cascade): insightface is installed, its networks are not. Put {MODEL} into "
            "models/insightface/models."
        )
    detector = analysis(name=MODEL, root=str(folder))
    detector.prepare(ctx_id=-1)
    # It takes blue, green, red.
    pixels = (images.clamp(0, 1) * 255).round().byte().movedim(1, -1).flip(-1).cpu().numpy()
    return [_faces(detector.get(np.ascontiguousarray(each))) for each in pixels]


def _faces(found: Sequence[Any]) -> Faces:
    boxes = np.asarray([face.bbox for face in found], dtype=np.float32).reshape(-1, 4)
    embeddings = np.asarray([face.normed_embedding for face in found], dtype=np.float32).reshape(len(found), -1)
    return Faces(torch.from_numpy(boxes), torch.from_numpy(embeddings))
