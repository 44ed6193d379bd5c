"""A simulated plant: machines with named channels, their sounds, and the notes of the shift about them.

Deterministic: the same seed and times give the same bytes. Sounds and noise are rendered once, so that a plant runs at
many times real time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from streams.sources.machine_sounds import MachineSound, machine_sound
from streams.sources.recording import Label, Message

Kind = Literal["sensor", "audio", "caption", "all"]
_CLIP_EVERY_MS = 10_000
_NOTE_EVERY_MS = 20_000
_VARIANTS = 8  # sounds rendered per make, normal and faulty
_MISTYPED = 0.01  # share of mistyped letters, times the noise above 1
_JITTER_ROWS = (4093, 3989)  # coprime: the sum of two such loops repeats after half a year
_JITTER_RHO = 0.8  # AR(1): share of a second's deviation that remains in the next one
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Channel:
    """One channel: level, swing of the load cycle, noise (all in `unit`), and the offset that a fault adds."""

    name: str
    unit: str
    level: float
    swing: float
    noise: float
    fault_offset: float


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine, which is one stream; `cycle_s` is its load cycle."""

    stream: str
    hum_hz: float
    cycle_s: float
    channels: tuple[Channel, ...]
    normal_notes: tuple[str, ...]
    fault_notes: tuple[str, ...]
    fault_sound: str  # a key of `machine_sounds.FAULTS`


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of one machine over start <= t < end (epoch ms), in readings, sound, notes, or all of them."""

    stream: str
    start_ms: int
    end_ms: int
    kind: Kind = "all"

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that the fault changes."""
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
    """`streams` machines; times are epoch ms. `plan_faults` makes a list of faults.

    `noise` (at least 1) multiplies the noise of readings and sounds; above 1, notes have mistyped letters too.

    What happens in a second depends only on the seed and on that second, wherever a run of `messages` begins.
    """

    streams: int = len(MACHINES)
    seed: int = 7
    faults: Sequence[Fault] = ()
    noise: float = 1.0
    machines: tuple[Machine, ...] = field(init=False)
    _sounds: dict[tuple[int, bool], list[MachineSound]] = field(default_factory=dict)
    _loops: dict[int, list[NDArray[np.float64]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.machines = machines(self.streams)

    def labels(self) -> list[Label]:
        """The faults as labels."""
        return [Label(f.stream, f.start_ms, f.end_ms, f.kind, f.modalities) for f in self.faults]

    def messages(self, from_ms: int, to_ms: int) -> Iterator[Message]:
        """All messages with from <= time < to, in event-time order."""
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
        if (start_ms - 1_000 * (number % 7)) % _CLIP_EVERY_MS == 0:  # second 0 to 6 of each ten
            faulty = self._fault(machine, time_ms, "audio") is not None
            variants = self._variants(number, machine, faulty)
            sound = variants[int(rng.integers(len(variants)))]
            encoded = sound.noisier(self.noise, self._noise_rng(number, second)) if self.noise > 1 else sound.wav
            headers = [("time", str(time_ms).encode()), ("content-type", b"audio/wav")]
            yield Message(time_ms, "audio-clips", key, encoded, headers)
        if (start_ms - 7_000 * number) % _NOTE_EVERY_MS == 0:
            faulty = self._fault(machine, time_ms, "caption") is not None
            notes = machine.fault_notes if faulty else machine.normal_notes
            text = _note(notes, self.seed, number, second)
            if self.noise > 1:
                text = _mistyped(text, min(_MISTYPED * (self.noise - 1), 0.5), self._noise_rng(number, second))
            note = _encode({"time": time_ms, "text": text, "source": "shift log"})
            yield Message(time_ms, "captions", key, note, [])

    def _values(self, number: int, machine: Machine, second: int, time_ms: int) -> dict[str, float]:
        fault = self._fault(machine, time_ms, "sensor")
        # a fault develops over ten seconds
        progress = 0.0 if fault is None else min(1.0, (time_ms - fault.start_ms) / 10_000)
        cycle = math.sin(2 * math.pi * time_ms / 1000 / machine.cycle_s)
        day = math.sin(2 * math.pi * time_ms / 86_400_000)
        deviation = sum(loop[second % len(loop)] for loop in self._jitter(number, machine))
        return {
            c.name: round(
                c.level + c.swing * (cycle + 0.3 * day) + self.noise * c.noise * float(z) + c.fault_offset * progress, 4
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

    def _noise_rng(self, number: int, second: int) -> np.random.Generator:
        """For the added noise of a second, apart from its events: these stay the same at every noise level."""
        return np.random.default_rng((self.seed, 3_000 + number, second))

    def _variants(self, number: int, machine: Machine, faulty: bool) -> list[MachineSound]:
        number %= len(MACHINES)  # machines of one make have the same sounds
        found = self._sounds.get((number, faulty))
        if found is None:
            rng = np.random.default_rng((self.seed, 1_000 + number, int(faulty)))
            fault = machine.fault_sound if faulty else None
            found = [machine_sound(machine.hum_hz, fault, rng) for _ in range(_VARIANTS)]
            self._sounds[number, faulty] = found
        return found


def machines(streams: int) -> tuple[Machine, ...]:
    """The six makes, then more of each: `feed-pump-2`, ... Raises `ValueError` below 1."""
    if streams < 1:
        raise ValueError("a plant has at least one machine")
    plant = []
    for n in range(streams):
        repeat, make = divmod(n, len(MACHINES))
        machine = MACHINES[make]
        plant.append(replace(machine, stream=f"{machine.stream}-{repeat + 1}") if repeat else machine)
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
    """Faults one after another, each of another machine, from `from_ms` on; kinds in turn, `all` first."""
    rng = np.random.default_rng((seed, 99))
    order = rng.permutation(streams)
    kinds: tuple[Kind, ...] = ("all", "sensor", "audio", "caption")
    faults = []
    plant = machines(streams)
    for n, start in enumerate(range(from_ms, to_ms, every_ms)):
        machine = plant[int(order[n % streams])]
        faults.append(Fault(machine.stream, start, start + lasts_ms, kinds[n % len(kinds)]))
    return faults


def _ar1(rng: np.random.Generator, rows: int, channels: int) -> NDArray[np.float64]:
    """AR(1) noise of unit variance, shape (rows, channels); started from its own end, so that the loop is seamless."""
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
    """One of `notes`: each once per round, in an order that changes from round to round."""
    turn, place = divmod(second * 1000 // _NOTE_EVERY_MS, len(notes))
    return notes[int(np.random.default_rng((seed, number, 7, turn)).permutation(len(notes))[place])]


def _mistyped(text: str, chance: float, rng: np.random.Generator) -> str:
    """Each letter is with this probability left out, doubled, or swapped with the next."""
    letters = list(text)
    for at, draw in enumerate(rng.random(len(letters)) / chance):
        if draw < 1 / 3:
            letters[at] = ""
        elif draw < 2 / 3:
            letters[at] *= 2
        elif draw < 1 and at + 1 < len(letters):
            letters[at], letters[at + 1] = letters[at + 1], letters[at]
    return "".join(letters)
