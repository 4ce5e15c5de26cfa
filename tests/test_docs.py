"""The pages' Python runs: every ```python block of docs/library.md, in order, in one namespace.

Blocks marked ```py need files that are not here, and are only compiled.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from cascade.cli import build_parser

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """All of a page's blocks in a language; one that is written in another way would be passed over."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(found) == len(re.findall(rf"```[ \t]*{language}\b", text)), page.name
    return found


def test_the_library_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    for source in blocks(ROOT / "docs" / "library.md", "python"):
        exec(compile(source, "docs/library.md", "exec"), namespace)
    assert "again" in namespace


def test_every_block_compiles() -> None:
    found = [(page, source) for page in PAGES for source in blocks(page, "python") + blocks(page, "py")]
    assert {page.name for page, _ in found} >= {"README.md", "library.md", "controlnet.md"}
    for page, source in found:
        compile(source, page.name, "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Relative links, images too."""
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))]
    assert [link for link in links if link and "://" not in link and not (page.parent / unquote(link)).exists()] == []


def test_commands_are_spelled_as_the_command_line_wants_them() -> None:
    found = {page.name: re.findall(r"python -m cascade (.*)", "".join(blocks(page, "bash"))) for page in PAGES}
    assert {name for name, commands in found.items() if commands} >= {"README.md", "command-line.md", "lora.md"}
    for command in [command for commands in found.values() for command in commands]:
        build_parser().parse_args(shlex.split(command))


@pytest.mark.parametrize(
    "page", [ROOT / "CONTRIBUTING.md", ROOT / "docs" / "architecture.md"], ids=lambda page: page.name
)
def test_named_files_are_there(page: Path) -> None:
    names = re.findall(
        r"(?<![\w/.])(?:cascade|nodes|tests|web|workflows|docs)/[\w/.-]*\w", page.read_text(encoding="utf-8")
    )
    assert names
    assert [name for name in names if not (ROOT / name).exists()] == []
