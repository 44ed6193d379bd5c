"""Encoders, fusion and vectors: what must hold for any window, mostly shown on the weights that ship."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import models
from models.blocks import Attention, CrossBlock, SelfBlock
from models.checkpoint import write_checkpoint
from models.config import PRIVATE_DIM, SHARED_DIM, ModelConfig, preset
from models.embedder import Embedder
from models.encoders.caption import read_caption, window_captions
from models.encoders.collate import stack_captions, stack_sensors
from models.encoders.log_mel import FRAMES_MAX, frame_starts, log_mel, spread, window_frames
from models.encoders.sensor_tokens import SLOTS, TOKENS_MAX, tokenize
from models.encoders.text_hashing import WORDS_MAX, stable_hash, words
from models.fusion import Fusion, FusionInput
from models.interface import DIM, MODALITY_NAMES, WindowInput, WindowVectors
from models.network import Network

START, END = 1_767_225_600_000, 1_767_225_610_000
LOUD = 8_000


@pytest.fixture(scope="module")
def model() -> Embedder:
    return models.load()


@pytest.fixture(scope="module")
def tiny() -> Embedder:
    torch.manual_seed(3)
    return Embedder(Network(preset("tiny")).eval(), "tiny-random")


def sound(seed: int, seconds: float = 1.0, loudness: int = LOUD) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(int(seconds * 16_000)) * loudness / 3).clip(-32_768, 32_767).astype(np.int16)


def rows(
    channels: int = 8, count: int = 10, seed: int = 0, **fixed: float | None
) -> list[tuple[int, dict[str, float | None]]]:
    """Steady readings at even times: channel i hovers about 10 * (i + 1) within half a per cent; `fixed` overrides."""
    rng = random.Random(seed)
    out = []
    for step in range(count):
        values: dict[str, float | None] = {f"ch{i:03d}": 10 * (i + 1) * rng.gauss(1, 0.005) for i in range(channels)}
        values.update({name: value for name, value in fixed.items()})
        out.append((START + step * 10_000 // count, values))
    return out


def window(readings=(), clips=(), captions=()) -> WindowInput:
    return WindowInput(START, END, readings, clips, captions)


def clip(samples: np.ndarray, at: int = 500) -> list[tuple[int, np.ndarray]]:
    return [(START + at, samples)]


def note(text: str) -> list[tuple[int, str]]:
    return [(START + 100, text)]


def digest(vectors: WindowVectors) -> str:
    h = hashlib.sha256(vectors.joint.tobytes())
    for name in sorted(vectors.unimodal):
        h.update(name.encode() + vectors.unimodal[name].tobytes() + repr(vectors.attention[name]).encode())
    return h.hexdigest()


def mixed_windows(count: int = 22) -> list[WindowInput]:
    """All subsets of modalities, 1 to 300 channels, slow and fast, short and long clips, one to many captions."""
    out = []
    for i in range(count):
        subset = i % 7 + 1
        shape = [(8, 10), (1, 1), (3, 1_000), (70, 10), (300, 4), (8, 40)][i % 6]
        notes = [(START + k, f"note {k} of window {i} " + "with more words " * (i % 4)) for k in range(1 + i % 8)]
        out.append(
            window(
                rows(*shape, seed=i) if subset & 1 else (),
                clip(sound(i, [0.01, 1, 2.3, 5, 11][i % 5])) if subset & 2 else (),
                notes if subset & 4 else (),
            )
        )
    return out


def check(vectors: WindowVectors, present: set[str]) -> None:
    assert set(vectors.unimodal) == set(vectors.attention) == present
    for vector in (vectors.joint, *vectors.unimodal.values()):
        assert vector.dtype == np.float32
        assert vector.shape == (DIM,)
        assert np.isfinite(vector).all()
        assert abs(float(np.linalg.norm(vector.astype(np.float64))) - 1) < 1e-5
    assert abs(sum(vectors.attention.values()) - 1) < 1e-9
    assert all(share >= 0 for share in vectors.attention.values())


# -- a window's vectors are a function of the window ---------------------------------------------------------------


def test_vectors_are_the_same_to_the_last_bit_alone_in_company_and_in_any_order(model: Embedder) -> None:
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
        "import models; from tests.unit.models.test_embedder import digest, mixed_windows\n"
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


# -- any content is legal ------------------------------------------------------------------------------------------


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


def test_an_empty_window_is_refused_by_name(model: Embedder) -> None:
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


def test_loudness_alone_is_no_other_modality_but_silence_is_heard(model: Embedder) -> None:
    loud, soft, silent = (
        model.embed([window(clips=clip(x))])[0].unimodal["audio"]
        for x in (sound(4, 5), sound(4, 5, LOUD // 2), np.zeros(80_000, np.int16))
    )
    assert distance(loud, soft) < distance(loud, silent) / 3


# -- tokens ------------------------------------------------------------------------------------------------------


def tokens(readings):
    return tokenize(readings, {}, START, END, 4_096, 64)


def test_ten_readings_of_eight_channels_are_eight_tokens() -> None:
    assert len(tokens(rows(8, 10))) == 8


def test_patches_hold_at_most_sixteen_observations() -> None:
    assert len(tokens(rows(2, 40))) == 2 * -(-40 // SLOTS)


@pytest.mark.parametrize(("channels", "count"), [(3, 1_000), (64, 100), (8, 5_000)])
def test_fast_channels_stay_within_the_token_budget(channels: int, count: int) -> None:
    assert channels <= len(tokens(rows(channels, count))) <= TOKENS_MAX


def test_a_missing_value_is_seen_as_missing_and_not_as_zero() -> None:
    missing = tokens([(START + i, {"a": None if i % 2 else 3.0}) for i in range(10)])
    zero = tokens([(START + i, {"a": 0.0 if i % 2 else 3.0}) for i in range(10)])
    sparse = tokens([(START + i, {"a": 3.0}) for i in range(10)])
    assert not np.array_equal(missing.features, zero.features)
    np.testing.assert_allclose(
        missing.levels[:, :8], sparse.levels[:, :8], atol=1e-6
    )  # the level is that of what was seen


def test_captions_above_the_limit_are_spread_over_the_window_without_repeats() -> None:
    kept = window_captions([(i, f"note {i // 2}") for i in range(40)])
    assert [text for _, text in kept] == [f"note {i}" for i in (0, 3, 7, 11, 15, 19)]


def test_frames_of_clips_are_whole_seconds_and_the_rest_only_where_it_matters() -> None:
    assert frame_starts(80_000) == [0, 16_000, 32_000, 48_000, 64_000]
    assert frame_starts(81_000) == frame_starts(80_000)
    assert frame_starts(88_000)[-1] == 80_000
    assert len(window_frames([(0, np.zeros(960_000, np.int16))])) == FRAMES_MAX
    assert spread(60, 8) == [0, 8, 16, 25, 33, 42, 50, 59]


def test_the_log_mel_peaks_in_the_band_of_a_tone_and_is_flat_at_silence() -> None:
    time = torch.arange(16_000) / 16_000
    low, high = (log_mel(torch.sin(2 * torch.pi * f * time)[None])[0].mean(-1).argmax() for f in (300.0, 3_000.0))
    assert low < high
    assert (log_mel(torch.zeros(1, 16_000)) == -8).all()


def test_hashes_never_change() -> None:
    assert stable_hash("rain") == 0xDF42FDEC14E5093D  # another number would orphan every weight file there is
    assert words("Héllo, Wörld_2!") == ["héllo", "wörld_2"]
    assert len(words("x " * 100)) == WORDS_MAX
    assert len(read_caption("", 512)) == 1


# -- attention -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_a_row_that_is_masked_entirely_is_finite_and_attends_to_nothing(training: bool) -> None:
    torch.manual_seed(0)
    x, mask = torch.randn(2, 5, 32), torch.tensor([[True] * 5, [False] * 5])
    attention = Attention(32, 2).train(training)
    out, weights = attention.weighed(x, x, mask)
    assert (attention(x, x, mask)[1] == 0).all()
    assert (out[1] == 0).all()
    assert (weights[1] == 0).all()
    assert SelfBlock(32, 2).train(training)(x, mask).isfinite().all()
    (CrossBlock(32, 2).train(training)(x, x, mask)[0].sum()).backward()


def test_a_masked_token_changes_nothing_whatever_it_holds() -> None:
    torch.manual_seed(0)
    block = SelfBlock(32, 2).eval()
    x, mask = torch.randn(2, 6, 32), torch.tensor([[True] * 4 + [False] * 2] * 2)
    other = torch.where(mask.unsqueeze(-1), x, 1e6)
    assert torch.equal(block(x, mask)[:, :4], block(other, mask)[:, :4])


@pytest.mark.parametrize("length", [16, 128])
def test_what_stands_in_the_padding_of_a_sensor_batch_changes_nothing(model: Embedder, length: int) -> None:
    held = [tokens(rows(n)) for n in (3, 12, length)]
    batch = stack_sensors(held, 8, length)
    mask = batch[-1]
    filled = [
        torch.where(mask.reshape(8, length, *[1] * (part.dim() - 2)), part, torch.full_like(part, 7))
        for part in batch[:-1]
    ]
    with torch.inference_mode():
        patches = model._network.encoder("sensor").patches
        one, two = patches(*batch), patches(*filled, mask)
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a, b)
        assert a.isfinite().all()  # rows of nothing included


def test_what_stands_in_the_padding_of_sounds_and_captions_changes_nothing(model: Embedder) -> None:
    pool, sentence = (model._network.encoder("audio").pool, model._network.encoder("caption").sentence)
    torch.manual_seed(0)
    frames, levels, mask = (
        torch.randn(8, FRAMES_MAX, 256),
        torch.randn(8, FRAMES_MAX, 128),
        torch.rand(8, FRAMES_MAX) > 0.5,
    )
    mask[0] = False
    pieces, words_mask = stack_captions([read_caption(text, 512) for text in ("rain", "a loud pump", "")], 8, 8)
    with torch.inference_mode():
        for a, b in zip(
            (*pool(frames, levels, mask), sentence(pieces, words_mask)),
            (
                *pool(*(torch.where(mask.unsqueeze(-1), x, 1e5) for x in (frames, levels)), mask),
                sentence(torch.where(words_mask.unsqueeze(-1), pieces, 9), words_mask),
            ),
            strict=True,
        ):
            assert torch.equal(a, b)
            assert a.isfinite().all()


def test_the_two_ways_to_attend_agree() -> None:
    torch.manual_seed(0)
    attention, x = Attention(64, 2), torch.randn(3, 7, 64)
    mask = torch.rand(3, 7) > 0.3
    torch.testing.assert_close(attention(x, x, mask), attention.weighed(x, x, mask)[0])


@pytest.mark.parametrize("kind", ["attention", "attention, whitened", "concat", "mean"])
def test_every_fusion_ignores_what_an_absent_modality_holds(kind: str) -> None:
    torch.manual_seed(0)
    config = replace(preset("tiny"), fusion=kind.partition(",")[0], whitened="whitened" in kind)
    sizes = {"sensor": (4, 32), "audio": (8, 256), "caption": (6, SHARED_DIM)}
    fusion = Fusion(config, sizes).eval()
    rng = np.random.default_rng(0)
    for whitened in fusion.whitened.values():
        whitened.measure(rng.normal(size=(600, DIM)), rng.normal(size=(500, DIM)))
    present = torch.tensor([[True, False, True]] * 8)
    parts = {name: torch.randn(8, *size) for name, size in sizes.items()}
    unimodal, when = torch.nn.functional.normalize(torch.randn(8, 3, SHARED_DIM), dim=-1), torch.rand(8, 18)
    mask, private = present[:, fusion.owner], torch.nn.functional.normalize(torch.randn(8, 3, PRIVATE_DIM), dim=-1)
    one, attention = fusion(FusionInput(parts, when, mask, unimodal, private, present))
    other = {**parts, "audio": parts["audio"] + 100}
    off = torch.tensor([0.0, 5.0, 0.0])[:, None]
    two, _ = fusion(FusionInput(other, when, mask, unimodal + off, private + off, present))
    assert torch.equal(one, two)
    torch.testing.assert_close(attention.sum(-1), torch.ones(8))
    assert (attention[:, 1] == 0).all()
    torch.testing.assert_close(one.norm(dim=-1), torch.ones(8))


@pytest.mark.parametrize("kind", ["attention", "attention, whitened", "concat", "mean"])
@pytest.mark.parametrize("training", [False, True])
def test_a_row_of_which_nothing_is_present_fuses_to_zero_with_finite_gradients(kind: str, training: bool) -> None:
    torch.manual_seed(0)
    fusion = kind.partition(",")[0]
    network = Network(replace(preset("tiny"), fusion=fusion, whitened="whitened" in kind)).train(training)
    note = network.encoder("caption").read(window(captions=[(START, "rain")]))
    encoded = network.encoder("caption")([note, note], 2)
    fused, attention = network.fusion(network.gather(4, {"caption": (torch.tensor([0, 2]), encoded)}))
    assert (fused[[1, 3]] == 0).all()
    assert (attention[[1, 3]] == 0).all()
    torch.testing.assert_close(fused[[0, 2]].norm(dim=-1), torch.ones(2))
    fused.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


# -- folders -------------------------------------------------------------------------------------------------------


def saved(folder: Path) -> Path:
    torch.manual_seed(1)
    write_checkpoint(folder, Network(preset("tiny")), "# a test\n")
    return folder


def test_a_saved_model_comes_back_with_the_same_version_and_vectors(tmp_path: Path) -> None:
    one, two = models.load(saved(tmp_path / "a")), models.load(saved(tmp_path / "b"))
    assert one.version == two.version
    assert one.version.startswith("tiny-")
    assert digest(one.embed([window(rows())])[0]) == digest(two.embed([window(rows())])[0])


def test_a_field_that_came_later_changes_neither_folder_nor_version_where_it_is_as_it_was(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    assert "whitened" not in json.loads((folder / "config.json").read_text())
    config, other = preset("tiny"), replace(preset("tiny"), whitened=True)
    assert config.identity() != other.identity()
    for one in (config, other):
        assert ModelConfig.from_json(one.to_json(), "here") == one


def test_other_weights_are_another_version(tmp_path: Path, model: Embedder) -> None:
    torch.manual_seed(2)
    write_checkpoint(tmp_path, Network(preset("tiny")), "")
    assert len({models.load(tmp_path).version, models.load(saved(tmp_path / "a")).version, model.version}) == 3


@pytest.mark.parametrize(
    "harm", ["missing folder", "no weights", "truncated", "other shapes", "not json", "unknown field", "nan"]
)
def test_a_wrong_folder_is_one_clear_error_that_names_the_way_out(tmp_path: Path, harm: str) -> None:
    folder = saved(tmp_path / "m")
    weights, config = folder / "model.safetensors", folder / "config.json"
    if harm == "missing folder":
        shutil.rmtree(folder)
    elif harm == "no weights":
        weights.unlink()
    elif harm == "truncated":
        weights.write_bytes(weights.read_bytes()[:1_000])
    elif harm == "other shapes":
        config.write_text(config.read_text().replace('"sensor_dim": 32', '"sensor_dim": 64'))
    elif harm == "not json":
        config.write_text("{")
    elif harm == "unknown field":
        config.write_text(json.dumps({**json.loads(config.read_text()), "colour": 1}))
    else:
        network = Network(preset("tiny"))
        network.logit_bias.data.fill_(math.nan)
        write_checkpoint(folder, network, "")
    with pytest.raises(models.ModelError, match=r"python -m models\.training") as caught:
        models.load(folder)
    assert "m" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_the_shipped_folder_says_where_it_comes_from() -> None:
    card = (models.SHIPPED / "card.md").read_text()
    assert "python -m models.training" in card
    assert "Fold 5" in card
    assert "CC BY" in (models.SHIPPED.parent / "ATTRIBUTION.txt").read_text()


def test_importing_models_does_not_pay_for_torch() -> None:
    code = "import sys, models; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == "False"
