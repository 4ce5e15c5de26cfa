"""Nodes and page in other languages: complete, of the present texts, and with the same numbers."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest

from tests.nodes import locales

COMMAND = "run `python -m tests.nodes.locales`, translate what it lists in locales/*.json, and run it again"


@pytest.mark.parametrize("language", locales.LANGUAGES)
def test_languages_are_complete(host: Any, language: str) -> None:
    wanted = list(dict.fromkeys(locales.texts(locales.english(host.classes))))
    told = locales.problems(wanted, locales.catalog(language), locales.values(host.classes))
    assert told == [], COMMAND


def test_files_are_made_of_the_present_texts(host: Any) -> None:
    made = locales.files(host.classes)
    assert [path.name for path, text in made.items() if path.read_text(encoding="utf-8") != text] == [], COMMAND
    there = {path for path in locales.FOLDER.glob("*/*") if path.parent.name != "en" or path.stem == "nodeDefs"}
    assert there == {path for path in made if path.is_relative_to(locales.FOLDER)}


def test_texts_have_no_signs_of_the_pages_own_language(host: Any) -> None:
    """What it takes for a placeholder, a link or a plural. Our scripts fill in the placeholders of `stableCascade`."""
    english = locales.english(host.classes)
    english["main"].pop("stableCascade")
    assert [text for text in locales.texts(english) if set(text) & set("@{}|")] == []


def skeleton(page: str) -> dict[str, Any]:
    """What is the same in every language: headings, images, tables, values, numbers."""
    # A translated page has the translated name of an input beside it.
    rows = re.findall(r"^\| `(\w+)`", page, re.MULTILINE)
    numbers = re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?:e-\d+)?", page)
    return {
        "headings": re.findall(r"^(#+) ", page, re.MULTILINE),
        "images": re.findall(r"!\[.*\]\((.*)\)", page),
        "rows": rows,
        "values": Counter(re.findall(r"`[^`\n]+`", page)),
        "numbers": Counter(numbers),
    }


@pytest.mark.parametrize("language", locales.TEMPLATES)
def test_help_says_the_same_in_other_languages(host: Any, language: str) -> None:
    names = locales.translated(locales.english(host.classes)["nodeDefs"], locales.catalog(language))
    for page in locales.HELP.glob("*.md"):
        english = page.read_text(encoding="utf-8")
        other = (locales.HELP / page.stem / f"{language}.md").read_text(encoding="utf-8")
        assert skeleton(other) == skeleton(english), page.stem
        assert other.startswith(f"# {names[page.stem]['display_name']}\n"), page.stem
        assert f"\n{locales.TEMPLATES[language]}" in other, page.stem


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({}, "missing: "),
        ({"Steps: 20. auto: {n} of them.": ""}, "missing: "),
        ({"Steps: 20. auto: {n} of them.": "步数：20。auto：{n} 个。", "Gone.": "没有了。"}, "no longer used: Gone."),
        ({"Steps: 20. auto: {n} of them.": "步数：10。auto：{n} 个。"}, "without 20: "),
        ({"Steps: 20. auto: {n} of them.": "步数：20。auto：{m} 个。"}, "without {n}: "),
        ({"Steps: 20. auto: {n} of them.": "步数：20。自动：{n} 个。"}, "without auto: "),
        ({"Steps: 20. auto: {n} of them.": "Steps: 20. auto: {n} of them."}, "not translated: "),
    ],
)
def test_mistakes_are_found(found: locales.Catalog, told: str) -> None:
    [problem] = locales.problems(["Steps: 20. auto: {n} of them."], found, {"auto"})
    assert problem.startswith(told)


def test_a_right_translation_passes() -> None:
    text = "Steps: 20. auto: {n} of them."
    assert locales.problems([text], {text: "步数：20。auto：{n} 个。"}, {"auto"}) == []
