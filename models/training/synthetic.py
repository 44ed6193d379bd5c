"""Synthetic training data of the shipped weights, beside real sounds: captions from templates, and simulated pumps.

All chance comes from a random.Random that is passed in: the same seed gives the same data.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass

from models.interface import WindowInput

SOUND_NAMES = (
    "baby_cry",
    "chainsaw",
    "clock_tick",
    "dog_bark",
    "fire_crackling",
    "helicopter",
    "person_sneeze",
    "rain",
    "rooster",
    "sea_waves",
)

_SOUNDS: Mapping[str, tuple[str, ...]] = {
    "baby_cry": (
        "a baby is crying",
        "crying baby",
        "an infant wailing",
        "a small child cries",
        "baby crying loudly nearby",
        "a newborn crying next door",
    ),
    "chainsaw": (
        "a chainsaw running",
        "chainsaw noise",
        "somebody sawing wood with a chainsaw",
        "a chain saw revving up",
        "chainsaw cutting a tree",
        "motor saw at work close to us",
    ),
    "clock_tick": (
        "a clock ticks",
        "ticking clock",
        "the tick of a wall clock",
        "a watch ticking steadily",
        "clock ticking in a silent room",
        "tick tock of the old clock",
    ),
    "dog_bark": (
        "a dog barks",
        "barking dog",
        "dogs barking in the yard",
        "a guard dog is barking",
        "dog barking behind the fence",
        "a small dog yapping",
    ),
    "fire_crackling": (
        "a crackling fire",
        "fire crackles",
        "flames crackling and popping",
        "a campfire burning",
        "wood fire crackling in the open",
        "something is on fire, crackling flames",
    ),
    "helicopter": (
        "a helicopter flying past",
        "helicopter noise",
        "rotor of a helicopter",
        "a chopper overhead",
        "helicopter hovering above the site",
        "a helicopter droning far away",
    ),
    "person_sneeze": (
        "a person sneezes",
        "sneezing person",
        "somebody sneezed",
        "a loud sneeze",
        "a man sneezing",
        "someone is sneezing again and again",
    ),
    "rain": (
        "rain is falling",
        "heavy rain",
        "rain on a tin roof",
        "it is raining hard outside",
        "steady rain drumming on metal",
        "a rain shower",
    ),
    "rooster": (
        "a rooster crows",
        "crowing rooster",
        "a cock crowing in the morning",
        "rooster crowing on the farm",
        "chickens and a rooster outside",
        "cock-a-doodle-doo of a rooster",
    ),
    "sea_waves": (
        "waves of the sea",
        "sea waves breaking on the shore",
        "ocean surf",
        "waves rolling onto the beach",
        "the sea washing over stones",
        "waves lapping against the harbour wall",
    ),
}
_SOUND_FRAMES = (
    "{sound}",
    "{sound}",
    "the sound of {sound}",
    "I can hear {sound}",
    "in the background {sound}",
    "microphone picks up {sound}",
    "{sound} during the whole round",
    "recording: {sound}",
    "noted {sound}",
)

# The first four are conditions of the simulated pump; the others exist in captions only.
CONDITION_NAMES = ("normal", "overheating", "vibration", "leak", "burning", "grinding", "electrical", "blocked")
SENSOR_CONDITIONS = 4
_CONDITIONS: Mapping[str, tuple[str, ...]] = {
    "normal": (
        "everything normal at {unit}",
        "{unit} runs smoothly",
        "regular check of {unit}, no findings",
        "no problems with {unit}",
        "{unit} ok",
        "{unit} in normal operation",
        "quiet shift, {unit} steady",
        "inspection round done, {unit} fine",
        "{unit} stable, pressure and flow as usual",
        "nothing unusual",
        "all fine here",
        "valve open, flow normal, {unit} ok",
        "usual noise, nothing special at {unit}",
        "routine check completed",
        "calm, {unit} works as it should",
        "readings of {unit} steady",
    ),
    "overheating": (
        "{unit} is overheating",
        "{unit} runs hot",
        "temperature of {unit} far too high",
        "bearing of {unit} very hot",
        "motor of {unit} overheated",
        "heat alarm on {unit}",
        "too hot to touch: {unit}",
        "cooling of {unit} does not keep up",
    ),
    "vibration": (
        "{unit} vibrates heavily",
        "strong vibrations on {unit}",
        "{unit} is shaking",
        "excessive vibration of {unit}",
        "bearing vibration alarm at {unit}",
        "unbalanced rotor on {unit}",
        "the skid of {unit} trembles",
        "vibration level of {unit} too high, reported by the operator",
    ),
    "leak": (
        "{unit} is leaking",
        "leak at {unit}",
        "oil on the floor next to {unit}",
        "water dripping from {unit}",
        "pressure of {unit} drops, a leak somewhere",
        "puddle below {unit}",
        "seal of {unit} leaks",
        "loss of flow, leaking pipe at {unit}",
    ),
    "burning": (
        "smoke at {unit}",
        "it smells burnt near {unit}",
        "burning smell from {unit}",
        "smoke and a smell of fire",
        "something burns at {unit}",
        "scorched smell around the motor of {unit}",
        "smouldering cable at {unit}",
    ),
    "grinding": (
        "{unit} makes a grinding noise",
        "grinding and scraping in {unit}",
        "loud screeching from {unit}",
        "coupling of {unit} rattles and grinds",
        "metallic knocking in {unit}",
        "harsh noise from the gearbox",
    ),
    "electrical": (
        "sparks at {unit}",
        "fuse of {unit} blew",
        "{unit} tripped, power lost",
        "electrical fault on {unit}",
        "voltage dip, {unit} stopped",
        "short circuit in the cabinet of {unit}",
    ),
    "blocked": (
        "filter of {unit} is clogged",
        "{unit} blocked",
        "no flow through {unit}",
        "valve of {unit} stuck",
        "cavitation in {unit}, suction blocked",
        "inlet of {unit} jammed",
    ),
}
_KINDS = (
    "pump",
    "compressor",
    "fan",
    "motor",
    "unit",
    "line",
    "skid",
    "boiler",
    "mixer",
    "turbine",
    "machine",
    "plant",
)
_JOINS = (
    "{condition}, {sound}",
    "{sound}; {condition}",
    "{condition}. {sound}",
    "{condition} - {sound}",
    "{sound}, {condition}",
    "{condition}, with {sound}",
)


@dataclass(frozen=True, slots=True)
class SyntheticCaption:
    """A sentence and its subjects: indices into SOUND_NAMES and CONDITION_NAMES, -1 where it does not mention one."""

    text: str
    sound: int
    condition: int


def _unit_name(rng: random.Random) -> str:
    kind = rng.choice(_KINDS)
    number = rng.randrange(40)
    return rng.choice(
        (f"{kind}-{number:02d}", f"{kind} {number}", f"the {kind}", f"{kind}{number}", f"{kind} no. {number}")
    )


def sound_phrase(sound: int, rng: random.Random) -> str:
    """A random sentence on a sound (index into SOUND_NAMES)."""
    return rng.choice(_SOUND_FRAMES).format(sound=rng.choice(_SOUNDS[SOUND_NAMES[sound]]))


def condition_phrase(condition: int, rng: random.Random) -> str:
    """A random sentence on the condition of a machine (index into CONDITION_NAMES)."""
    return rng.choice(_CONDITIONS[CONDITION_NAMES[condition]]).format(unit=_unit_name(rng))


def caption(sound: int, condition: int, rng: random.Random) -> SyntheticCaption:
    """A caption on a sound, on the condition of a machine, or on both."""
    which = rng.random()
    if which < 0.35:
        return SyntheticCaption(sound_phrase(sound, rng), sound, -1)
    if which < 0.65:
        return SyntheticCaption(condition_phrase(condition, rng), -1, condition)
    text = rng.choice(_JOINS).format(condition=condition_phrase(condition, rng), sound=sound_phrase(sound, rng))
    return SyntheticCaption(text, sound, condition)


# Words of the training captions in sentences that training never has: zero-shot accuracy is measured with them.
UNSEEN_PROMPTS: Mapping[str, str] = {
    "baby_cry": "we heard a baby cry on the tape",
    "chainsaw": "we heard a chainsaw on the tape",
    "clock_tick": "we heard a clock tick on the tape",
    "dog_bark": "we heard a dog bark on the tape",
    "fire_crackling": "we heard fire crackling on the tape",
    "helicopter": "we heard a helicopter on the tape",
    "person_sneeze": "we heard a person sneeze on the tape",
    "rain": "we heard rain on the tape",
    "rooster": "we heard a rooster on the tape",
    "sea_waves": "we heard sea waves on the tape",
}
# More of them, with other words for each class and in other forms: sound -> text is measured with them.
UNSEEN_FORMS = (
    "was that {sound} just now?",
    "there must be {sound} somewhere",
    "clip 17 has {sound} in it",
    "my colleague noticed {sound}",
)
UNSEEN_WORDS: Mapping[str, tuple[str, str, str, str]] = {
    "baby_cry": ("a crying baby", "a baby crying", "an infant crying", "a newborn baby"),
    "chainsaw": ("a chainsaw", "the chainsaw noise", "someone sawing wood", "a chain saw"),
    "clock_tick": ("a ticking clock", "a clock ticking", "the tick tock", "a wall clock"),
    "dog_bark": ("a barking dog", "dogs barking", "a dog that barks", "a guard dog"),
    "fire_crackling": ("a crackling fire", "a campfire", "crackling flames", "a wood fire"),
    "helicopter": ("a helicopter", "rotor noise of a helicopter", "a chopper", "a helicopter hovering"),
    "person_sneeze": ("a sneeze", "somebody sneezing", "a man who sneezed", "a person sneezing"),
    "rain": ("rain", "heavy rain", "rain falling", "a shower of rain"),
    "rooster": ("a rooster", "a crowing cock", "a rooster crowing", "the cock-a-doodle-doo"),
    "sea_waves": ("sea waves", "ocean waves", "the surf of the sea", "waves on the shore"),
}
UNSEEN_STATES = (
    "the equipment works normally today",
    "a machine that gets much too hot",
    "the machine shakes and vibrates",
    "fluid leaks out of the machine",
)

# Quantity, channel names that plants use for it, units, and the range of its healthy level (drawn on a log scale).
_QUANTITIES: tuple[tuple[str, tuple[str, ...], tuple[str, ...], float, float], ...] = (
    (
        "temperature",
        ("temperature", "temp", "motor_temp", "bearing.temperature", "TempC", "winding_temperature", "thermocouple"),
        ("C", "°C", ""),
        20.0,
        65.0,
    ),
    (
        "vibration",
        ("vibration", "vib.x", "vib.y", "accelerometer_rms", "accel1_rms", "bearing_vibration", "VibrationRMS"),
        ("mm/s", "g", ""),
        0.03,
        0.6,
    ),
    ("pressure", ("pressure", "discharge_pressure", "p_out", "line.pressure", "PressureBar"), ("bar", ""), 1.5, 9.0),
    ("flow", ("flow", "flow_rate", "volume_flow", "throughput", "FlowRate"), ("l/min", "m3/h", ""), 20.0, 150.0),
    ("current", ("current", "motor_current", "amps", "i_phase_1"), ("A", ""), 1.0, 12.0),
    ("voltage", ("voltage", "u_supply", "mains_voltage"), ("V", ""), 215.0, 245.0),
    ("speed", ("rpm", "speed", "shaft_speed"), ("rpm", "1/min"), 900.0, 3_000.0),
    ("level", ("level", "tank_level", "oil_level"), ("%", ""), 55.0, 95.0),
)
# Condition -> quantity -> range of the factor on its level.
_EFFECTS: Mapping[int, Mapping[str, tuple[float, float]]] = {
    0: {},
    1: {"temperature": (1.7, 2.8), "current": (1.1, 1.4)},
    2: {"vibration": (4.0, 20.0), "current": (1.0, 1.1), "speed": (0.95, 1.0)},
    3: {"pressure": (0.1, 0.5), "flow": (0.1, 0.55), "level": (0.2, 0.6)},
}


def sensor_window(condition: int, rng: random.Random) -> WindowInput:
    """A window of a simulated pump in one of SENSOR_CONDITIONS conditions, from 0 ms."""
    return sensor_windows(condition, rng, 1)[0]


def sensor_windows(condition: int, rng: random.Random, count: int) -> list[WindowInput]:
    """`count` such windows of one pump: only the noise differs between them."""
    affected = set(_EFFECTS[condition])
    chosen = [q for q in _QUANTITIES if rng.random() < 0.7 or (q[0] in affected and rng.random() < 0.8)]
    if not any(q[0] in affected for q in chosen):  # a condition that shows in no channel teaches nothing
        chosen += [q for q in _QUANTITIES if q[0] == (sorted(affected) or ["temperature"])[-1] and q not in chosen]
    span_ms = rng.choice((5_000, 10_000, 10_000, 10_000, 20_000, 30_000))
    steps = rng.choice((5, 10, 10, 10, 20, 30))
    missing = rng.choice((0.0, 0.0, 0.1, 0.3))
    channels: list[tuple[str, float, float, float]] = []  # name, level, drift over the window, noise
    units: dict[str, str] = {}
    for kind, names, unit_names, low, high in chosen:
        for name in rng.sample(names, 1 if rng.random() < 0.7 else 2):
            full = name if rng.random() < 0.6 else f"{rng.choice(_KINDS)}{rng.randrange(9)}.{name}"
            level = math.exp(rng.uniform(math.log(low), math.log(high)))
            if kind in _EFFECTS[condition]:
                level *= rng.uniform(*_EFFECTS[condition][kind])
            noise = level * rng.choice((0.001, 0.005, 0.02, 0.06))
            drift = level * rng.uniform(-0.02, 0.02)
            channels.append((full, level, drift, noise))
            units[full] = rng.choice(unit_names)
    windows = []
    for _ in range(count):
        readings: list[tuple[int, dict[str, float | None]]] = []
        for i in range(steps):
            row: dict[str, float | None] = {
                name: None if rng.random() < missing else level + drift * i / steps + rng.gauss(0.0, noise)
                for name, level, drift, noise in channels
            }
            readings.append((i * span_ms // steps, row))
        windows.append(WindowInput(0, span_ms, readings, units=units))
    return windows
