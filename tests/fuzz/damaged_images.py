"""Damaged images, captions and tars, as a training reads them from a folder."""

from __future__ import annotations

import io
import os
import random
import struct
import sys
import tarfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from cascade.errors import InvalidConfig, InvalidImage
from cascade.images import from_pillow, open_image, read_file
from cascade.training.folders import FolderImages
from tests.fuzz.classes import MEGABYTE, Case, FuzzClass

FORMATS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "BMP": "bmp", "TIFF": "tif", "GIF": "png"}
SIDES = (0, 1, 2, 255, 8193, 20_000, 65_535, 100_000, 2**31 - 1, 2**32 - 1)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(ran) (w) file closefile showpage\n%%EOF\n"
HIDDEN = random.Random(0).randbytes(2048)


@cache
def originals() -> tuple[tuple[str, bytes], ...]:
    """Small images with what else their formats carry: ending and content."""
    dice = np.random.default_rng(0)
    found = []
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    for name, ending in FORMATS.items():
        for mode in ("RGB", "RGBA", "L", "P", "1", "I;16", "CMYK"):
            pixels = Image.fromarray(dice.integers(0, 256, (40, 48, 3), dtype=np.uint8))
            options = {"exif": exif} if name in ("PNG", "JPEG", "WEBP", "TIFF") else {}
            if name == "JPEG" and mode == "L":
                options["progressive"] = True
            if name == "TIFF" and mode in ("RGB", "L"):
                options["compression"] = "tiff_lzw" if mode == "RGB" else "tiff_adobe_deflate"
            buffer = io.BytesIO()
            try:
                pixels.convert("I" if mode == "I;16" else mode).convert(mode).save(buffer, name, **options)
            except (OSError, ValueError):  # not every format has every mode
                continue
            found.append((ending, buffer.getvalue()))
    return tuple(found)


def flip(data: bytearray, dice: random.Random) -> None:
    for _ in range(dice.randint(1, 12)):
        data[dice.randrange(min(len(data), dice.choice((64, 400, 10**9))))] ^= 1 << dice.randrange(8)


def cut(data: bytearray, dice: random.Random) -> None:
    del data[dice.randrange(len(data)) :]


def remove(data: bytearray, dice: random.Random) -> None:
    at = dice.randrange(len(data))
    del data[at : at + dice.randint(1, 200)]


def repeat(data: bytearray, dice: random.Random) -> None:
    at = dice.randrange(len(data))
    data[at:at] = data[at : at + dice.randint(1, 300)] * dice.choice((1, 2, 50))


def numbers(data: bytearray, dice: random.Random) -> None:
    """Sizes, counts and offsets of all formats are numbers of 2 or 4 bytes, nearly always in the first bytes."""
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(max(1, min(len(data), 300) - 4))
        data[at : at + 4] = struct.pack(dice.choice("<>") + "I", dice.choice(SIDES))


def png_chunks(data: bytearray, dice: random.Random) -> None:
    """PNG chunks with right checksums and wrong content."""
    kind = dice.choice(
        (b"IHDR", b"PLTE", b"tRNS", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"gAMA")
    )
    match dice.randrange(4):
        case 0:
            body = dice.randbytes(dice.randint(0, 300))
        case 1:
            body = b"name\0\0" + zlib.compress(bytes(dice.choice((10, 3 * MEGABYTE))))
        case 2:
            body = struct.pack(">IIBBBBB", dice.choice(SIDES), dice.choice(SIDES), dice.choice((1, 8, 16)), 2, 0, 0, 0)
        case _:
            body = HIDDEN
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    if kind == b"IHDR" and data[:4] == b"\x89PNG":
        data[8:33] = chunk
    else:
        data[33:33] = chunk


def large_png(data: bytearray, dice: random.Random) -> None:
    """A few kB of pixels that would take gigabytes."""
    sides = ((8192, 8192), (8193, 8192), (12_000, 12_000), (16_000, 11_000), (60_000, 30_000), (2**31 - 1, 1))
    width, height = dice.choice(sides)
    kind = dice.choice((0, 2, 6))
    squeezed = zlib.compressobj(1)
    body = squeezed.compress(bytes(4 * MEGABYTE)) + squeezed.flush()
    header = struct.pack(">IIBBBBB", width, height, dice.choice((8, 16)), kind, 0, 0, dice.choice((0, 1)))
    chunks = ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    parts = (struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    data[:] = b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def swap(data: bytearray, dice: random.Random) -> None:
    """What other programs would open, or run."""
    texts = (EPS, b"%PDF-1.7\n", b"<svg/>", b"", b"\0" * 3000, b"GIF89a" + HIDDEN, b"P6 99999 99999 255\n", HIDDEN)
    data[:] = dice.choice(texts)


MUTATORS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    *(flip, cut, remove, repeat, numbers, png_chunks, large_png, swap),
)


def damaged(dice: random.Random) -> tuple[str, bytes, str]:
    """Ending, content, and what was done to it."""
    ending, content = dice.choice(originals())
    data = bytearray(content)
    mutator = dice.choice(MUTATORS)
    mutator(data, dice)
    return ending, bytes(data), mutator.__name__


def make_image(dice: random.Random, folder: Path) -> Case:
    ending, data, note = damaged(dice)
    path = folder / f"image.{ending}"
    if dice.random() < 0.02:
        with path.open("wb") as file:
            file.truncate(dice.choice((2**20, 2**29, 2**36)))
        note = "sparse"
    else:
        path.write_bytes(data)
    return Case(path, note)


def use_image(case: Case) -> None:
    """As the command line reads one, then as a training."""
    content = None
    try:
        content = read_file(case.path)
        with open_image(content) as image:
            assert from_pillow(image).ndim == 4
    except InvalidImage:
        pass
    source = FolderImages(case.path.parent, 32)
    source.problems(sum(1 for part in source.parts() for _ in source.read(part)))


NAMES = (
    b"owl",
    b"caf\xe9",
    b"\xff\xfe",
    b"a b",
    b".hidden",
    b"n" * 200,
    "日本".encode(),
    b"-rf",
    b"a\nb",
    b"con",
    b"x.txt",
)


def make_folder(dice: random.Random, folder: Path) -> Case:
    """Images and captions of all names and contents, links, and tars, some of them damaged."""
    place = folder / "images"
    place.mkdir()
    notes = []
    for number in range(dice.randint(1, 4)):
        name = dice.choice(NAMES) + str(number).encode()
        match dice.randrange(6):
            case 0 | 1:
                ending, data, note = damaged(dice)
                (place / os.fsdecode(name + b"." + ending.encode())).write_bytes(data)
            case 2:
                (place / os.fsdecode(name + b".txt")).write_bytes(caption(dice))
                ending, data = dice.choice(originals())
                (place / os.fsdecode(name + b"." + ending.encode())).write_bytes(data)
                note = "caption"
            case 3 if sys.platform != "win32":
                (place / os.fsdecode(name + b".png")).symlink_to(
                    dice.choice((".", "missing", os.fsdecode(name + b".png")))
                )
                note = "link"
            case _:
                (place / os.fsdecode(name + b".tar")).write_bytes(tar(dice))
                note = "tar"
        notes.append(note)
    return Case(place, ", ".join(notes))


def caption(dice: random.Random) -> bytes:
    texts = (b"", b"\xff\xfe\x00", b"a\0b", "﻿owl".encode(), b"x" * 70_000, b"\n\nan owl\r\n", b"\xed\xa0\x80")
    return dice.choice((*texts, dice.randbytes(50)))


def tar(dice: random.Random) -> bytes:
    """A tar of images, with absurd entries, and most often damaged."""
    buffer = io.BytesIO()
    kind = dice.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT))
    with tarfile.open(fileobj=buffer, mode="w", format=kind, encoding="utf-8", errors="surrogateescape") as whole:
        for number in range(dice.randint(1, 3)):
            ending, content = dice.choice(originals())
            name = os.fsdecode(dice.choice(NAMES))
            info = tarfile.TarInfo(
                dice.choice((f"{name}{number}.{ending}", "../../out.png", "/etc/x.png", f"{'d/' * 60}x.png"))
            )
            info.size = len(content)
            info.type = dice.choice(
                (tarfile.REGTYPE,) * 4 + (tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE)
            )
            info.linkname = dice.choice(("", "/etc/passwd", name))
            if kind == tarfile.PAX_FORMAT and dice.random() < 0.4:
                odd = ("size", "GNU.sparse.map", "GNU.sparse.size", "GNU.sparse.major", "path", "mtime", "hdrcharset")
                values = ("-1", "99999999999999999999", "1", "a,b", "0", "1e999", "BINARY", "\n")
                info.pax_headers = {dice.choice(odd): dice.choice(values) for _ in range(2)}
            try:
                whole.addfile(info, io.BytesIO(content))
            except ValueError:  # a name or a header that this format cannot hold
                continue
    data = bytearray(buffer.getvalue())
    for _ in range(dice.choice((0, 1, 1, 4))):
        block = 512 * dice.randrange(max(1, len(data) // 512))
        match dice.randrange(4):
            case 0:
                # The size of a member: in octal digits, or in base 256, which may be negative
                data[block + 124 : block + 136] = dice.choice(
                    (b"77777777777\0", b"\xff" * 12, b"\x80" + b"\xff" * 11, b"\xff" * 11 + b"\0", b"-0000000001\0")
                )
            case 1:
                data[block + 156 : block + 157] = dice.choice((b"x", b"g", b"L", b"K", b"S", b"5", b"\0"))
            case 2:
                del data[block + dice.randrange(512) :]
            case _:
                at = dice.randrange(max(1, len(data)))
                data[at : at + 1] = dice.randbytes(1)
        checked(data, block)
    return bytes(data)


def checked(data: bytearray, block: int) -> None:
    """Give a header its right checksum again, or a reader looks no further."""
    header = data[block : block + 512]
    if len(header) == 512:
        header[148:156] = b" " * 8
        data[block + 148 : block + 156] = b"%06o\0 " % sum(header)


def use_folder(case: Case) -> None:
    source = FolderImages(case.path, 32)
    seen = [each for part in source.parts() for each in source.read(part)]
    lines = source.problems(len(seen))
    assert all(each.pixels.shape == (32, 32, 3) for each in seen)
    assert all(text == text.encode().decode() for text in [*lines, *(each.texts[0] or "" for each in seen)])


CLASSES = (
    FuzzClass("images", make_image, use_image, (InvalidImage, InvalidConfig), originals, memory=1000 * MEGABYTE),
    FuzzClass("image_folders", make_folder, use_folder, (InvalidConfig,), originals, memory=1000 * MEGABYTE),
)
