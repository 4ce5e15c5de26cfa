"""What the page gets from the server: templates, help, our scripts, and what a chosen file is."""

from __future__ import annotations

import json
from urllib.parse import quote, urlencode

import pytest

from tests.nodes.networks import file_name
from tests.nodes.workflows import FOLDER, NAMES, ROOT, workflow
from tests.server.serving import PACK, Server


def test_templates_are_listed_and_served(server: Server) -> None:
    assert sorted(server.json("/workflow_templates")[PACK]) == NAMES
    for name in NAMES:
        assert server.json(f"/api/workflow_templates/{PACK}/{quote(name)}.json") == workflow(name)
        image = FOLDER / f"{name}.jpg"
        if image.exists():
            assert server.get(f"/api/workflow_templates/{PACK}/{quote(image.name)}") == (200, image.read_bytes())


def test_help_pages_and_scripts_are_served(server: Server) -> None:
    scripts = [path for path in server.json("/extensions") if path.startswith(f"/extensions/{PACK}/")]
    assert sorted(scripts) == sorted(
        f"/extensions/{PACK}/js/{path.name}" for path in (ROOT / "web" / "js").glob("*.js")
    )
    nodes = [name for name in server.json("/object_info") if name.startswith("Cascade")]
    assert len(nodes) == len(list((ROOT / "web" / "docs").glob("*.md")))
    images = [path.name for path in (ROOT / "web" / "docs" / "images").glob("*.jpg")]
    help_files = [*(f"{name}.md" for name in nodes), *(f"images/{name}" for name in images)]
    for path in [*scripts, *(f"/extensions/{PACK}/docs/{name}" for name in help_files)]:
        assert server.get(path)[0] == 200, path


def asked(server: Server, prefix: str = "", **query: str) -> tuple[int, dict[str, object]]:
    status, body = server.get(f"{prefix}/stable_cascade/inspect?{urlencode(query)}")
    return status, json.loads(body)


@pytest.mark.parametrize("prefix", ["", "/api"])
def test_what_a_file_is(server: Server, prefix: str) -> None:
    status, found = asked(server, prefix, kind="stage_c", file=file_name("stage_c"))
    assert (status, found["fits"]) == (200, True)
    assert str(found["variant"]).startswith("Stage C")


@pytest.mark.parametrize("kind", ["stage_c", "checkpoint", "stage_a", "nothing", "../..", ""])
@pytest.mark.parametrize(
    "file",
    ["../log.txt", "../../log.txt", "/etc/passwd", "%2e%2e/log.txt", "..\\log.txt", "a\0b", "x" * 5000, ".", ""],
)
def test_no_other_file_is_looked_at(server: Server, kind: str, file: str) -> None:
    status, found = asked(server, kind=kind, file=file)
    assert status == 404
    assert list(found) == ["problem"]


def test_questions_without_words_are_answered(server: Server) -> None:
    assert asked(server)[0] == 404
    assert server.post("/stable_cascade/inspect", {})[0] == 405
