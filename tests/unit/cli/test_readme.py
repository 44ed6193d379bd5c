"""The README agrees with the code: its tests exist, its settings are complete, its commands are valid."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer

from streams import cli
from streams.events.json_codec import decode_caption, decode_readings
from streams.events.types import Reason
from streams.settings import Settings

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "README.md").read_text()
TOPIC_TIME_MS = 1_767_268_800_000


def configuration_table() -> str:
    """The table of the README's section Configuration, made from the settings."""
    from streams.settings_report import settings_in_force

    lines = ["| setting | default | meaning |", "| --- | --- | --- |"]
    for row in settings_in_force(Settings.model_construct(**{n: f.default for n, f in Settings.model_fields.items()})):
        default = "" if row.value in ("-", "") else f"`{row.value}`"
        lines.append(f"| `{row.name}` | {default} | {row.meaning.replace('<', '&lt;')} |")
    return "\n".join(lines)


def blocks(language: str) -> list[str]:
    """The README's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def command_lines() -> list[list[str]]:
    """Every `sensorium ...` in the shell blocks and the table of commands, as words."""
    found = []
    for text in [*blocks("sh"), *re.findall(r"^\| `(sensorium [^`]+)` \|", README, re.MULTILINE)]:
        for line in text.splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            while words and "=" in words[0]:
                words.pop(0)
            if words[:1] == ["sensorium"]:
                for stop in ("|", ">", "&"):
                    words = words[: words.index(stop)] if stop in words else words
                found.append(words[1:])
    return found


def test_the_table_of_settings_agrees_with_the_settings() -> None:
    assert configuration_table() in README, "make it anew with tests.unit.cli.test_readme.configuration_table()"


def test_every_test_that_the_readme_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", README)
    assert len(named) > 15
    for path, name in named:
        assert re.search(rf"def {name}\(", (ROOT / path).read_text()), f"{path}::{name}"


def test_every_file_and_target_that_the_readme_names_exists() -> None:
    for path in re.findall(r"`((?:streams|models|tests|deploy)/[\w/.]*)`", README):
        assert (ROOT / path).exists(), path
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z]+)`", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("words", command_lines(), ids=" ".join)
def test_the_commands_of_the_readme_are_valid(words: list[str]) -> None:
    command: Any = typer.main.get_command(cli.app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context("sensorium", words)


def test_every_command_is_in_the_readme() -> None:
    named = {words[0] for words in command_lines()}
    assert named >= set(typer.main.get_command(cli.app).commands) - {"train", "eval", "model"}  # type: ignore[attr-defined]


def test_every_reason_code_is_in_the_readme() -> None:
    assert [reason for reason in Reason if f"`{reason}`" not in README] == []


def test_every_metric_is_in_the_readme() -> None:
    from streams.metrics import Metrics

    names = {metric.name for metric in Metrics().registry.collect() if metric.name.startswith("sensorium_")}
    assert {name for name in names if f"`{name}" not in README} == set()


def test_the_messages_of_the_readme_can_be_decoded() -> None:
    values = [block.strip().encode() for block in blocks("json")]
    readings = [value for value in values if b'"values"' in value or b'"bn"' in value]
    captions = [value for value in values if b'"text"' in value and b'"steps"' not in value and b'"data"' not in value]
    assert len(readings) >= 3
    assert captions
    for value in readings:
        headers = (("content-type", b"application/senml+json"),) if b'"bn"' in value else ()
        assert decode_readings(value, headers, TOPIC_TIME_MS)
    for value in captions:
        assert decode_caption(value, (), TOPIC_TIME_MS).text


def test_the_outputs_of_the_readme_are_what_is_written() -> None:
    from streams.events.types import CloudEvent, IncidentEvent, WindowRecord

    values = [block.strip().encode() for block in blocks("json")]
    [window] = [value for value in values if b'"revision"' in value]
    [event] = [value for value in values if b'"specversion"' in value]
    msgspec.json.decode(window, type=WindowRecord, strict=True)
    incident = msgspec.convert(msgspec.json.decode(event, type=CloudEvent).data, IncidentEvent)
    assert set(msgspec.json.decode(window)) <= set(WindowRecord.__struct_fields__)
    assert set(msgspec.json.decode(event)["data"]) <= set(IncidentEvent.__struct_fields__)
    assert incident.kind == "opened"
