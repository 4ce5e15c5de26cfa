"""The texts of nodes and page in other languages. `python -m tests.nodes.locales` writes what ComfyUI reads.

English texts are in the nodes' schemas, and in locales/en/main.json, commands.json and settings.json. Translations are
in locales/<language>.json: the English text, and the same in that language. All other files in locales are made of
these. Help pages are in web/docs/<node>/<language>.md. COMFYUI_PATH says where ComfyUI lies.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.nodes.hosting import ROOT, boot
from tests.nodes.workflows import choices_of, options_of, specs_of

FOLDER = ROOT / "locales"
LANGUAGES = ("zh", "ja", "ko", "de", "fr", "es")
HELP = ROOT / "web" / "docs"
TEMPLATES = {"zh": "所在模板："}
"""The languages of help pages, and what begins the line that names a node's templates."""
PAGE = ("main", "commands", "settings")
"""The page's files, whose English is written by hand."""
LITERAL = re.compile(r"(?<!\w)\d+(?:\.\d+)?(?:e-?\d+)?|\{\w+\}|\w+(?:/\w+)+/?|\[\w+\]|\w+\.png|\w+\.txt", re.ASCII)
"""What is the same in every language: numbers, placeholders, folders, files."""

Catalog = dict[str, str]


def english(classes: dict[str, Any]) -> dict[str, Any]:
    """file -> its texts in English, as ComfyUI's page looks them up."""
    nodes = {name: _node(kind) for name, kind in sorted(classes.items()) if name.startswith("Cascade")}
    return {**{name: json.loads(_path("en", name).read_text(encoding="utf-8")) for name in PAGE}, "nodeDefs": nodes}


def _node(kind: type[Any]) -> dict[str, Any]:
    tips = zip(kind.RETURN_NAMES, kind.OUTPUT_TOOLTIPS, strict=True)
    return {
        "display_name": kind.GET_SCHEMA().display_name,
        "description": kind.DESCRIPTION,
        "inputs": {
            name: {"name": name, "tooltip": options_of(spec)["tooltip"]} for name, spec in specs_of(kind).items()
        },
        "outputs": {str(number): {"name": name, "tooltip": tip} for number, (name, tip) in enumerate(tips)},
    }


def texts(tree: Any) -> Iterator[str]:
    """All texts, in order; some more than once."""
    if isinstance(tree, str):
        yield tree
    else:
        for each in tree.values():
            yield from texts(each)


def values(classes: dict[str, Any]) -> set[str]:
    """The choices of all nodes, which the page shows in English."""
    specs = [spec for name, kind in classes.items() if name.startswith("Cascade") for spec in specs_of(kind).values()]
    return {choice for spec in specs for choice in choices_of(spec) or () if isinstance(choice, str)}


def catalog(language: str) -> Catalog:
    path = FOLDER / f"{language}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def problems(wanted: list[str], found: Catalog, choices: set[str]) -> list[str]:
    """What is wrong with a language."""
    told = [f"missing: {text}" for text in wanted if not found.get(text)]
    told += [f"no longer used: {text}" for text in found if text not in wanted]
    for text, translation in found.items():
        if lost := literals(text, choices) - literals(translation or text, choices):
            told.append(f"without {', '.join(lost)}: {text} -> {translation}")
        if translation == text and len(text.split()) > 3:
            told.append(f"not translated: {text}")
    return told


def literals(text: str, choices: set[str]) -> Counter[str]:
    """What a translation has too. Choices count where the text explains them: `auto: ...`."""
    explained = [choice for choice in choices if re.search(rf"(?<!\w){re.escape(choice)}\s?[:：]", text)]
    return Counter([*LITERAL.findall(text), *explained])


def translated(tree: Any, found: Catalog) -> Any:
    """A tree in another language; English where a translation is missing."""
    if isinstance(tree, str):
        return found.get(tree) or tree
    return {name: translated(each, found) for name, each in tree.items()}


def files(classes: dict[str, Any]) -> dict[Path, str]:
    """Everything that is made, as it should be."""
    source = english(classes)
    made = {_path("en", "nodeDefs"): source["nodeDefs"]}
    for language in LANGUAGES:
        made |= {_path(language, name): translated(tree, catalog(language)) for name, tree in source.items()}
    return {path: written(tree) for path, tree in made.items()} | dict(help_pages())


def help_pages() -> Iterator[tuple[Path, str]]:
    """Help pages in other languages: translated by hand, but for the templates that the English page names."""
    for english_page in sorted(HELP.glob("*.md")):
        named = re.search(r"^In the templates: (.*)$", english_page.read_text(encoding="utf-8"), re.MULTILINE)
        for language, beginning in TEMPLATES.items():
            page = HELP / english_page.stem / f"{language}.md"
            if page.exists() and named:
                text = page.read_text(encoding="utf-8")
                [there] = re.findall(rf"^{beginning}.*$", text, re.MULTILINE)
                yield page, text.replace(there, f"{beginning}{named[1]}")


def written(tree: Any) -> str:
    return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"


def _path(language: str, name: str) -> Path:
    return FOLDER / language / f"{name}.json"


def main() -> int:
    host = os.environ.get("COMFYUI_PATH")
    if not host:
        print("error: COMFYUI_PATH must name the folder of a ComfyUI", file=sys.stderr)
        return 1
    classes = boot(host).classes
    wanted = list(dict.fromkeys(texts(english(classes))))
    for language in LANGUAGES:
        found = catalog(language)
        # In the order of the nodes, with empty places for what is missing; what is no longer used comes last.
        ordered = {text: found.get(text, "") for text in wanted} | found
        (FOLDER / f"{language}.json").write_text(written(ordered), encoding="utf-8")
    for path, text in files(classes).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    told = {language: problems(wanted, catalog(language), values(classes)) for language in LANGUAGES}
    print("\n".join(f"{language}: {each}" for language in LANGUAGES for each in told[language]))
    return int(any(told.values()))


if __name__ == "__main__":
    sys.exit(main())
