"""`sensorium train`: windows of a recording and of topics, the model folder that comes out, and how mistakes end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

import models
from streams.cli import app
from streams.cli.common import CommandError
from streams.settings import Settings, WindowSettings
from streams.sources import dataset
from streams.sources.dataset import WindowSelection, windows_of_recording, windows_of_topics
from streams.sources.recording import Recording


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state=tmp_path / "state")


def run(*arguments: object):
    return CliRunner().invoke(app, ["train", *map(str, arguments)], catch_exceptions=True)


async def test_a_recording_becomes_windows_by_time_that_hold_its_events(
    plant_recording: Path, settings: Settings
) -> None:
    found = await windows_of_recording(plant_recording, settings, WindowSelection())
    counts = Recording(plant_recording).counts()
    assert found.events == sum(counts.values())
    assert not found.refused
    windows = [w.window for w in found.windows]
    assert sum(len(w.readings) for w in windows) == counts["sensor"]
    assert sum(len(w.clips) for w in windows) == counts["audio"]
    assert [w.start_ms for w in windows] == sorted(w.start_ms for w in windows)
    assert all(w.start_ms % 10_000 == 0 and w.start_ms <= t < w.end_ms for w in windows for t, _ in w.readings)
    assert len({(w.stream, w.window.start_ms) for w in found.windows}) == len(found.windows)


async def test_overlapping_windows_hold_an_event_as_often_as_the_services_do(
    plant_recording: Path, tmp_path: Path
) -> None:
    halves = Settings(state=tmp_path, window=WindowSettings(size_ms=10_000, hop_ms=5_000))
    found = await windows_of_recording(plant_recording, halves, WindowSelection())
    assert sum(len(w.window.readings) for w in found.windows) == 2 * Recording(plant_recording).counts()["sensor"]


async def test_a_time_range_a_stream_and_a_number_of_windows_are_kept_to(
    plant_recording: Path, settings: Settings
) -> None:
    recording = Recording(plant_recording)
    middle = recording.start_ms // 10_000 * 10_000 + 300_000
    stream = recording.streams[0]
    some = await windows_of_recording(plant_recording, settings, WindowSelection(middle, middle + 100_000, stream))
    assert [w.window.start_ms for w in some.windows] == list(range(middle, middle + 100_000, 10_000))
    assert {w.stream for w in some.windows} == {stream}
    few = await windows_of_recording(plant_recording, settings, WindowSelection(most=7))
    whole = await windows_of_recording(plant_recording, settings, WindowSelection())
    assert [(w.stream, w.window.start_ms) for w in few.windows] == [
        (w.stream, w.window.start_ms) for w in whole.windows[-7:]
    ]


async def test_topics_give_the_windows_of_the_recording_in_any_order_and_refuse_what_the_service_refuses(
    plant_recording: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = list(Recording(plant_recording).messages())
    records = [
        SimpleNamespace(topic=m.topic, key=m.key, value=m.value, headers=m.headers, timestamp=m.time_ms)
        for m in messages[::-1] + messages[:50]  # out of order, and some twice
    ]
    records.append(SimpleNamespace(topic="captions", key=b"m", value=b"\xff\xfe", headers=[], timestamp=5))

    async def read_all(*_: object) -> AsyncIterator[SimpleNamespace]:
        for record in records:
            yield record

    monkeypatch.setattr(dataset, "read_all", read_all)
    found = await windows_of_topics(settings, "nowhere:9", WindowSelection())
    expected = await windows_of_recording(plant_recording, settings, WindowSelection())
    assert found.refused == {"not_utf8": 1}
    assert len(found.windows) == len(expected.windows)
    for one, two in zip(found.windows, expected.windows, strict=True):
        assert (one.stream, one.window.readings, one.window.captions) == (
            two.stream,
            two.window.readings,
            two.window.captions,
        )
        assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(one.window.clips, two.window.clips, strict=True))


def test_training_from_scratch_ends_in_a_folder_that_a_worker_loads(plant_recording: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    ran = run(
        "--recording",
        plant_recording,
        "--out",
        out,
        "--init",
        "scratch",
        "--preset",
        "tiny",
        "--epochs",
        1,
        "--windows",
        100,
        "--json",
    )
    assert ran.exit_code == 0, ran.output
    shown = json.loads(ran.stdout)
    model = models.load(out)
    assert model.version == shown["version"]
    assert shown["windows"] == 100
    assert 0 < shown["training"] < 80
    assert {"model.safetensors", "config.json", "calibration.safetensors", "card.md"} == {p.name for p in out.iterdir()}
    assert "sensorium train --init scratch --seed 0" in (out / "card.md").read_text()
    assert isinstance(run("--recording", plant_recording, "--out", out).exception, CommandError)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "--recording DIR, or --topics"),
        (("--recording", ".", "--topics"), "--recording DIR, or --topics"),
        (("--recording", "REC", "--init", "scratch", "--preset", "huge"), "tiny"),
        (("--recording", "REC", "--init", "nowhere"), "no model in nowhere"),
        (("--recording", "REC", "--clap", "nowhere"), "nowhere"),
        (("--recording", "REC", "--stream", "other", "--init", "scratch", "--preset", "tiny"), "longer recording"),
        (("--recording", "REC", "--resume", "--init", "scratch", "--preset", "tiny"), "without --resume"),
    ],
)
def test_a_mistake_is_one_line_that_names_what_mends_it(
    arguments: tuple[str, ...], expected: str, plant_recording: Path, tmp_path: Path
) -> None:
    given = [str(plant_recording) if a == "REC" else a for a in arguments]
    ran = run(*given, "--out", tmp_path / "out")
    assert isinstance(ran.exception, (CommandError, models.ModelError))
    assert expected in str(ran.exception)
    assert len(str(ran.exception).splitlines()) == 1


def test_a_folder_with_something_else_in_it_is_not_written_into(plant_recording: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    ran = run("--recording", plant_recording, "--out", tmp_path)
    assert isinstance(ran.exception, CommandError)
    assert "not empty" in str(ran.exception)
