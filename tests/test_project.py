"""What the project's files promise to the ComfyUI registry and to people's installations."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

import cascade

ROOT = Path(__file__).resolve().parent.parent
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
