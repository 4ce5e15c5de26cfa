"""Loading a network from a file, a folder or a state dict, strictly and without a second copy in memory."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BrokenCheckpoint, IncompatibleCheckpoint
from ..models import Config
from .clip import place_position_ids
from .detection import Part, choose, detect_parts
from .layouts import Piece
from .network_kinds import KINDS, empty_network, variant
from .sources import Get, open_tensors

logger = logging.getLogger("cascade")

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
SHOWN = 3
"""How many names an error lists at most."""


def load_model(
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    *,
    part: str | None = None,
    config: Any = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    ops: Any = nn,
    check_finite: bool = False,
) -> Any:
    """The network in a checkpoint, in eval mode, with exactly the checkpoint's tensors.

    The kind, layout and size are detected from names and shapes. Sources: released single files, checkpoints of
    ComfyUI, folders of diffusers (with shards too), our own files, .pt and .ckpt (weights only).

    On the CPU and without a change of type the tensors are mapped from the file: nothing is copied, pages are read on
    first use. Writing to them (training) changes memory, never the file. Do not overwrite a file in place while its
    network is in use; `save_model` and `convert` replace the file, which is safe.

    Args:
        source: a path or a state dict.
        part: the kind of network to load (stage_a, stage_b, stage_c, effnet, previewer, controlnet, ip_adapter,
            text_encoder, image_encoder); required if the source contains several, checked if it contains one.
        config: replaces the detected config. Shapes do not determine the number of attention heads: without a config
            it is width / 64, as in every released network, unless our metadata or config.json of diffusers says more.
        dtype: of the floating tensors; None keeps theirs, except that float8, with which torch.nn cannot compute,
            becomes the file's other floating type, else bfloat16. Only matrices become float8.
        device: of the tensors.
        ops: the layer factory. The text and image encoder are networks of transformers and ignore it.
        check_finite: check for NaN and infinity, which reads the whole file.

    Raises:
        FileNotFoundError: the source does not exist.
        BrokenCheckpoint: it cannot be read, or contains NaN or infinity (with `check_finite`).
        UnknownCheckpoint: it is not a part of Stable Cascade.
        IncompatibleCheckpoint: another part than requested, or names or shapes do not fit.
        UnsafeCheckpoint: a pickle that contains code.
    """
    found = choose(detect_parts(open_tensors(source)), part)
    if config is None:
        config = settled_config(found)
    elif isinstance(config, Mapping):
        config = KINDS[found.kind].config.from_dict(config)
    with without_collector():
        expected = expected_network(found, config)
        net = expected if ops is nn else empty_network(found.kind, config, ops)
        dtype = dtype or _computing_dtype(found)
        state = dict(read_tensors(found, expected.state_dict(), dtype, device, check_finite))
        net.load_state_dict(state, strict=True, assign=True)
    place_position_ids(net, device)
    return net.eval()


@contextmanager
def without_collector() -> Iterator[None]:
    """Turn the garbage collector off: creating thousands of modules would start it, and it takes as long as loading
    and finds nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def settled_config(part: Part) -> Config:
    """The config of a part. Guessed fields are logged as a warning.

    Raises:
        IncompatibleCheckpoint: fields of the config are unknown.
    """
    inferred, title = part.inferred, KINDS[part.kind].title
    if inferred.unknown:
        raise IncompatibleCheckpoint(
            f"this is {part.describe()}, of a size that was not released, and the file does not define its "
            f"{' and '.join(inferred.unknown)}: only a program can load it, with the argument config",
            part.source.path,
        )
    if inferred.guessed:
        assumed = ", ".join(inferred.guessed)
        logger.warning(
            "%s: %s of a size that was not released; assuming the released rule for %s",
            part.source.path,
            title,
            assumed,
        )
    return inferred.config


def expected_network(part: Part, config: Config) -> nn.Module:
    """An empty network of this config, after a check that the part has exactly its names and shapes.

    Raises:
        IncompatibleCheckpoint: names are missing or left over, or shapes differ.
    """
    title, path = KINDS[part.kind].title, part.source.path
    try:
        net = empty_network(part.kind, config)
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]  # torch adds a trace of its own functions
        raise IncompatibleCheckpoint(f"{title}: its config is not valid ({reason})", path) from error
    expected = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    found = part.shapes
    wrong = [name for name in expected if name in found and found[name] != expected[name]]
    problems = [
        _listed("missing", [name for name in expected if name not in found]),
        _listed("left over", [part.pieces[name].name for name in found if name not in expected]),
        _listed("of another shape", [f"{name} {list(found[name])} for {list(expected[name])}" for name in wrong]),
        _listed("factors of a wrong shape", part.wrong_scales),
    ]
    if any(problems):
        text = "; ".join(problem for problem in problems if problem)
        raise IncompatibleCheckpoint(f"this is {variant(part.kind, config)}, but its tensors do not fit: {text}", path)
    return net


def _listed(what: str, names: Sequence[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > SHOWN else ""
    return f"{what}: {', '.join(names[:SHOWN])}{more}" if names else ""


def _computing_dtype(part: Part) -> torch.dtype | None:
    """None to keep the stored types; for float8 and int8 storage the type to compute with."""
    stored = [getattr(torch, name) for name in part.dtypes]
    if not any(dtype in FLOAT8 or not dtype.is_floating_point for dtype in stored):
        return None
    return next((dtype for dtype in stored if dtype.is_floating_point and dtype not in FLOAT8), torch.bfloat16)


def read_tensors(
    part: Part,
    expected: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    device: torch.device | str,
    check_finite: bool = False,
) -> Iterator[tuple[str, Tensor]]:
    """Our names and tensors, one at a time, in the given type and on the given device.

    Raises:
        BrokenCheckpoint: unreadable, or with NaN or infinity (with `check_finite`).
        IncompatibleCheckpoint: integers instead of floating values (a quantized format).
    """
    unfinite: list[str] = []
    with part.source.reader() as get:
        for name, piece in part.pieces.items():
            tensor = read_piece(part, piece, get)
            if check_finite and tensor.is_floating_point() and not _finite(tensor):
                unfinite.append(name)
            yield name, converted(part, name, tensor, expected[name], dtype).to(device)
    if unfinite:
        raise BrokenCheckpoint(_listed("NaN or infinity in", unfinite), part.source.path)


def read_piece(part: Part, piece: Piece, get: Get) -> Tensor:
    """One of our tensors; a view into the file's tensor if possible."""
    tensor = get(part.start + piece.name)
    scale = part.scales.get(piece.name)
    if scale is not None:
        factor = get(scale).float()
        # One factor for all, or one for each row of the matrix.
        tensor = tensor.float() * factor.reshape(() if factor.numel() == 1 else (-1, *[1] * (tensor.dim() - 1)))
    if piece.transposed:
        return tensor.t().contiguous()
    return tensor.chunk(piece.count)[piece.index] if piece.count > 1 else tensor


def converted(part: Part, name: str, tensor: Tensor, expected: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A tensor in the type for its place in the network."""
    if not expected.is_floating_point():
        return tensor.to(expected.dtype)
    if not tensor.is_floating_point():
        stored = str(tensor.dtype).removeprefix("torch.")
        found = f"this is {KINDS[part.kind].title} in a quantized format that is not supported ({name} is {stored})"
        raise IncompatibleCheckpoint(found, part.source.path)
    if dtype is None:
        return tensor
    if dtype in FLOAT8 and tensor.dim() < 2:
        return tensor.to(torch.bfloat16) if tensor.dtype in FLOAT8 else tensor
    return tensor.to(dtype)


def _finite(tensor: Tensor) -> bool:
    tensor = tensor.float() if tensor.dtype in FLOAT8 else tensor
    return bool(torch.isfinite(tensor).all())
