"""The simulated plant: deterministic by its seed, and its faults show where they are labelled."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from streams.cli import app
from streams.events.types import CLIP_RATE_HZ
from streams.sources.plant_recording import write_recording
from streams.sources.recording import Message, Recording, RecordingError
from streams.sources.simulator import MACHINES, Fault, Plant, machines, plan_faults

BASE = 1_767_225_600_000
MINUTE = 60_000


def _readings(plant: Plant, stream: str, channel: str, to_ms: int) -> list[float]:
    return [
        msgspec.json.decode(m.value)["values"][channel]
        for m in plant.messages(BASE, to_ms)
        if m.topic == "sensor-readings" and m.key == stream.encode()
    ]


def _clips(plant: Plant, stream: str, from_ms: int, to_ms: int) -> list[bytes]:
    messages = plant.messages(from_ms, to_ms)
    return [m.value for m in messages if m.topic == "audio-clips" and m.key == stream.encode()]


def _notes(plant: Plant, stream: str) -> list[str]:
    messages = plant.messages(BASE, BASE + 4 * MINUTE)
    return [
        msgspec.json.decode(m.value)["text"] for m in messages if m.topic == "captions" and m.key == stream.encode()
    ]


def test_every_machine_has_readings_sound_and_notes() -> None:
    counts = Counter((m.key.decode(), m.topic) for m in Plant().messages(BASE, BASE + 2 * MINUTE))
    assert counts == {
        (machine.stream, topic): n
        for machine in MACHINES
        for topic, n in (("sensor-readings", 120), ("audio-clips", 12), ("captions", 6))
    }


def test_messages_come_in_order_of_event_time() -> None:
    times = [m.time_ms for m in Plant(streams=20).messages(BASE, BASE + MINUTE)]
    assert times == sorted(times)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    first, again, other = (list(Plant(seed=seed).messages(BASE, BASE + MINUTE)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_a_run_in_pieces_is_the_run_in_one() -> None:
    whole = list(Plant().messages(BASE, BASE + MINUTE))
    plant, edges = Plant(), [BASE, BASE + 1, BASE + 13_337, BASE + 13_338, BASE + 40_000, BASE + MINUTE]
    pieces = [m for a, b in itertools.pairwise(edges) for m in plant.messages(a, b)]
    assert pieces == whole


def test_every_machine_of_a_large_plant_has_its_own_name() -> None:
    names = [machine.stream for machine in machines(300)]
    assert len(set(names)) == 300
    assert plan_faults(BASE, BASE + MINUTE, streams=300)


def test_a_plant_without_machines_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one machine"):
        Plant(streams=0)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.stream)
def test_every_channel_leaves_its_normal_range_in_a_sensor_fault(machine: object) -> None:
    number = MACHINES.index(machine)  # type: ignore[arg-type]
    stream = MACHINES[number].stream
    plant = Plant(faults=[Fault(stream, BASE + 8 * MINUTE, BASE + 9 * MINUTE, "sensor")])
    for channel in MACHINES[number].channels:
        values = np.array(_readings(plant, stream, channel.name, BASE + 9 * MINUTE))
        calm, odd = values[:480], values[490:]
        assert abs(odd.mean() - calm.mean()) > 2.5 * calm.std(), channel.name


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.stream)
def test_a_sound_fault_changes_the_spectrum_and_nothing_else(machine: object) -> None:
    stream = MACHINES[MACHINES.index(machine)].stream  # type: ignore[arg-type]
    fault = Fault(stream, BASE + MINUTE, BASE + 2 * MINUTE, "audio")
    plant = Plant(faults=[fault])

    def spectrum(clip: bytes) -> np.ndarray:
        samples = np.frombuffer(clip[44:], "<i2").astype(float)
        assert len(samples) == 2 * CLIP_RATE_HZ
        bands = np.abs(np.fft.rfft(samples))[:16_000].reshape(80, 200).mean(axis=1)
        return np.log(bands + 1)

    calm = [spectrum(c) for c in _clips(plant, stream, BASE, fault.start_ms)]
    odd = [spectrum(c) for c in _clips(plant, stream, fault.start_ms, fault.end_ms)]
    spread = max(np.abs(c - calm[0]).mean() for c in calm)
    assert min(np.abs(c - calm[0]).mean() for c in odd) > 3 * spread
    without = [m for m in Plant().messages(BASE, fault.end_ms) if m.topic != "audio-clips"]
    assert [m for m in plant.messages(BASE, fault.end_ms) if m.topic != "audio-clips"] == without


def test_a_caption_fault_is_in_the_notes_only_while_it_lasts() -> None:
    fan = MACHINES[3]
    plant = Plant(faults=[Fault(fan.stream, BASE + MINUTE, BASE + 2 * MINUTE, "caption")])
    odd = [text in fan.fault_notes for text in _notes(plant, fan.stream)]
    assert odd == [False] * 3 + [True] * 3 + [False] * 6


def test_two_faults_at_once_are_both_there() -> None:
    pump = MACHINES[0]
    span = (BASE + MINUTE, BASE + 2 * MINUTE)
    plant = Plant(faults=[Fault(pump.stream, *span, "audio"), Fault(pump.stream, *span, "caption")])
    assert any(text in pump.fault_notes for text in _notes(plant, pump.stream))


def test_faults_are_planned_one_machine_after_another() -> None:
    faults = plan_faults(BASE, BASE + 15 * MINUTE)
    assert faults[0].start_ms == BASE
    assert faults[0].kind == "all"
    assert len({f.stream for f in faults}) == len(faults) == 6
    assert all(a.end_ms < b.start_ms for a, b in itertools.pairwise(faults))


def test_a_written_recording_plays_the_same_events_at_the_same_times(tmp_path: Path) -> None:
    end = BASE + 3 * MINUTE
    plant = Plant(faults=plan_faults(BASE + MINUTE, end))
    write_recording(plant, BASE, end, tmp_path / "plant")

    def content(message: Message) -> tuple[object, ...]:
        value: object = message.value
        if message.topic != "audio-clips":
            fields = msgspec.json.decode(message.value)
            value = fields.get("values"), fields.get("text"), fields["time"]
        return message.time_ms, message.topic, message.key, value, tuple(message.headers)

    recording = Recording(tmp_path / "plant")
    played = [content(m) for m in recording.messages()]
    assert sorted(played, key=str) == sorted((content(m) for m in plant.messages(BASE, end)), key=str)
    assert recording.labels() == sorted(plant.labels(), key=lambda label: label.start_ms)


def test_a_folder_that_is_not_empty_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RecordingError, match="exists already"):
        write_recording(Plant(), BASE, BASE + 1000, tmp_path)


def test_all_notes_of_a_machine_appear_in_changing_order() -> None:
    plant = Plant(6, 5)
    notes: dict[str, list[str]] = {}
    for message in plant.messages(0, 120_000):
        if message.topic == "captions":
            notes.setdefault(message.key.decode(), []).append(msgspec.json.decode(message.value)["text"])
    assert {stream: sorted(set(texts)) for stream, texts in notes.items()} == {
        machine.stream: sorted(machine.normal_notes) for machine in plant.machines
    }
    assert any(texts[:3] != texts[3:6] for texts in notes.values())


def test_a_noisier_plant_has_noisier_readings_and_sounds_and_mistyped_notes_at_the_same_times() -> None:
    quiet, noisy = Plant(seed=5), Plant(seed=5, noise=8.0)
    events = [list(plant.messages(BASE, BASE + 2 * MINUTE)) for plant in (quiet, noisy)]
    places = [[(m.time_ms, m.topic, m.key) for m in messages] for messages in events]
    assert places[0] == places[1]
    channel = MACHINES[0].channels[0]
    spread = [
        np.std(np.diff(_readings(plant, MACHINES[0].stream, channel.name, BASE + 8 * MINUTE)))
        for plant in (quiet, noisy)
    ]
    assert 5 < spread[1] / spread[0] < 9  # the load cycle is in both

    hiss = [
        np.frombuffer(b[44:], "<i2") - np.frombuffer(a[44:], "<i2").astype(float)
        for a, b in zip(
            *(_clips(plant, MACHINES[0].stream, BASE, BASE + MINUTE) for plant in (quiet, noisy)), strict=True
        )
    ]
    assert all(0.1 < one.std() / 32_767 < 0.17 for one in hiss)  # .02 times the root of 8 * 8 - 1
    assert abs(np.corrcoef(hiss[0], hiss[1])[0, 1]) < 0.05  # each clip has its own noise
    notes = [_notes(plant, MACHINES[3].stream) for plant in (quiet, noisy)]
    assert notes[0] != notes[1]
    assert all(0.7 < len(b) / len(a) < 1.3 for a, b in zip(*notes, strict=True))
    assert list(noisy.messages(BASE, BASE + MINUTE)) == list(Plant(seed=5, noise=8.0).messages(BASE, BASE + MINUTE))


def test_the_command_records_a_plant_with_the_noise_of_its_option(tmp_path: Path) -> None:
    for name, more in (("quiet", []), ("noisy", ["--noise", "6"])):
        arguments = ["simulate", "--out", str(tmp_path / name), "--seconds", "60", "--streams", "2", *more]
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    for file in ("captions.csv", "sensors/feed-pump.csv"):
        quiet, noisy = ((tmp_path / name / file).read_text().splitlines() for name in ("quiet", "noisy"))
        assert len(quiet) == len(noisy)
        assert quiet[0] == noisy[0]
        assert quiet != noisy
    clips = [len(list((tmp_path / name / "audio").iterdir())) for name in ("quiet", "noisy")]
    assert clips[1] == 12 >= clips[0]  # every clip has its own noise
