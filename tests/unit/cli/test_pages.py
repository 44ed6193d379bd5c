"""Commands that print lists: a limit, and how to get the page that follows."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from streams import cli
from streams.settings import load_settings
from streams.store import open_collections
from tests.unit.serving.stored import step, window


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder with 25 streams of one window and one incident each, and a last one without an incident."""
    monkeypatch.chdir(tmp_path)

    async def fill() -> None:
        async with open_collections(load_settings(state=tmp_path)) as collections:
            await collections.bind_default("m")
            await collections.switch("m")
            async with collections.default_collection() as store:
                steps = [[step(f"i{n:02}", n * 1000 + 1000, 0, "opened")] for n in range(25)]
                await store.upsert([window(n, stream=f"s{n:02}", steps=steps[n]) for n in range(25)])
                await store.upsert([window(30, stream="s30")])

    asyncio.run(fill())
    return tmp_path


def run(state: Path, line: str) -> Any:
    result = CliRunner().invoke(cli.app, [*line.split(), "--state", str(state)])
    assert result.exit_code == 0, result.output
    return result


def next_of(result: Any) -> str | None:
    found = re.search(r"the same command with --cursor (\S+)", result.stderr)
    return None if found is None else found[1]


@pytest.mark.parametrize("command", ["streams", "incidents", f"search --window {window(30).id}"])
def test_pages_of_a_list_are_the_whole_list(state: Path, command: str) -> None:
    whole = run(state, f"{command} --limit 1000 --json")
    assert next_of(whole) is None
    rows, cursor = [], None
    for _ in range(10):
        page = run(state, f"{command} --limit 10 --json" + ("" if cursor is None else f" --cursor {cursor}"))
        rows += json.loads(page.stdout)
        cursor = next_of(page)
        if cursor is None:
            break
    assert rows == json.loads(whole.stdout)
    assert len(rows) >= 25


def test_a_table_ends_with_the_way_to_the_next_page(state: Path) -> None:
    result = run(state, "streams --limit 3")
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == ["s00", "s01", "s02"]
    assert next_of(result) is not None
    assert "s03" in run(state, f"streams --limit 1 --cursor {next_of(result)}").stdout


def test_labels_are_compared_with_all_incidents(state: Path) -> None:
    labels = state / "labels.csv"
    labels.write_text("stream,start,end,kind,modalities\ns00,1970-01-01T00:00:00Z,1970-01-01T00:00:09Z,leak,sensor\n")
    result = run(state, f"incidents --against {labels} --limit 2 --json")
    assert len(json.loads(result.stdout)["incidents"]) == 25
    assert next_of(result) is None
