"""Vectors: what must hold for any window, mostly shown on the weights that ship."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import models
from models.embedder import Embedder
from models.interface import MODALITY_NAMES, WindowInput
from tests.unit.models.windows import END, LOUD, START, check, clip, digest, mixed_windows, note, rows, sound, window

# -- a window's vectors are a function of the window ---------------------------------------------------------------


def test_vectors_are_the_same_to_the_last_bit_alone_in_any_batch_and_in_any_order(model: Embedder) -> None:
    windows = mixed_windows()
    together = [digest(v) for v in model.embed(windows)]
    assert [digest(model.embed([w])[0]) for w in windows] == together
    for seed in range(3):
        order = random.Random(seed).sample(range(len(windows)), len(windows) - seed)
        assert [digest(v) for v in model.embed([windows[i] for i in order])] == [together[i] for i in order]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(picks=st.lists(st.integers(0, 21), min_size=1, max_size=20))
def test_any_batch_gives_each_window_its_own_bits(tiny: Embedder, picks: list[int]) -> None:
    windows = mixed_windows()
    alone = {i: digest(tiny.embed([windows[i]])[0]) for i in set(picks)}
    assert [digest(v) for v in tiny.embed([windows[i] for i in picks])] == [alone[i] for i in picks]


def test_another_process_gives_the_same_bits_whatever_its_hash_seed(model: Embedder) -> None:
    code = (
        "import models; from tests.unit.models.windows import digest, mixed_windows\n"
        "print(models.load().version, *[digest(v) for v in models.load().embed(mixed_windows()[:8][::-1])])"
    )
    root = Path(__file__).resolve().parents[3]
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=root,
        check=True,
        timeout=120,
        env={**os.environ, "PYTHONHASHSEED": "12345"},
    )
    assert ran.stdout.split() == [model.version, *[digest(v) for v in model.embed(mixed_windows()[:8])][::-1]]


def test_worker_threads_side_by_side_give_the_same_bits(model: Embedder) -> None:
    from concurrent.futures import ThreadPoolExecutor

    windows = mixed_windows()[:8]
    with ThreadPoolExecutor(2) as pool:
        there = [pool.submit(model.embed, windows) for _ in range(2)]
    alone = [digest(v) for v in model.embed(windows)]
    assert [[digest(v) for v in ran.result()] for ran in there] == [alone, alone]


@pytest.mark.parametrize("channels", [12, 2_000])
def test_the_order_of_channels_within_a_reading_changes_nothing(model: Embedder, channels: int) -> None:
    readings = rows(channels, 4)
    turned = [(t, dict(reversed(list(values.items())))) for t, values in readings]
    one, two = model.embed([window(readings), window(turned)])
    assert digest(one) == digest(two)


def test_moving_a_window_in_time_changes_nothing(model: Embedder) -> None:
    here = window(rows(), clip(sound(1)), note("calm"))
    day = 86_400_000
    there = WindowInput(
        START + day,
        END + day,
        [(t + day, v) for t, v in here.readings],
        [(t + day, s) for t, s in here.clips],
        [(t + day, c) for t, c in here.captions],
    )
    assert digest(model.embed([here])[0]) == digest(model.embed([there])[0])


# -- any content is valid ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subset", range(1, 8))
def test_every_subset_of_modalities_has_unit_vectors_and_attention_over_what_is_there(
    model: Embedder, subset: int
) -> None:
    w = window(
        rows() if subset & 1 else (),
        clip(sound(2, 5)) if subset & 2 else (),
        note("rain on the roof") if subset & 4 else (),
    )
    present = {name for bit, name in enumerate(MODALITY_NAMES) if subset >> bit & 1}
    check(model.embed([w])[0], present)


HARD_READINGS = {
    "constant": rows(ch000=5.0),
    "zeros": [(START + i, {"a": 0.0, "b": -0.0}) for i in range(10)],
    "huge": [(START + i, {"a": 1e300 * (-1) ** i, "b": 1.7e308, "c": 5e-324}) for i in range(10)],
    "nan and infinities": [(START + i, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.0}) for i in range(10)],
    "all missing": [(START + i, {"a": None}) for i in range(10)],
    "no channel at all": [(START, {})],
    "a single value": [(START, {"a": 1.0})],
    "300 channels": rows(300),
    "2,000 channels": rows(2_000, 2),
    "100 Hz": rows(4, 1_000),
    "all at one time": [(START, {"a": float(i)}) for i in range(50)],
    "odd names": [(START, {"": 1.0, "\u0000": 2.0, "🌡" * 500: 3.0, "\ud800": 4.0})],
}


@pytest.mark.parametrize("name", HARD_READINGS)
def test_hard_readings_give_finite_vectors(model: Embedder, name: str) -> None:
    check(model.embed([window(HARD_READINGS[name])])[0], {"sensor"})


@pytest.mark.parametrize(
    "text", ["", " ", "\n\t", "🔥🔥", "…!?", "a" * 100_000, "word " * 5_000, "\ud800", "漏水がある"]
)
def test_hard_captions_give_finite_vectors(model: Embedder, text: str) -> None:
    check(model.embed([window(captions=note(text))])[0], {"caption"})
    assert abs(float(np.linalg.norm(model.embed_text(text))) - 1) < 1e-5


@pytest.mark.parametrize("samples", [0, 1, 160, 15_999, 16_001, 80_000, 960_000])
@pytest.mark.parametrize("level", [0, 32_767])
def test_clips_of_any_length_and_silence_are_present(model: Embedder, samples: int, level: int) -> None:
    check(model.embed([window(clips=clip(np.full(samples, level, np.int16)))])[0], {"audio"})


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    readings=st.lists(
        st.tuples(
            st.integers(START, END - 1),
            st.dictionaries(st.text(max_size=6), st.none() | st.floats(width=64), max_size=5),
        ),
        max_size=30,
    ),
    texts=st.lists(st.text(max_size=60), max_size=9),
)
def test_whatever_is_read_or_written_the_vectors_are_finite(tiny: Embedder, readings, texts) -> None:
    w = window(sorted(readings, key=lambda r: r[0]), (), [(START, t) for t in texts])
    if not readings and not texts:
        with pytest.raises(models.ModelError, match="empty"):
            tiny.embed([w])
        return
    present = ({"sensor"} if readings else set()) | ({"caption"} if texts else set())
    check(tiny.embed([w])[0], present)


def test_an_empty_window_is_refused_with_its_times(model: Embedder) -> None:
    with pytest.raises(models.ModelError, match=f"{START}"):
        model.embed([window(rows()), window()])


def test_nothing_in_nothing_out(model: Embedder) -> None:
    assert model.embed([]) == []


# -- what moves a vector, and what does not --------------------------------------------------------------------------


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return 1 - float(a @ b)


def test_a_step_of_a_channel_stands_out_of_its_noise(model: Embedder) -> None:
    calm = [model.embed([window(rows(seed=i))])[0].unimodal["sensor"] for i in range(12)]
    noise = max(distance(a, b) for a in calm for b in calm)
    for factor in (1.1, 0.9, 1.5, 10.0):
        shifted = [(t, {**v, "ch003": (v["ch003"] or 0) * factor}) for t, v in rows(seed=99)]
        moved = model.embed([window(shifted)])[0].unimodal["sensor"]
        assert min(distance(moved, c) for c in calm) > 2 * noise, factor


def test_a_step_of_five_per_cent_in_each_channel_alone_can_be_seen(model: Embedder) -> None:
    calm = [model.embed([window(rows(seed=i))])[0].unimodal["sensor"] for i in range(12)]
    noise = max(min(distance(a, b) for b in calm if b is not a) for a in calm)  # nearest neighbour, as drift sees it
    for channel in range(8):
        name = f"ch{channel:03d}"
        shifted = [(t, {**v, name: (v[name] or 0) * 1.05}) for t, v in rows(seed=99)]
        moved = model.embed([window(shifted)])[0].unimodal["sensor"]
        assert min(distance(moved, c) for c in calm) > 1.5 * noise, name


def test_magnitude_survives_normalisation(model: Embedder) -> None:
    base, double, tenfold = (
        model.embed([window([(t, {k: (x or 0) * f for k, x in v.items()}) for t, v in rows()])])[0].unimodal["sensor"]
        for f in (1, 2, 10)
    )
    assert distance(base, double) > 0.05
    assert distance(base, tenfold) > 0.05


@pytest.mark.parametrize("changed", MODALITY_NAMES)
def test_the_joint_vector_moves_when_one_modality_changes(model: Embedder, changed: str) -> None:
    hum = (np.sin(np.arange(80_000) * 0.08) * 6_000).astype(np.int16)
    calm = {"readings": rows(), "clips": clip(sound(1, 5)), "captions": note("routine check, pump fine")}
    other = {
        "sensor": {"readings": [(t, {k: (x or 0) * 1.3 for k, x in v.items()}) for t, v in rows()]},
        "audio": {"clips": clip(hum)},
        "caption": {"captions": note("smoke and flames at the motor")},
    }[changed]
    again = {"readings": rows(seed=5), "clips": clip(sound(9, 5)), "captions": note("routine check, pump fine")}
    base, same, moved = model.embed([window(**calm), window(**again), window(**{**calm, **other})])
    assert distance(base.joint, moved.joint) > 3 * distance(base.joint, same.joint)


def test_a_change_of_loudness_moves_a_vector_less_than_silence_does(model: Embedder) -> None:
    loud, soft, silent = (
        model.embed([window(clips=clip(x))])[0].unimodal["audio"]
        for x in (sound(4, 5), sound(4, 5, LOUD // 2), np.zeros(80_000, np.int16))
    )
    assert distance(loud, soft) < distance(loud, silent) / 3
