"""Settings files: what is read, what is refused, and how the refusal reads."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cascade.errors import InvalidConfig
from cascade.training import SETTINGS, read_config
from cascade.training.config import incompatible_changes, parse_config

GOOD: dict[str, Any] = {
    "task": "stage_a",
    "output": "out",
    "steps": 10,
    "batch_size": 2,
    "stage_a": {"images": {"source": "tiny", "count": 8}, "cache": "cache", "model": {"width": 16}},
}


def parse(changes: dict[str, Any] | None = None, section: dict[str, Any] | None = None) -> Any:
    data = {**GOOD, "stage_a": {**GOOD["stage_a"], **(section or {})}, **(changes or {})}
    return parse_config(data, SETTINGS, where="file.yaml", root="/root")


def test_defaults_and_sections() -> None:
    config = parse({"learning_rate": 1})
    assert (config.learning_rate, config.steps, config.accumulation) == (1.0, 10, 1)
    assert config.settings.images.count == 8
    assert config.settings.images.size == 256


def test_paths_start_at_the_root() -> None:
    config = parse()
    assert config.output == Path("/root/out")
    assert config.settings.cache == Path("/root/cache")
    assert parse({"output": "/elsewhere"}).output == Path("/elsewhere")


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_text(json.dumps(GOOD), encoding="utf-8")
    config = read_config(path, SETTINGS, root=tmp_path, changes={"steps": 5, "stage_a.crop": 32})
    assert (config.steps, config.settings.crop) == (5, 32)


def test_yaml_reads_exponents_without_a_point_as_words(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(json.dumps(GOOD).replace('"steps"', '"learning_rate": 1e-3, "steps"'), encoding="utf-8")
    assert read_config(path, SETTINGS).learning_rate == 1e-3


@pytest.mark.parametrize(
    ("changes", "section", "words"),
    [
        ({"stpes": 3}, {}, ["file.yaml", "'stpes'", "'steps'"]),
        ({}, {"crap": 3}, ["file.yaml: stage_a", "'crap'", "'crop'"]),
        ({}, {"images": {"source": "tiny", "count": 3, "sizes": 3}}, ["stage_a: images", "'sizes'", "'size'"]),
        ({"steps": 0}, {}, ["file.yaml: steps", "greater than or equal to 1", "found 0"]),
        ({"steps": 2.5}, {}, ["steps", "a valid integer", "found 2.5"]),
        ({"steps": True}, {}, ["steps", "a number", "True"]),
        ({"learning_rate": "fast"}, {}, ["learning_rate", "a valid number", "'fast'"]),
        ({"learning_rate": float("nan")}, {}, ["learning_rate", "a finite number", "nan"]),
        ({"ema": 1.5}, {}, ["ema", "less than or equal to 1", "found 1.5"]),
        ({"precision": "int4"}, {}, ["precision", "bfloat16", "'int4'"]),
        ({"device": 3}, {}, ["device", "a valid string", "found 3"]),
        ({}, {"model": 3}, ["stage_a: model", "a valid dictionary", "found 3"]),
        ({}, {"cache": 3}, ["stage_a: cache", "a path", "found 3"]),
        ({"stage_a": 3}, None, ["file.yaml: stage_a", "a valid dictionary", "found 3"]),
        ({"steps": 0, "learning_rate": -1}, {"crop": 3}, ["steps: ", "learning_rate: ", "stage_a: crop: "]),
        ({"task": "stage_d"}, {}, ["'stage_d'", "stage_c"]),
        ({"task": None}, {}, ["known tasks"]),
        ({"settings": {}}, {}, ["'settings'"]),
    ],
)
def test_refusals_name_the_place_and_the_reason(
    changes: dict[str, Any], section: dict[str, Any] | None, words: list[str]
) -> None:
    with pytest.raises(InvalidConfig) as caught:
        parse(changes, section)
    assert [word for word in words if word not in str(caught.value)] == []


def test_what_is_missing_is_named() -> None:
    with pytest.raises(InvalidConfig, match="output: Field required; batch_size: Field required"):
        parse_config({"task": "stage_a", "steps": 1, "stage_a": GOOD["stage_a"]}, SETTINGS, where="f")


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2", "", "just words"])
def test_files_that_are_no_settings(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidConfig, match=r"a\.yaml"):
        read_config(path, SETTINGS)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="cannot be read"):
        read_config(tmp_path / "none.yaml", SETTINGS)


def test_what_may_change_between_a_run_and_its_continuation() -> None:
    before = parse().to_dict()
    assert incompatible_changes(before, parse({"steps": 20, "log_every": 3}).to_dict()) == []
    assert "may only grow" in incompatible_changes(before, parse({"steps": 5}).to_dict())[0]
    assert "learning_rate was 0.001 and is 0.1" in incompatible_changes(before, parse({"learning_rate": 0.1}).to_dict())
    assert incompatible_changes(before, parse({}, {"model": {"width": 32}}).to_dict())
    assert incompatible_changes(before, parse({}, {"model": {"width": 16, "levels": 3}}).to_dict())


def test_a_key_that_the_program_gained_is_no_change() -> None:
    before = parse().to_dict()
    del before["ema"], before["stage_a"]["l1"]
    assert incompatible_changes(before, parse().to_dict()) == []


def test_settings_cannot_be_changed() -> None:
    config = parse()
    with pytest.raises(ValidationError):
        config.steps = 3
    with pytest.raises(ValidationError):
        config.settings.images.size = 64


def test_settings_survive_json() -> None:
    config = parse()
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()


def nested_anchors(name: str) -> str:
    """A kilobyte of YAML that stands for 9 ** 9 values of a key."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    return "\n".join([*lines, f"{name}: *a9", ""])


def nested_merges() -> str:
    """The same through merge keys, which a reader copies while it reads."""
    lines = ["m0: &m0 {a: 1}"]
    lines += [f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 9)}]}}" for i in range(1, 12)]
    return "\n".join([*lines, ""])


PLAIN = """
task: stage_a
output: out
steps: 10
batch_size: 2
stage_a: {images: {source: tiny, count: 8}, cache: cache, model: {width: 16}}
"""
HOSTILE = {
    "anchors": PLAIN.replace("steps: 10\n", nested_anchors("steps")),
    "anchors in a section": PLAIN.replace("{width: 16}", "*a9").replace("stage_a:", nested_anchors("x") + "stage_a:"),
    "merges": nested_merges() + PLAIN,
    "recursion": PLAIN.replace("steps: 10", "steps: &a [*a]"),
    "recursion in a section": PLAIN.replace("{width: 16}", "&m {width: *m}"),
    "depth": PLAIN.replace("steps: 10", "steps: " + "[" * 5000 + "]" * 5000),
    "forty deep": PLAIN.replace("{width: 16}", "{a: " * 40 + "1" + "}" * 40),
    "digits": PLAIN.replace("10", "9" * 5000),
    "hex digits": PLAIN.replace("10", "0x" + "f" * 9000),
    "sexagesimal digits": PLAIN.replace("10", "1:" * 3000 + "1"),
    "a bool that is none": PLAIN + "ema: !!bool maybe\n",
    "an int that is none": PLAIN + 'ema: !!int ""\n',
    "a timestamp that is none": PLAIN + "ema: !!timestamp x\n",
    "a set": PLAIN + "ema: !!set {a, b}\n",
    "code": PLAIN + "ema: !!python/object/apply:os.mkdir [ran]\n",
    "a surrogate": PLAIN.replace("out\n", '"\\ud800"\n'),
    "a NUL": PLAIN.replace("out\n", '"a\\0b"\n'),
    "a list as a key": "? [a, b]\n: 3\n" + PLAIN,
    "a long key": f"? {'k' * 50_000}\n: 3\n" + PLAIN,
    "a long value": PLAIN.replace("10", "k" * 50_000),
    "many mistakes": PLAIN.replace("16}}", "16}, weights: [" + "x," * 9000 + "x]}"),
    "two documents": PLAIN + "---" + PLAIN,
    "a large file": PLAIN + "# " + "x" * 2**17,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_files_are_refused_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidConfig, match=r"a\.yaml") as caught:
        read_config(path, SETTINGS)
    assert len(str(caught.value)) < 1500
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", ["[" * 50_000, '{"steps": ' + "9" * 5000 + "}", '{"a": "\\ud800"}', "\ud800"])
def test_hostile_json_is_refused_in_a_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InvalidConfig, match=r"a\.json"):
        read_config(path, SETTINGS)


def test_dates_are_text(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(PLAIN.replace("output: out", "output: 2026-99-99"), encoding="utf-8")
    assert read_config(path, SETTINGS).output == Path("2026-99-99")


def test_aliases_and_merges_of_moderate_size_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    text = PLAIN.replace("{width: 16}", "{<<: {width: 8}, levels: 3}") + "seed: &s 3\nwarmup: *s\n"
    path.write_text(text, encoding="utf-8")
    config = read_config(path, SETTINGS)
    assert config.settings.model == {"width": 8, "levels": 3}
    assert config.seed == config.warmup == 3


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_pipe_is_no_file_of_settings(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.yaml")
    with pytest.raises(InvalidConfig, match="a file of settings is expected"):
        read_config(tmp_path / "a.yaml", SETTINGS)


def test_a_change_below_a_value_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(PLAIN, encoding="utf-8")
    for changes in ({"steps.x": 3}, {"stage_a.cache.y.z": 3}):
        with pytest.raises(InvalidConfig, match="which has no keys"):
            read_config(path, SETTINGS, changes=changes)
