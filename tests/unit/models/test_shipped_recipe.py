"""Training: what it reads, that it learns, the same twice over; and what the shipped weights have learnt."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import models
from models.checkpoint import write_checkpoint
from models.config import preset
from models.embedder import Embedder
from models.evaluation.metrics import roc_auc
from models.interface import WindowInput
from models.training import shipped as training
from models.training import synthetic
from models.training.esc10 import CLASS_OF_SOUND, TEXT_TO_SOUND, Esc10Clip, check_sounds

ESC10 = Path(__file__).resolve().parents[4] / "shared" / "data" / "esc10"


def tone(sound: int, seed: int) -> np.ndarray:
    """Two seconds of a tone of its class with some noise, int16 at 16 kHz."""
    rng = np.random.default_rng(seed)
    wave = np.sin(np.arange(32_000) * 2 * np.pi * (200 + 350 * sound) / 16_000) + rng.normal(0, 0.1, 32_000)
    return (wave * 6_000).astype(np.int16)


def made_up_clips() -> list[Esc10Clip]:
    return [
        Esc10Clip(f"{fold}-{sound}", fold, sound, tone(sound, 10 * fold + sound))
        for fold in (1, 2, 3)
        for sound in range(10)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for fold in (1, 4, 5):
        for name in ("rain", "rooster"):
            target = tmp_path / f"fold{fold}" / name
            target.mkdir(parents=True)
            soundfile.write(target / f"{fold}-{name}.ogg", np.zeros(44_100, np.float32), 44_100)
    return tmp_path


def test_fold_five_is_never_read(folder: Path) -> None:
    assert {clip.fold for clip in training.read_clips(folder)} == {1, 4}


def test_clips_are_read_at_16_khz_with_their_class(folder: Path) -> None:
    clips = training.read_clips(folder)
    assert {synthetic.SOUND_NAMES[clip.sound] for clip in clips} == {"rain", "rooster"}
    assert all(clip.samples.dtype == np.int16 and abs(len(clip.samples) - 16_000) < 10 for clip in clips)


def test_a_folder_without_clips_is_an_error_that_names_the_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert training.main(["--clips", str(tmp_path), "--out", str(tmp_path / "m")]) == 2
    assert "--clips" in capsys.readouterr().err


@pytest.mark.parametrize("fusion", ["concat", "mean"])
def test_the_baselines_of_fusion_are_trained_saved_and_loaded_like_the_rest(fusion: str, tmp_path: Path) -> None:
    network = training.train(made_up_clips(), replace(preset("tiny"), fusion=fusion), 1, seed=5)
    write_checkpoint(tmp_path, network, "")
    window = WindowInput(0, 10_000, [(0, {"a": 1.0})], [(0, tone(1, 1))], [(0, "rain")])
    (vectors,) = models.load(tmp_path).embed([window])
    assert vectors.attention == dict.fromkeys(("sensor", "audio", "caption"), pytest.approx(1 / 3))


def test_training_twice_with_one_seed_gives_the_same_weights() -> None:
    one, two = (training.train(made_up_clips(), preset("tiny"), 2, seed=5) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_training_lowers_the_loss_on_drawn_windows() -> None:
    clips = made_up_clips()
    mels = training.clip_mels(clips)

    def loss(steps: int) -> float:
        network = training.train(clips, preset("tiny"), steps, seed=5)
        rng = random.Random(1)
        with torch.no_grad():
            parts = training.losses(network, training.draw(clips, mels, list(range(30)), network, rng), rng)
        return float(sum(parts.values()))

    assert loss(30) < 0.9 * loss(1)


def test_the_same_seed_draws_the_same_pump_and_the_same_words() -> None:
    one, two = random.Random(3), random.Random(3)
    assert synthetic.sensor_window(1, one) == synthetic.sensor_window(1, two)
    assert synthetic.caption(2, 1, one) == synthetic.caption(2, 1, two)


def test_every_state_of_the_pump_is_seen_by_at_least_one_gauge() -> None:
    rng = random.Random(0)
    for state in range(1, synthetic.SENSOR_CONDITIONS):
        for _ in range(50):
            window = synthetic.sensor_window(state, rng)
            assert window.units
            assert set(window.units) == set(window.readings[0][1])


def test_windows_of_one_pump_differ_in_their_noise_only() -> None:
    rng = random.Random(4)
    for state in range(synthetic.SENSOR_CONDITIONS):
        one, other = synthetic.sensor_windows(state, rng, 2)
        assert (one.units, one.end_ms) == (other.units, other.end_ms)
        assert [at for at, _ in one.readings] == [at for at, _ in other.readings]
        for name in one.units:
            values = [[row[name] for _, row in window.readings if row[name] is not None] for window in (one, other)]
            assert values[0] != values[1]
            if all(values):
                assert np.mean(values[0]) == pytest.approx(np.mean(values[1]), rel=0.2)


def test_the_prompts_of_the_measurement_are_not_among_the_training_captions() -> None:
    rng = random.Random(0)
    written = {synthetic.caption(s, c, rng).text for s in range(10) for c in range(8) for _ in range(200)}
    assert not written & {*synthetic.UNSEEN_PROMPTS.values(), *synthetic.UNSEEN_STATES}


def test_auc_is_one_for_apart_half_for_equal_and_zero_for_reversed() -> None:
    low, high = np.array([0.0, 1.0]), np.array([2.0, 3.0])
    assert (roc_auc(low, high), roc_auc(low, low), roc_auc(high, low)) == (1.0, 0.5, 0.0)


# -- the weights that ship -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped() -> Embedder:
    return models.load()


def test_a_pump_that_runs_hot_is_found_by_text_among_others(shipped: Embedder) -> None:
    rng = random.Random(77)
    windows, states = [], [i % 4 for i in range(80)]
    for state in states:
        windows.append(synthetic.sensor_window(state, rng))
    vectors = np.stack([v.joint for v in shipped.embed(windows)])
    asked = np.stack([shipped.embed_text(text) for text in synthetic.UNSEEN_STATES])
    assert ((vectors @ asked.T).argmax(1) == states).mean() > 0.5  # chance is 0.25


def test_an_odd_note_lies_farther_from_calm_notes_than_they_lie_from_each_other(shipped: Embedder) -> None:
    def vector(text: str) -> np.ndarray:
        return shipped.embed([WindowInput(0, 10_000, captions=[(0, text)])])[0].unimodal["caption"]

    calm = [
        vector(f"{words}, rain outside")
        for words in ("pump-03 works as usual", "daily inspection done", "no findings today", "all fine at pump-03")
    ]
    spread = max(1 - float(a @ b) for a in calm for b in calm)
    for text in ("thick smoke comes out of pump-03", "pump-03 loses oil", "pump-03 shakes badly", "gearbox grinding"):
        assert min(1 - float(vector(text) @ c) for c in calm) > spread, text


@pytest.mark.recording
def test_the_shipped_weights_know_the_sounds_they_were_trained_on(shipped: Embedder) -> None:
    if not ESC10.is_dir():
        pytest.skip(f"no ESC-10 at {ESC10}: the shipped weights are not heard in this run")
    clips = [clip for clip in training.read_clips(ESC10) if clip.fold == 4]
    found = check_sounds(shipped._network, clips)
    assert found[CLASS_OF_SOUND] > 0.8
    assert found[TEXT_TO_SOUND] > 0.8
