"""Nodes and page in other languages: complete, of the present texts, and with the same numbers."""

from __future__ import annotations

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
    assert there == set(made)


def test_texts_have_no_signs_of_the_pages_own_language(host: Any) -> None:
    """What it takes for a placeholder, a link or a plural. Our scripts fill in the placeholders of `stableCascade`."""
    english = locales.english(host.classes)
    english["main"].pop("stableCascade")
    assert [text for text in locales.texts(english) if set(text) & set("@{}|")] == []


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
