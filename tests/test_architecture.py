"""Who may import whom.

The tables below are the architecture: folders of `cascade/` are the keys of `ROOMS`, and a room imports only from the
rooms it names (and from `errors` and `files`). Every import counts, also one inside a function or for type checking
only.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "files": set(),
    "models": set(),
    "diffusion": set(),
    "images": set(),
    "conditioning": {"models"},
    "checkpoints": {"models"},
    "adapters": {"models", "checkpoints"},
    "editing": {"models", "diffusion", "images", "conditioning"},
}
ROOMS["pipelines"] = {"models", "diffusion", "images", "conditioning", "checkpoints", "adapters", "editing"}
ROOMS["training"] = {*ROOMS["pipelines"], "pipelines"}
ROOMS["tiny"] = {*ROOMS["training"], "training"}
ROOMS["cli"] = set(ROOMS)
OPEN_TO_ALL = {"errors", "files"}
# Only these packages from outside the standard library, where a room is kept that bare.
BARE_ROOMS = {"models": {"torch", "typing_extensions"}, "diffusion": {"torch"}, "errors": set(), "files": set()}

HOST = {
    "comfy", "comfy_api", "comfy_config", "comfy_execution", "comfy_extras", "comfyui_version", "execution",
    "folder_paths", "latent_preview", "node_helpers", "nodes", "server", "app", "api_server",
}  # fmt: skip
HOST_FOR_CAPABILITIES = {"comfy_api"}
HOST_FOR_TYPES = {"comfy_api"}

Target = tuple[str, ...]


def imports(tree: ast.AST, package: Target) -> Iterator[tuple[int, bool, Target | None]]:
    """(line, relative or not, imported path from the repository's root); None for one that leaves the repository."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, False, tuple(alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            base = tuple(node.module.split(".")) if node.module else ()
            climb = max(node.level - 1, 0)
            for alias in node.names:
                if node.level and climb > len(package):
                    yield node.lineno, True, None
                else:
                    start = package[: len(package) - climb] if node.level else ()
                    yield node.lineno, bool(node.level), (*start, *base, alias.name)


def wrong_in_library(room: str, relative: bool, target: Target) -> str | None:
    """What is wrong with an import of `target` in a room of `cascade/`; None when it is allowed."""
    top = target[0]
    if not relative:
        if top == "cascade":
            return "imports cascade by its absolute name"
        if top in HOST:
            return f"the library imports the host's {top}"
        bare = BARE_ROOMS.get(room)
        if bare is not None and top not in bare and top not in sys.stdlib_module_names:
            return f"{room} imports {top}"
        return None
    if top != "cascade":
        return f"the library imports {'.'.join(target)}"
    other = target[1] if len(target) > 1 else ""
    if other in ROOMS and other != room and other not in ROOMS[room] | OPEN_TO_ALL:
        return f"{room} imports {other}"
    return None


def wrong_in_nodes(part: str, relative: bool, target: Target) -> str | None:
    """The same for `nodes/`, where `part` is a capability, `types` or `host`."""
    top = target[0]
    if not relative:
        if top in {"cascade", "nodes"} and part != "host":
            return f"imports {top} by its absolute name"
        if top == "cascade":
            return "imports cascade by its absolute name"
        allowed = HOST if part == "host" else HOST_FOR_TYPES if part == "types" else HOST_FOR_CAPABILITIES
        return f"{part} imports the host's {top}" if top in HOST - allowed else None
    if top == "cascade":
        return None
    if top != "nodes":
        return f"{part} imports {'.'.join(target)}"
    other = target[1] if len(target) > 1 else ""
    allowed = {part, "types"} if part in {"types", "host"} else {part, "types", "host"}
    return None if other in allowed else f"{part} imports nodes.{other}"


def prints(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield node.lineno


def part_of(path: Path) -> str:
    """cascade/models/stage_c.py -> models; nodes/loaders.py -> loaders; cascade/__init__.py -> ''."""
    name = path.parts[1].removesuffix(".py")
    return {"__init__": "", "__main__": "cli"}.get(name, name)


def violations(root: Path) -> list[str]:
    """Every broken rule under `root`, as `file:line: what`."""
    found = []
    for path in sorted([*root.glob("cascade/**/*.py"), *root.glob("nodes/**/*.py")]):
        relative_path = path.relative_to(root)
        half, part = relative_path.parts[0], part_of(relative_path)
        if half == "cascade" and part and part not in ROOMS:
            found.append(f"{relative_path}:1: {part} is no room of the table")
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for line, relative, target in imports(tree, relative_path.parent.parts):
            if target is None:
                wrong = "a relative import leaves the repository"
            elif half == "cascade":
                wrong = wrong_in_library(part or "cli", relative, target)
            else:
                wrong = wrong_in_nodes(part, relative, target) if part else None
            if wrong:
                found.append(f"{relative_path}:{line}: {wrong}")
        if half == "nodes" or part != "cli":
            found += [f"{relative_path}:{line}: print outside the command line" for line in prints(tree)]
    return found


def test_the_repository_keeps_the_rules() -> None:
    assert violations(ROOT) == []


def test_the_rooms_are_those_of_the_table() -> None:
    folders = {p.name for p in (ROOT / "cascade").iterdir() if p.is_dir() and list(p.glob("*.py"))}
    files = {p.stem for p in (ROOT / "cascade").glob("*.py")} - {"__init__", "__main__"}
    assert folders | files == set(ROOMS)


def test_the_map_names_every_room() -> None:
    docstring = ast.get_docstring(ast.parse((ROOT / "cascade" / "__init__.py").read_text(encoding="utf-8"))) or ""
    assert [room for room in ROOMS if f"``{room}``" not in docstring] == []


CLEAN = {
    "cascade/__init__.py": '"""Map."""\n__version__ = "1"\n',
    "cascade/__main__.py": "from .cli import main\nprint(main())\n",
    "cascade/errors.py": "class CascadeError(Exception):\n    pass\n",
    "cascade/models/__init__.py": "from .stage_c import StageC\n",
    "cascade/models/stage_c.py": "import math\n\nimport torch\n\nfrom ..errors import CascadeError\n\nStageC = 1\n",
    "cascade/diffusion/__init__.py": "import torch.nn.functional as F\n",
    "cascade/checkpoints/layouts/comfy.py": "import numpy\n\nfrom ...models import StageC\nfrom ... import errors\n",
    "cascade/pipelines/generate.py": "from .. import __version__, diffusion\nfrom ..models.stage_c import StageC\n",
    "cascade/cli/__init__.py": "from ..pipelines import generate\nmain = print\n",
    "nodes/__init__.py": "from . import loaders, sampling\n",
    "nodes/types.py": "from comfy_api.latest import io\n",
    "nodes/loaders.py": "from comfy_api.latest import io\n\nfrom ..cascade.models import StageC\nfrom . import host\n",
    "nodes/sampling.py": "from .types import CATEGORY\n",
    "nodes/host/folders.py": "import comfy.sd\nimport folder_paths\nimport nodes\n\nfrom ...cascade import errors\n",
}

PLANTED = [
    ("cascade/models/bad.py", "from ..diffusion import sample", "models imports diffusion"),
    ("cascade/models/bad.py", "from .. import diffusion", "models imports diffusion"),
    ("cascade/models/deep/bad.py", "from ...diffusion.samplers import ddpm", "models imports diffusion"),
    ("cascade/models/bad.py", "import numpy as np", "models imports numpy"),
    ("cascade/diffusion/bad.py", "from ..models.stage_c import StageC", "diffusion imports models"),
    ("cascade/images/bad.py", "def f():\n    from ..cli import main", "images imports cli"),
    ("cascade/checkpoints/bad.py", "if 0:\n    from ..conditioning import text", "checkpoints imports conditioning"),
    ("cascade/pipelines/bad.py", "from ..training import loop", "pipelines imports training"),
    ("cascade/training/bad.py", "def f():\n    from ..tiny import drawing", "training imports tiny"),
    ("cascade/errors.py", "from .models import StageC", "errors imports models"),
    ("cascade/pipelines/bad.py", "from cascade.models import StageC", "absolute name"),
    ("cascade/pipelines/bad.py", "import cascade", "absolute name"),
    ("cascade/pipelines/bad.py", "import comfy.utils", "host's comfy"),
    ("cascade/cli/bad.py", "from folder_paths import models_dir", "host's folder_paths"),
    ("cascade/cli/bad.py", "from ...nodes import loaders", "library imports nodes.loaders"),
    ("cascade/cli/bad.py", "from ...... import anything", "leaves the repository"),
    ("cascade/images/bad.py", "def f():\n    print(1)", "print outside"),
    ("cascade/helpers.py", "x = 1", "no room"),
    ("cascade/helpers/thing.py", "x = 1", "no room"),
    ("nodes/bad.py", "from .loaders import NODES", "bad imports nodes.loaders"),
    ("nodes/bad.py", "from . import loaders", "bad imports nodes.loaders"),
    ("nodes/bad/inner.py", "from ..sampling import NODES", "bad imports nodes.sampling"),
    ("nodes/bad.py", "import comfy.samplers", "host's comfy"),
    ("nodes/bad.py", "import folder_paths", "host's folder_paths"),
    ("nodes/bad.py", "from cascade.models import StageC", "absolute name"),
    ("nodes/bad.py", "from ..tests import support", "bad imports tests.support"),
    ("nodes/host/bad.py", "from ..loaders import NODES", "host imports nodes.loaders"),
    ("nodes/host/bad.py", "import cascade", "absolute name"),
    ("nodes/types.py", "from .host import folders", "types imports nodes.host"),
    ("nodes/bad.py", "print(1)", "print outside"),
]


def plant(root: Path, files: dict[str, str]) -> None:
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")


def test_a_clean_tree_has_no_violations(tmp_path: Path) -> None:
    plant(tmp_path, CLEAN)
    assert violations(tmp_path) == []


@pytest.mark.parametrize(("name", "source", "expected"), PLANTED)
def test_a_planted_violation_is_found(tmp_path: Path, name: str, source: str, expected: str) -> None:
    plant(tmp_path, CLEAN | {name: source})
    found = violations(tmp_path)
    assert len(found) == 1, found
    assert found[0].startswith(name)
    assert expected in found[0]
