"""Every node stands in a template, and has a help page that tells its inputs and outputs; the notes on the page."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.nodes.networks import file_name
from tests.nodes.workflows import NAMES, ROOT, nodes_of, specs_of, workflow

PAGES = ROOT / "web" / "docs"
TINY = "tiny cascade (included)"


def our_nodes(host: Any) -> dict[str, Any]:
    return {name: kind for name, kind in host.classes.items() if name.startswith("Cascade")}


def test_every_node_stands_in_a_template(host: Any) -> None:
    used = {node["type"] for name in NAMES for node in nodes_of(workflow(name))}
    assert set(our_nodes(host)) - used == set()


def test_every_node_has_a_page_and_every_page_a_node(host: Any) -> None:
    assert {path.stem for path in PAGES.glob("*.md")} == set(our_nodes(host))


def rows(page: str, title: str) -> list[str]:
    """The first column of the table under a heading."""
    section = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    return re.findall(r"^\| `(\w+)` \|", section[1], re.MULTILINE) if section else []


def test_pages_tell_all_inputs_and_outputs_in_order(host: Any) -> None:
    for name, kind in our_nodes(host).items():
        page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
        assert rows(page, "Inputs") == list(specs_of(kind)), name
        assert rows(page, "Outputs") == list(kind.RETURN_NAMES), name
        assert page.startswith(f"# {kind.GET_SCHEMA().display_name}\n")
        assert "## Example" in page


def test_every_page_has_an_image_of_the_node(host: Any) -> None:
    """`python -m tests.browser.make_images` makes them."""
    for name in our_nodes(host):
        assert f"](images/{name}.jpg)" in (PAGES / f"{name}.md").read_text(encoding="utf-8"), name


def test_the_readme_names_every_node(host: Any) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in our_nodes(host) if f"](web/docs/{name}.md)" not in readme] == []


def test_pages_name_templates_that_are_there(host: Any) -> None:
    for name in our_nodes(host):
        page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
        [line] = re.findall(r"^In the templates: (.*)$", page, re.MULTILINE)
        named = set(NAMES) if line.startswith("all") else set(re.findall(r"\*(.+?)\*", line))
        assert named == {flow for flow in NAMES if name in {node["type"] for node in nodes_of(workflow(flow))}}, name


def test_images_and_links_of_pages_are_there() -> None:
    for path in PAGES.glob("*.md"):
        links = re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8"))
        assert [
            link for link in links if "://" not in link and not (path.parent / link.partition("#")[0]).exists()
        ] == []


def describe(host: Any, kind: str, file: str, *dtype: str) -> Any:
    return host.pack("nodes.host.routes").describe(kind, file, *dtype)


def test_the_page_is_told_what_a_file_is(host: Any) -> None:
    found = describe(host, "stage_c", file_name("stage_c"))
    assert found["kinds"] == ["stage_c"]
    assert found["fits"]
    assert found["bytes"] == (host.models / "diffusion_models" / file_name("stage_c")).stat().st_size
    other = describe(host, "stage_c", file_name("stage_b"))
    assert not other["fits"]
    assert other["folder"] == "diffusion_models"
    assert describe(host, "effnet", file_name("previewer"))["fits"]
    merged = describe(host, "checkpoint", "small_c.safetensors")
    assert merged["fits"]
    assert "stage_c" in merged["kinds"]
    assert describe(host, "stage_c", "small_c.safetensors")["fits"]
    assert not describe(host, "stage_b", "small_c.safetensors")["fits"]


@pytest.mark.parametrize("dtype", ["default", "fp32", "bf16"])
@pytest.mark.parametrize(
    ("kind", "node", "name"),
    [
        ("stage_c", "CascadeLoadStageC", "unet_name"),
        ("stage_b", "CascadeLoadStageB", "unet_name"),
        ("stage_a", "CascadeLoadStageA", "vae_name"),
        ("text_encoder", "CascadeLoadTextEncoder", "clip_name"),
        # Not the image encoder: ComfyUI keeps its first layer in float32, most of so small a network.
        ("controlnet", "CascadeLoadControlNet", "control_net_name"),
    ],
)
def test_the_page_is_told_the_memory_that_is_then_taken(host: Any, kind: str, node: str, name: str, dtype: str) -> None:
    names = specs_of(host.classes[node])
    file = "tiny canny (included)" if kind == "controlnet" else file_name(kind)
    more = {"weight_dtype": dtype} if "weight_dtype" in names else {"blocks": ""} if kind == "controlnet" else {}
    more |= {"previewer": "none"} if "previewer" in names else {}
    [loaded, *_] = host.call(node, **{name: file}, **more)
    taken = sum(value.nbytes for value in getattr(loaded, "patcher", loaded).model.parameters())
    # Stage C keeps a few of its weights in float32.
    assert describe(host, kind, file, dtype)["memory"] == pytest.approx(taken, rel=0.02)


@pytest.mark.parametrize(
    "file",
    [
        "../../secret.safetensors",
        "/etc/passwd",
        "..\\..\\secret.safetensors",
        "sub/../../../secret.safetensors",
        "small_stage_c.safetensors\0",
        "",
        "nothing.safetensors",
    ],
)
@pytest.mark.parametrize("kind", ["stage_c", "checkpoint", "../stage_c", ""])
def test_the_page_is_told_nothing_of_other_files(host: Any, kind: str, file: str) -> None:
    (host.base / "secret.safetensors").write_bytes(b"secret")
    assert describe(host, kind, file) is None


def test_answers_name_no_folder_of_this_machine(host: Any) -> None:
    broken = host.models / "diffusion_models" / "broken.safetensors"
    broken.write_bytes(b"<html>" + bytes(100))
    pickled = host.models / "checkpoints" / "old.ckpt"
    pickled.write_bytes(b"\x80\x02")
    try:
        answers = [
            describe(host, "stage_c", "broken.safetensors"),
            describe(host, "checkpoint", "old.ckpt"),
            describe(host, "stage_c", file_name("stage_c")),
        ]
    finally:
        broken.unlink()
        pickled.unlink()
    assert str(host.base) not in json.dumps(answers)
    assert "problem" in answers[0]
    assert "when it is loaded" in answers[1]["problem"]
