"""ComfyUI's model folders, and what the loaders offer from them: the tiny cascade first, then the user's files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ...cascade import tiny
from ...cascade.errors import CascadeError, MissingPart, NotWritable, shown
from ...cascade.files import check_name
from ..types import field

TINY = "tiny cascade (included)"

FOLDERS = {
    "stage_c": ("diffusion_models", "checkpoints"),
    "stage_b": ("diffusion_models", "checkpoints"),
    "stage_a": ("vae", "checkpoints"),
    "effnet": ("vae", "checkpoints"),
    "previewer": ("vae", "checkpoints"),
    "text_encoder": ("text_encoders", "checkpoints"),
    "image_encoder": ("clip_vision", "checkpoints"),
}
"""kind of network -> the folders with its files: its own, and that of merged checkpoints."""

ALL_FOLDERS = tuple(dict.fromkeys(folder for folders in FOLDERS.values() for folder in folders))

CHECKPOINTS = ("checkpoints",)
CONTROLNETS = ("controlnet",)
TINY_CONTROLNETS = {f"tiny {name.replace('_', ' ')} (included)": part for name, part in tiny.CONTROLS.items()}
"""Choice -> part of the tiny cascade."""

HIGH_RES = ("model_patches", "controlnet")
"""Folders of high-res guides."""

DESCRIPTORS = ("clip_vision",)
"""Folders of style descriptors."""
NO_DESCRIPTOR = "image encoder (clip_vision)"

ADAPTERS = {
    "lora": ("loras",),
    "controlnet": CONTROLNETS,
    "embedding": ("embeddings", "loras"),
    **dict.fromkeys(tiny.TURBO, ("loras",)),
    **dict.fromkeys((tiny.IP_ADAPTER, tiny.PRIOR), ("model_patches",)),
}
"""What is added to networks: LoRAs, those for a few steps, ControlNets, learned tokens, which may be in LoRAs too,
IP-Adapters and priors."""


TRAINING_FOLDERS = "training_folders"
"""The name under which extra_model_paths.yaml says where else images for trainings may lie."""
STAMPED = 20_000
"""Files of a folder of images whose changes are noticed before a training starts; a larger one is always read anew."""


def choices(kind: str) -> list[str]:
    """What a loader of this kind of network or adapter offers."""
    return [TINY, *_names(of_kind(kind))]


def file_field(kind: str, tip: str, name: str) -> Any:
    """A node's input that offers them."""
    return field(io.Combo, name, options=choices(kind), default=TINY, tooltip=tip)


def of_kind(kind: str) -> tuple[str, ...]:
    """The folders of a kind of network or adapter."""
    return FOLDERS[kind] if kind in FOLDERS else ADAPTERS[kind]


def find(kind: str, choice: str) -> Path:
    """The file of a choice.

    Raises:
        MissingPart: it is not there (any more).
    """
    if choice == TINY:
        return _existing(tiny.path(kind))
    return _full_path(of_kind(kind), choice)


def stamp(path: Path) -> tuple[object, ...]:
    """Changes when a file does, or one in a folder."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return tuple((str(file), stat.st_mtime_ns, stat.st_size) for file in files for stat in [file.stat()])


def state(folders: Iterable[str] = ALL_FOLDERS) -> tuple[object, ...]:
    """Changes when a file in these folders of ComfyUI changes, is added or removed; a search is then repeated."""
    names = ((folder, name) for folder in dict.fromkeys(folders) for name in folder_paths.get_filename_list(folder))
    paths = (folder_paths.get_full_path(folder, name) for folder, name in names)
    return tuple(stamp(Path(path)) for path in paths if path is not None)


def checkpoint_choices() -> list[str]:
    """Merged checkpoints and folders of diffusers."""
    return [*_names(CHECKPOINTS), *sorted(_diffusers())]


def find_checkpoint(choice: str) -> Path:
    """The file or folder of one of `checkpoint_choices`. Raises MissingPart."""
    folders = _diffusers()
    return folders[choice] if choice in folders else _full_path(CHECKPOINTS, choice)


def controlnet_choices() -> list[str]:
    """The tiny cascade's ControlNets, then the user's files."""
    return [*TINY_CONTROLNETS, *_names(CONTROLNETS)]


def find_controlnet(choice: str) -> Path:
    """The file of one of `controlnet_choices`. Raises MissingPart."""
    if choice in TINY_CONTROLNETS:
        return _existing(tiny.path(TINY_CONTROLNETS[choice]))
    return _full_path(CONTROLNETS, choice)


def instruct_choices() -> list[str]:
    """The tiny cascade's instruct network, then the user's files."""
    return [TINY, *_names(CONTROLNETS)]


def find_instruct(choice: str) -> Path:
    """The file of one of `instruct_choices`. Raises MissingPart."""
    return _existing(tiny.path(tiny.INSTRUCT)) if choice == TINY else _full_path(CONTROLNETS, choice)


def high_res_choices() -> list[str]:
    """The tiny cascade's high-res guides, then the user's files."""
    return [TINY, *_names(HIGH_RES)]


def find_high_res(choice: str) -> Path:
    """The file of one of `high_res_choices`. Raises MissingPart."""
    return _existing(tiny.path(tiny.GUIDES)) if choice == TINY else _full_path(HIGH_RES, choice)


def descriptor_choices() -> list[str]:
    """The image encoder, which a node has beside it, then the user's style descriptors."""
    return [NO_DESCRIPTOR, *_names(DESCRIPTORS)]


def find_descriptor(choice: str) -> Path | None:
    """The file of one of `descriptor_choices`; None for the image encoder. Raises MissingPart."""
    return None if choice == NO_DESCRIPTOR else _full_path(DESCRIPTORS, choice)


def model_folders() -> list[Path]:
    """All folders that may hold a part of a cascade, once each."""
    paths = (Path(path) for name in ALL_FOLDERS for path in folder_paths.get_folder_paths(name))
    return [path for path in dict.fromkeys(paths) if path.is_dir()]


def model_files(kind: str) -> Iterator[Path]:
    """The files in a kind's own folder."""
    own = FOLDERS[kind][:1]
    return (_full_path(own, name) for name in _names(own) if name.endswith(".safetensors"))


def new_file(kind: str, name: str, ending: str = ".safetensors") -> Path:
    """Where a file of this kind and name is written: in its folder, never outside of it.

    Raises:
        CascadeError: a name that no file can have, or that leads elsewhere.
    """
    path = inside(_writable(kind), name.removesuffix(ending))
    return path.with_name(f"{path.name}{ending}")


def numbered_file(kind: str, filename_prefix: str, ending: str = ".safetensors") -> Path:
    """A new file of this kind, numbered as the host's savers do: prefix_00001_.safetensors, the next one 00002.

    Its folder is made. Raises CascadeError as `new_file`.
    """
    folder = _writable(kind).resolve()
    prefix = inside(folder, filename_prefix).relative_to(folder)
    try:
        where, name, counter, _, _ = folder_paths.get_save_image_path(str(prefix), str(folder))
    except OSError as error:
        raise NotWritable(f"{folder / prefix}: no file can be written there: {error.strerror or error}") from error
    path = Path(where) / f"{name}_{counter:05}_{ending}"
    check_name(path)
    return path


def _writable(kind: str) -> Path:
    """The folder into which files of a kind are written."""
    own = of_kind(kind)[0]
    paths = list(map(Path, folder_paths.get_folder_paths(own)))
    # The first may have an old name: unet instead of diffusion_models.
    return next((path for path in paths if path.name == own), paths[0])


def run_folder(name: str) -> Path:
    """Where the training of this name keeps its state. Raises CascadeError as `new_file`."""
    return inside(Path(folder_paths.get_output_directory()) / "stable_cascade" / "training", name)


def inside(folder: Path, name: str) -> Path:
    """A path under a folder. Raises CascadeError for a name that leads elsewhere, or that not every system can have."""
    root = folder.resolve()
    check_name(Path(name.strip()), windows=True)
    path = Path(os.path.realpath(root / name.strip()))  # `resolve` has an error of its own for a link to itself
    if not path.is_relative_to(root) or path == root:
        raise CascadeError(f"{name!r} is no name for a file here: use letters, digits, - and _, and / for a subfolder.")
    check_name(path)
    return path


def images(name: str) -> Path:
    """A folder or tar of images: in ComfyUI's input folder, or a whole path below one of `image_folders`.

    Raises MissingPart, with the same text for what is not there and what is elsewhere: who may send prompts is not told
    which files this machine has.
    """
    roots = image_folders()
    # Without a look at the disk: links below these folders are the owner's.
    path = Path(os.path.normpath(roots[0] / name.strip()))
    # Path.exists() raises for names that are too long, and for folders that may not be looked into.
    if name.strip() and any(path.is_relative_to(root) for root in roots) and os.path.exists(path):  # noqa: PTH110
        return path
    raise MissingPart(
        f"There are no images at {shown(name)}. Give a folder or a tar in ComfyUI's input folder, or a whole path in "
        f"its input, output or models folder, or in one that {TRAINING_FOLDERS} in extra_model_paths.yaml names."
    )


def image_folders() -> list[Path]:
    """Where trainings may read images: input first, output, models, and those that the server's owner has named."""
    named = folder_paths.folder_names_and_paths.get(TRAINING_FOLDERS)
    own = [folder_paths.get_input_directory(), folder_paths.get_output_directory(), folder_paths.models_dir]
    roots = [*own, *(named[0] if named else ())]
    return [path for root in map(Path, roots) for path in (Path(os.path.normpath(root.absolute())), root.resolve())]


def image_stamp(path: Path, stopped: Callable[[], bool]) -> tuple[object, ...] | None:
    """As `stamp`, of a folder of images; None where it has more than STAMPED files, or when it was stopped."""
    found: list[tuple[str, int, int]] = []
    for where, folders, files in os.walk(path) if path.is_dir() else [(str(path.parent), [], [path.name])]:
        folders.sort()
        for name in sorted(files):
            if len(found) >= STAMPED or stopped():
                return None
            with suppress(OSError):  # a link that leads nowhere
                stat = (Path(where) / name).stat()
                found.append((str(Path(where) / name), stat.st_mtime_ns, stat.st_size))
    return tuple(found)


def embeddings() -> list[str]:
    """The folders of textual inversions."""
    return folder_paths.get_folder_paths("embeddings")


def _names(folders: tuple[str, ...]) -> list[str]:
    return list(dict.fromkeys(name for folder in folders for name in folder_paths.get_filename_list(folder)))


def _full_path(folders: tuple[str, ...], name: str) -> Path:
    for folder in folders:
        path = folder_paths.get_full_path(folder, name)
        if path is not None:
            return Path(path)
    raise MissingPart(
        f"{name} is not in ComfyUI's {' or '.join(folders)} folder. Reload the list (R) and choose again."
    )


def _existing(path: Path) -> Path:
    if not path.exists():
        raise MissingPart(f"{path} is missing: this copy of the pack came without the tiny cascade's weights.")
    return path


def _diffusers() -> dict[str, Path]:
    """Name -> folder with a model_index.json, under ComfyUI's diffusers folders."""
    found: dict[str, Path] = {}
    for root in map(Path, folder_paths.get_folder_paths("diffusers")):
        for where, folders, files in os.walk(root, followlinks=True):
            if "model_index.json" in files:
                found.setdefault(f"{Path(where).relative_to(root).as_posix()}/", Path(where))
                folders.clear()
    return found
