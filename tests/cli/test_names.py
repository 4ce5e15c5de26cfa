"""Names that no file can have are refused before the work."""

from __future__ import annotations

from pathlib import Path

import pytest

from cascade import tiny
from cascade.cli import main

COMMANDS = {
    "generate": lambda name: ["generate", "a red circle", "-o", f"{name}.png"],
    "reconstruct": lambda name: ["reconstruct", "missing.png", "-o", f"{name}.png"],
    "mix": lambda name: ["mix", "missing.png", "missing.png", "-o", f"{name}.png"],
    "convert": lambda name: ["convert", "missing.safetensors", name],
    "lora convert": lambda name: ["lora", "convert", str(tiny.path("lora")), name],
    "lora merge": lambda name: ["lora", "merge", "missing.safetensors", "missing.safetensors", name],
    "lora extract": lambda name: ["lora", "extract", "missing.safetensors", "missing.safetensors", name],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("name", "reason"), [("n" * 230, "at most 200 bytes"), ("caf\udce9", "Unicode text")])
def test_a_name_is_refused_before_the_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    name: str,
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(COMMANDS[command](name)) == 1
    err = capsys.readouterr().err
    assert reason in err
    assert err.encode()
    assert list(tmp_path.iterdir()) == []
