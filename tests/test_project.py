"""What the project's files promise to the ComfyUI registry and to people's installations."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from PIL import Image

import cascade

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def requirements() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def test_requirements_leave_the_hosts_packages_alone() -> None:
    assert all(re.fullmatch(r"[A-Za-z_]+>=[0-9.]+", line) for line in requirements()), "lower bounds only"
    assert not [line for line in requirements() if line.startswith("torch")]


def test_one_version() -> None:
    assert f'\nversion = "{cascade.__version__}"\n' in PROJECT


@pytest.mark.parametrize(("key", "shape", "widest"), [("Icon", 1, 400), ("Banner", 21 / 9, 2100)])
def test_the_registry_is_given_images_of_its_shapes(key: str, shape: float, widest: int) -> None:
    [name] = re.findall(rf'^{key} = "https://.*/main/(.+)"$', PROJECT, re.MULTILINE)
    width, height = Image.open(ROOT / name).size
    assert width <= widest
    assert width / height == pytest.approx(shape)


def test_one_ruff() -> None:
    """Two versions of it would format each other's files anew."""
    [in_nox] = re.findall(r'"ruff==(.+?)"', (ROOT / "noxfile.py").read_text(encoding="utf-8"))
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert re.findall(r"ruff-pre-commit\n\s+rev: v(\S+)", hooks) == [in_nox]


def tracked(*options: str) -> set[str]:
    command = ["git", "-c", "core.quotePath=false", "ls-files", "-z", *options]
    return {
        name for name in subprocess.check_output(command, cwd=ROOT, text=True, encoding="utf-8").split("\0") if name
    }


@pytest.mark.skipif(not ((ROOT / ".git").exists() and shutil.which("git")), reason="not a clone")
def test_the_package_has_what_an_installation_needs_and_its_size_is_stated() -> None:
    """The registry packs the tracked files that .comfyignore does not name."""
    packed = tracked() - tracked("-ci", "--exclude-from=.comfyignore")
    assert {name.split("/")[0] for name in packed} & {"tests", "docs", "benchmarks", ".github", ".ci"} == set()
    assert {"__init__.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE"} <= packed
    assert {"web/docs/CascadeDecode.md", "web/docs/CascadeDecode/zh.md", "locales/zh/nodeDefs.json"} <= packed
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name in packed:
            file.write(ROOT / name, name)
    megabytes = len(archive.getvalue()) / 1e6
    assert megabytes < 30
    [stated] = re.findall(r"(\d+) MB", next(line for line in README.splitlines() if "MB to download" in line))
    assert megabytes == pytest.approx(int(stated), abs=1)


def test_the_number_of_nodes_is_stated() -> None:
    files = (ROOT / "nodes").rglob("*.py")
    nodes = [name for file in files for name in re.findall(r'node_id="(\w+)"', file.read_text(encoding="utf-8"))]
    assert re.findall(r"(\d+) nodes", README)[0] == str(len(nodes))


@pytest.mark.parametrize("key", ["PublisherId", "DisplayName", "Icon", "Banner", "requires-comfyui"])
def test_the_registry_is_told_what_it_asks_for(key: str) -> None:
    comfy = PROJECT[PROJECT.index("\n[tool.comfy]") :].split("\n[", 2)[1]
    assert re.search(rf'^{key} = "\S.*"$', comfy, re.MULTILINE)


def test_the_registry_takes_the_name_and_the_description() -> None:
    [name] = re.findall(r'^name = "(.+)"$', PROJECT, re.MULTILINE)
    assert re.fullmatch(r"[a-z][a-z0-9-]{0,98}[a-z0-9]", name)
    assert not re.search(r"--|comfyui", name)
    [description] = re.findall(r'^description = "(.+)"$', PROJECT, re.MULTILINE)
    assert 40 < len(description) < 300


@pytest.mark.parametrize(
    "refused", [r"(?<!\.)\b(eval|exec)\(", r"\bsubprocess\b", r"\bos\.(system|popen)\b", r"\bpip\."]
)
def test_the_nodes_do_nothing_that_the_registry_refuses(refused: str) -> None:
    """Its rules for nodes: no code from text, no other programs, no installing while ComfyUI runs."""
    files = [ROOT / "__init__.py", *(ROOT / "nodes").rglob("*.py"), *(ROOT / "web").rglob("*.js")]
    assert [file.name for file in files if re.search(refused, file.read_text(encoding="utf-8"))] == []
