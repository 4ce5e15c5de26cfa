"""What the project's files promise to the ComfyUI registry and to people's installations."""

from __future__ import annotations

import re
from pathlib import Path

import cascade

ROOT = Path(__file__).resolve().parent.parent


def requirements() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def test_requirements_leave_the_hosts_packages_alone() -> None:
    assert all(re.fullmatch(r"[A-Za-z_]+>=[0-9.]+", line) for line in requirements()), "lower bounds only"
    assert not [line for line in requirements() if line.startswith("torch")]


def test_one_version() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nversion = "{cascade.__version__}"\n' in project
