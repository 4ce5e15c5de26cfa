"""Folders and tars of images as people and strangers make them: what cannot be read is left out and named."""

from __future__ import annotations

import io
import logging
import os
import struct
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cascade.errors import InvalidConfig, InvalidImage
from cascade.images import open_image, read_file
from cascade.training.data import cached
from cascade.training.folders import FolderImages


def png(side: int = 40) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def large_png(width: int, height: int) -> bytes:
    """A few hundred kB that would take 4 bytes a pixel, and more than once."""
    squeezed = zlib.compressobj(9)
    row = bytes(1 + 4 * width)
    body = b"".join(squeezed.compress(row) for _ in range(height)) + squeezed.flush()
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)), (b"IDAT", body), (b"IEND", b""))
    parts = (struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def read(source: FolderImages) -> tuple[np.ndarray, list[str]]:
    """All images that can be read, and their captions; what cannot be read is noted then."""
    seen = [each for part in source.parts() for each in source.read(part)]
    source.problems(len(seen))
    return np.stack([each.pixels for each in seen]), [each.texts[0] or "" for each in seen]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one image that can be read."""
    (tmp_path / "owl.png").write_bytes(png())
    (tmp_path / "owl.txt").write_text("an owl", encoding="utf-8")
    return tmp_path


def tar_of(path: Path, **members: bytes) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name.replace("_", "."))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def with_size(path: Path, size: bytes) -> None:
    """Another size in the header of the last member of a tar, with the right checksum."""
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        block = tar.getmembers()[-1].offset
    data[block + 124 : block + 136] = size
    data[block + 148 : block + 156] = b" " * 8
    data[block + 148 : block + 156] = b"%06o\0 " % sum(data[block : block + 512])
    path.write_bytes(data)


def test_pixels_are_counted_before_they_are_decoded(folder: Path) -> None:
    (folder / "bomb.png").write_bytes(large_png(12_000, 12_000))
    assert (folder / "bomb.png").stat().st_size < 600_000
    source = FolderImages(folder, 32)
    assert read(source)[1] == ["an owl"]
    assert source.skipped == {"bomb.png": "12000 x 12000 pixels; at most 67 million are read"}


def test_a_sparse_file_is_not_read(folder: Path) -> None:
    with (folder / "sparse.png").open("wb") as file:
        file.truncate(2**40)
    with (folder / "owl_2.txt").open("wb") as file:
        file.truncate(2**40)
    (folder / "owl_2.png").write_bytes(png())
    source = FolderImages(folder, 32)
    read(source)
    skipped = source.skipped
    assert list(skipped) == ["owl_2.png", "sparse.png"]
    assert all(f"it has {2**40} bytes" in reason for reason in skipped.values())
    with pytest.raises(InvalidImage, match="more than 256 MB"):
        read_file(folder / "sparse.png")


def test_pillows_own_limit_stays_as_it_is(folder: Path) -> None:
    before = Image.MAX_IMAGE_PIXELS
    read(FolderImages(folder, 32))
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n", b"<svg/>"])
def test_other_formats_are_not_opened(content: bytes) -> None:
    """Pillow would start Ghostscript for the first."""
    with pytest.raises(InvalidImage, match="not of a known format"), open_image(content):
        pass


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are Unicode there")
def test_names_need_not_be_utf_8(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, data in {
        b"caf\xe9.png": png(),
        b"caf\xe9.txt": b"a cafe",
        b"\xff.png": png(50),
        b"a\nb.png": b"",
    }.items():
        (folder / os.fsdecode(name)).write_bytes(data)
    source = FolderImages(folder, 32)
    captions = read(source)[1]
    assert captions == ["a cafe", "an owl", "\\udcff"]
    assert list(source.skipped) == ["a\\nb.png"]
    for line in (source.name, *captions, *source.problems(3), *(record.getMessage() for record in caplog.records)):
        assert line.encode("utf-8")
        assert "\n" not in line


@pytest.mark.parametrize("size", [b"77777777777\0", b"\x80" + b"\0" * 3 + b"\x7f" * 8, b"\xff" * 12, b"x" * 12])
def test_absurd_sizes_in_a_tar_lose_only_what_they_describe(folder: Path, size: bytes) -> None:
    with_size(tar_of(folder / "a.tar", cat_png=png(), cat_txt=b"a cat", dog_png=png(50)), size)
    source = FolderImages(folder, 32)
    assert read(source)[1] == ["a cat", "an owl"]
    assert "a.tar" in next(iter(source.skipped), "a.tar")


def test_a_header_of_gigabytes_is_not_read(folder: Path) -> None:
    path = tar_of(folder / "a.tar", cat_png=png())
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**33 - 1
    header = info.tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(path.read_bytes()[: -tarfile.RECORDSIZE] + header)
    with path.open("ab") as file:
        file.truncate(2**34)
    source = FolderImages(folder, 32)
    assert "an owl" in read(source)[1]
    assert "a header of" in source.skipped["a.tar"]


def test_a_damaged_tar_is_left_out_and_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "damaged.tar").write_bytes(b"no tar at all")
    tar_of(folder / "good.tar", cat_png=png(), cat_txt=b"a cat")
    with caplog.at_level(logging.WARNING, logger="cascade"):
        made = cached(folder / "cache", "x", FolderImages(folder, 32), lambda pixels: {"images": pixels})
    assert list(made.captions) == ["a cat", "an owl"]
    assert "left out damaged.tar" in caplog.text


def test_a_folder_with_nothing_usable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "damaged.tar").write_bytes(b"no tar at all")
    with pytest.raises(InvalidConfig, match=r"none of its 1 images can be read; damaged\.tar: "):
        read(FolderImages(tmp_path, 32))
    (tmp_path / "damaged.tar").unlink()
    with pytest.raises(InvalidConfig, match="no images there"):
        read(FolderImages(tmp_path, 32))
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(InvalidConfig, match="none of its 1 images can be read"):
        read(FolderImages(tmp_path, 32))


def test_listing_ends_at_a_number_and_when_it_is_told_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        (folder / f"{number}.other").touch()
    seen = []

    def stop() -> None:
        seen.append(1)
        if len(seen) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FolderImages(folder, 32, on_image=stop)
    assert len(seen) == 7
    monkeypatch.setattr("cascade.training.listing.ENTRIES", 10)
    with pytest.raises(InvalidConfig, match="more than 10 files"):
        FolderImages(folder, 32)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_pipes_and_links_that_lead_nowhere_are_no_images(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "up").symlink_to("..")
    assert len(read(FolderImages(folder, 32))[1]) == 1
    with pytest.raises(InvalidImage, match="no file"):
        read_file(folder / "pipe.png")
