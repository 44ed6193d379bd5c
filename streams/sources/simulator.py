"""A simulated plant: six machines with named channels, their sound, and what the shift writes about them.

Deterministic: the same seed and times give the same bytes. Everything that costs is rendered once at the start, so
that a plant runs at many times real time.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from streams.events.envelope import format_ms
from streams.sources.machine_sounds import Sound, machine_sound
from streams.sources.recording import Label, Message, RecordingError

Kind = Literal["sensor", "audio", "caption", "all"]
_CLIP_EVERY_MS = 10_000
_NOTE_EVERY_MS = 20_000
_VARIANTS = 8
_MISTYPED = 0.01  # of the letters, for each time that a plant is noisier than a well-kept one
_JITTER_ROWS = (4093, 3989)  # coprime: the sum of two such loops repeats after half a year
_JITTER_RHO = 0.8  # AR(1): how much of a second's deviation is left in the next one
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Channel:
    """One channel: level, swing of the load cycle, noise (all in `unit`), and what a fault adds."""

    name: str
    unit: str
    level: float
    swing: float
    noise: float
    fault: float


@dataclass(frozen=True, slots=True)
class Machine:
    """One stream of the plant."""

    stream: str
    hum_hz: float
    cycle_s: float
    channels: tuple[Channel, ...]
    calm: tuple[str, ...]
    odd: tuple[str, ...]
    noise: str  # what its sound becomes in a fault


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong with one machine, in its readings, its sound, what is said of it, or in all."""

    stream: str
    start_ms: int
    end_ms: int
    kind: Kind = "all"

    @property
    def modalities(self) -> tuple[str, ...]:
        return ("sensor", "audio", "caption") if self.kind == "all" else (self.kind,)


MACHINES = (
    Machine(
        "feed-pump",
        49.0,
        140.0,
        (
            Channel("flow", "m3/h", 120.0, 4.0, 0.8, -28.0),
            Channel("pressure", "bar", 6.2, 0.15, 0.03, -0.9),
            Channel("bearing.temperature", "Cel", 58.0, 0.6, 0.1, 14.0),
            Channel("vibration", "mm/s", 2.1, 0.1, 0.06, 4.4),
            Channel("motor.current", "A", 41.0, 1.2, 0.3, 6.0),
        ),
        ("feed pump steady, valve half open", "pump running smoothly", "routine check of the feed pump, all well"),
        ("grinding from the pump coupling, strong vibration", "bearing of the feed pump is hot and smells burnt"),
        "grinding",
    ),
    Machine(
        "compressor",
        74.0,
        90.0,
        (
            Channel("discharge.pressure", "bar", 8.4, 0.25, 0.04, -1.6),
            Channel("oil.temperature", "Cel", 71.0, 1.0, 0.15, 13.0),
            Channel("motor.current", "A", 88.0, 3.0, 0.6, 17.0),
            Channel("vibration", "mm/s", 3.0, 0.15, 0.08, 5.0),
        ),
        ("compressor loading and unloading as usual", "air pressure normal", "compressor room quiet, filters clean"),
        ("loud knocking from the compressor, pressure falling", "oil on the floor below the compressor"),
        "knocking",
    ),
    Machine(
        "conveyor",
        23.0,
        60.0,
        (
            Channel("belt.speed", "m/s", 1.6, 0.02, 0.005, -0.5),
            Channel("motor.current", "A", 17.0, 0.8, 0.2, 7.0),
            Channel("load", "kg", 240.0, 30.0, 6.0, 90.0),
            Channel("gearbox.temperature", "Cel", 49.0, 0.5, 0.1, 9.0),
        ),
        ("belt running straight", "conveyor moving at normal speed", "no spillage along the conveyor"),
        ("belt squealing and slipping at the head drum", "conveyor stalls, burnt rubber smell"),
        "squeal",
    ),
    Machine(
        "furnace-fan",
        97.0,
        200.0,
        (
            Channel("air.flow", "m3/h", 5400.0, 120.0, 25.0, -1300.0),
            Channel("vibration", "mm/s", 1.6, 0.08, 0.05, 4.0),
            Channel("bearing.temperature", "Cel", 52.0, 0.8, 0.1, 16.0),
            Channel("speed", "1/min", 1480.0, 6.0, 2.0, -90.0),
        ),
        ("fan balanced, draught as set", "furnace fan at constant speed", "nothing to report from the furnace fan"),
        ("furnace fan shaking, rattling loudly", "smoke near the furnace fan motor"),
        "rattle",
    ),
    Machine(
        "cooling-loop",
        61.0,
        170.0,
        (
            Channel("supply.temperature", "Cel", 18.0, 0.3, 0.05, 6.0),
            Channel("return.temperature", "Cel", 24.0, 0.4, 0.06, 8.0),
            Channel("flow", "l/min", 310.0, 6.0, 1.5, -95.0),
            Channel("pressure", "bar", 3.1, 0.06, 0.015, -0.8),
        ),
        ("cooling water clear, flow normal", "loop temperatures as planned", "no leaks along the cooling loop"),
        ("water leaking under the heat exchanger", "hissing and bubbling in the cooling loop, it runs hot"),
        "hiss",
    ),
    Machine(
        "generator",
        50.0,
        240.0,
        (
            Channel("voltage", "V", 400.0, 1.5, 0.5, -24.0),
            Channel("frequency", "Hz", 50.0, 0.02, 0.008, -0.7),
            Channel("winding.temperature", "Cel", 83.0, 1.2, 0.15, 19.0),
            Channel("power", "kW", 640.0, 15.0, 4.0, -150.0),
            Channel("fuel.rate", "l/h", 160.0, 4.0, 1.0, 35.0),
        ),
        ("generator in parallel with the grid", "generator load constant", "round done, generator sounds normal"),
        ("generator surging, voltage unsteady", "smell of hot insulation at the generator"),
        "surging",
    ),
)


@dataclass(slots=True)
class Plant:
    """`streams` machines; times are epoch ms. Faults are given, or planned by `plan_faults`.

    `noise`, from 1: how many times as noisy as a well-kept plant its readings and sounds are; above 1 there are
    mistyped letters in its notes too.

    What happens in a second depends on the seed and on that second only, wherever a run of `messages` begins.
    """

    streams: int = len(MACHINES)
    seed: int = 7
    faults: Sequence[Fault] = ()
    noise: float = 1.0
    machines: tuple[Machine, ...] = field(init=False)
    _sounds: dict[tuple[int, bool], list[Sound]] = field(default_factory=dict)
    _loops: dict[int, list[NDArray[np.float64]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.machines = machines(self.streams)

    def labels(self) -> list[Label]:
        """The faults, for scoring."""
        return [Label(f.stream, f.start_ms, f.end_ms, f.kind, f.modalities) for f in self.faults]

    def messages(self, from_ms: int, to_ms: int) -> Iterator[Message]:
        """Everything with from <= time < to, in event-time order."""
        for second in range(from_ms // 1000, -(-to_ms // 1000)):
            batch = [m for n, machine in enumerate(self.machines) for m in self._second(n, machine, second)]
            batch = [message for message in batch if from_ms <= message.time_ms < to_ms]
            batch.sort(key=lambda message: (message.time_ms, message.topic, message.key))
            yield from batch

    def _second(self, number: int, machine: Machine, second: int) -> Iterator[Message]:
        rng = np.random.default_rng((self.seed, number, second))
        start_ms, key = second * 1000, machine.stream.encode()
        time_ms = start_ms + (100 * number) % 950 + int(rng.integers(0, 40))
        values = self._values(number, machine, second, time_ms)
        units = {channel.name: channel.unit for channel in machine.channels}
        value = _encode({"time": time_ms, "values": values, "units": units})
        yield Message(time_ms, "sensor-readings", key, value, [])
        if (start_ms - 1_000 * (number % 7)) % _CLIP_EVERY_MS == 0:  # ends before the next ten seconds begin
            bad = self._fault(machine, time_ms, "audio") is not None
            variants = self._variants(number, machine, bad)
            sound = variants[int(rng.integers(len(variants)))]
            encoded = sound.noisier(self.noise, self._own(number, second)) if self.noise > 1 else sound.wav
            headers = [("time", str(time_ms).encode()), ("content-type", b"audio/wav")]
            yield Message(time_ms, "audio-clips", key, encoded, headers)
        if (start_ms - 7_000 * number) % _NOTE_EVERY_MS == 0:
            bad = self._fault(machine, time_ms, "caption") is not None
            notes = machine.odd if bad else machine.calm
            text = _note(notes, self.seed, number, second)
            if self.noise > 1:
                text = _mistyped(text, min(_MISTYPED * (self.noise - 1), 0.5), self._own(number, second))
            note = _encode({"time": time_ms, "text": text, "source": "shift log"})
            yield Message(time_ms, "captions", key, note, [])

    def _values(self, number: int, machine: Machine, second: int, time_ms: int) -> dict[str, float]:
        fault = self._fault(machine, time_ms, "sensor")
        # a fault sets in over ten seconds
        grown = 0.0 if fault is None else min(1.0, (time_ms - fault.start_ms) / 10_000)
        cycle = math.sin(2 * math.pi * time_ms / 1000 / machine.cycle_s)
        day = math.sin(2 * math.pi * time_ms / 86_400_000)
        deviation = sum(loop[second % len(loop)] for loop in self._jitter(number, machine))
        return {
            c.name: round(
                c.level + c.swing * (cycle + 0.3 * day) + self.noise * c.noise * float(z) + c.fault * grown, 4
            )
            for c, z in zip(machine.channels, np.atleast_1d(deviation), strict=True)
        }

    def _jitter(self, number: int, machine: Machine) -> list[NDArray[np.float64]]:
        """Two loops of AR(1) noise, each (rows, channels); their sum has unit variance."""
        loops = self._loops.get(number)
        if loops is None:
            rng = np.random.default_rng((self.seed, 2_000 + number))
            loops = [_ar1(rng, rows, len(machine.channels)) / math.sqrt(2) for rows in _JITTER_ROWS]
            self._loops[number] = loops
        return loops

    def _fault(self, machine: Machine, time_ms: int, modality: str) -> Fault | None:
        for fault in self.faults:
            here = fault.stream == machine.stream and modality in fault.modalities
            if here and fault.start_ms <= time_ms < fault.end_ms:
                return fault
        return None

    def _own(self, number: int, second: int) -> np.random.Generator:
        """What makes this second noisier, apart from what happens in it."""
        return np.random.default_rng((self.seed, 3_000 + number, second))

    def _variants(self, number: int, machine: Machine, bad: bool) -> list[Sound]:
        number %= len(MACHINES)  # machines of one make sound alike
        found = self._sounds.get((number, bad))
        if found is None:
            rng = np.random.default_rng((self.seed, 1_000 + number, int(bad)))
            fault = machine.noise if bad else None
            found = [machine_sound(machine.hum_hz, fault, rng) for _ in range(_VARIANTS)]
            self._sounds[number, bad] = found
        return found


def machines(streams: int) -> tuple[Machine, ...]:
    """The six makes, then more of each: `feed-pump-2`, ... Raises `ValueError` below 1."""
    if streams < 1:
        raise ValueError("a plant has at least one machine")
    plant = []
    for n in range(streams):
        again, make = divmod(n, len(MACHINES))
        machine = MACHINES[make]
        plant.append(replace(machine, stream=f"{machine.stream}-{again + 1}") if again else machine)
    return tuple(plant)


def plan_faults(
    from_ms: int,
    to_ms: int,
    *,
    seed: int = 7,
    streams: int = len(MACHINES),
    every_ms: int = 150_000,
    lasts_ms: int = 75_000,
) -> list[Fault]:
    """One machine after another goes wrong: the first at `from_ms`, in everything; then also in one modality only."""
    rng = np.random.default_rng((seed, 99))
    order = rng.permutation(streams)
    kinds: tuple[Kind, ...] = ("all", "sensor", "audio", "caption")
    faults = []
    plant = machines(streams)
    for n, start in enumerate(range(from_ms, to_ms, every_ms)):
        machine = plant[int(order[n % streams])]
        faults.append(Fault(machine.stream, start, start + lasts_ms, kinds[n % len(kinds)]))
    return faults


def write_recording(plant: Plant, from_ms: int, to_ms: int, folder: Path) -> None:
    """The same events as `plant.messages`, as a recording folder (which has no place for units and sources).

    Raises `RecordingError` where something is in the way.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RecordingError(f"{folder} exists already; remove it or choose another folder")
    (folder / "sensors").mkdir(parents=True)
    (folder / "audio").mkdir()
    rows: dict[str, list[list[str]]] = {"audio": [], "captions": []}
    sensors: dict[str, list[Mapping[str, object]]] = {}
    written: dict[bytes, str] = {}
    for message in plant.messages(from_ms, to_ms):
        stream, at = message.key.decode(), format_ms(message.time_ms)
        if message.topic == "sensor-readings":
            sensors.setdefault(stream, []).append({"time": at} | msgspec.json.decode(message.value)["values"])
        elif message.topic == "audio-clips":
            name = written.get(message.value)
            if name is None:
                name = written[message.value] = f"audio/{stream}-{len(written):03d}.wav"
                (folder / name).write_bytes(message.value)
            rows["audio"].append([at, stream, name])
        else:
            rows["captions"].append([at, stream, msgspec.json.decode(message.value)["text"]])
    for stream, readings in sensors.items():
        with (folder / "sensors" / f"{stream}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(readings[0]))
            writer.writeheader()
            writer.writerows(readings)
    labels = [
        [label.stream, format_ms(label.start_ms), format_ms(label.end_ms), label.kind, " ".join(label.modalities)]
        for label in plant.labels()
        if label.start_ms < to_ms and label.end_ms > from_ms
    ]
    _table(folder / "audio.csv", ["time", "stream", "file"], rows["audio"])
    _table(folder / "captions.csv", ["time", "stream", "text"], rows["captions"])
    _table(folder / "labels.csv", ["stream", "start", "end", "kind", "modalities"], labels)


def _table(path: Path, header: list[str], rows: list[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def _ar1(rng: np.random.Generator, rows: int, channels: int) -> NDArray[np.float64]:
    """(rows, channels), unit variance; the loop has no seam, for it is run in before the first row."""
    shocks = rng.standard_normal((rows, channels)) * math.sqrt(1 - _JITTER_RHO**2)
    level = np.zeros(channels)
    for shock in shocks[-50:]:
        level = _JITTER_RHO * level + shock
    noise = np.empty_like(shocks)
    for n, shock in enumerate(shocks):
        level = _JITTER_RHO * level + shock
        noise[n] = level
    return noise


def _note(notes: Sequence[str], seed: int, number: int, second: int) -> str:
    """All of what a shift writes about a machine comes round, in an order that changes from round to round."""
    lap, place = divmod(second * 1000 // _NOTE_EVERY_MS, len(notes))
    return notes[int(np.random.default_rng((seed, number, 7, lap)).permutation(len(notes))[place])]


def _mistyped(text: str, chance: float, rng: np.random.Generator) -> str:
    """With this chance a letter is left out, typed twice, or typed after the next one."""
    letters = list(text)
    for at, slip in enumerate(rng.random(len(letters)) / chance):
        if slip < 1 / 3:
            letters[at] = ""
        elif slip < 2 / 3:
            letters[at] *= 2
        elif slip < 1 and at + 1 < len(letters):
            letters[at], letters[at + 1] = letters[at + 1], letters[at]
    return "".join(letters)
