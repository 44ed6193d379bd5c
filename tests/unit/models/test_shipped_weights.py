"""What the shipped weights can do with data from outside: levels on SKAB, free text on ESC-10. Skipped without it."""

from __future__ import annotations

import csv
import random
import re
from pathlib import Path

import numpy as np
import pytest

import models
from models.embedder import Embedder
from models.evaluation.metrics import roc_auc
from models.interface import WindowInput
from models.training import synthetic
from models.training.esc10 import read_clips
from tests.conftest import DATA

pytestmark = pytest.mark.recording
STEPS = 10  # readings of a window, one a second
BANK = 40  # windows: the calm beginning of each file
NEIGHBOURS = 5

# Words that no caption of training holds, but words with parts of them.
PARTS = {
    "baby_cry": ("babies", "crybaby"),
    "chainsaw": ("chainsaws", "sawmill"),
    "clock_tick": ("clocks", "ticktock"),
    "dog_bark": ("barked",),
    "fire_crackling": ("campfires", "crackle", "bonfire"),
    "helicopter": ("helicopters",),
    "person_sneeze": ("sneezer", "sneezy"),
    "rain": ("rainfall", "raindrops", "rainy"),
    "rooster": ("roosters", "crowed"),
    "sea_waves": ("seashore", "oceans", "seawaves"),
}


@pytest.fixture(scope="module")
def shipped() -> Embedder:
    return models.load()


def outside(name: str) -> Path:
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"no {name} at {folder}: the shipped weights are not measured on it in this run")
    return folder


# -- levels ---------------------------------------------------------------------------------------------------------


def neighbour_distances(rows: np.ndarray) -> np.ndarray:
    """Mean L2 distance to the nearest NEIGHBOURS of the first BANK rows; on unit vectors this ranks as cosine does."""
    apart = np.sqrt(((rows[:, None] - rows[None, :BANK]) ** 2).sum(-1))
    return np.sort(apart, axis=1)[:, :NEIGHBOURS].mean(1)


def test_magnitude_drift_is_as_visible_in_the_vectors_as_in_the_raw_values(shipped: Embedder) -> None:
    """SKAB, group `other`: AUC of cosine kNN on our vectors, beside that of L2 kNN on robust means and spreads."""
    ours: dict[str, list[float]] = {"sensor": [], "joint": []}
    raw = []
    for path in sorted((outside("skab") / "other").glob("*.csv")):
        head, *body = csv.reader(path.open(), delimiter=";")
        values = np.array([[float(cell) for cell in row[1:9]] for row in body])
        odd_rows = np.array([float(row[9]) for row in body])
        count = len(values) // STEPS
        cut = values[: count * STEPS].reshape(count, STEPS, -1)
        odd = odd_rows[: count * STEPS].reshape(count, STEPS).mean(1) >= 0.5
        calm = values[: BANK * STEPS]
        middle = np.median(calm, axis=0)
        scale = np.median(np.abs(calm - middle), axis=0) * 1.4826 + 1e-9
        z = np.clip((cut - middle) / scale, -20, 20)
        scored = np.arange(count) >= BANK

        def auc(rows: np.ndarray, odd: np.ndarray = odd, scored: np.ndarray = scored) -> float:
            far = neighbour_distances(rows)
            return roc_auc(far[scored & ~odd], far[scored & odd])

        raw.append(auc(np.concatenate([z.mean(1), z.std(1)], axis=1)))
        windows = [
            WindowInput(
                i * 10_000,
                i * 10_000 + 10_000,
                [(i * 10_000 + k * 1_000, dict(zip(head[1:9], row, strict=True))) for k, row in enumerate(cut[i])],
            )
            for i in range(count)
        ]
        vectors = shipped.embed(windows)
        ours["sensor"].append(auc(np.stack([v.unimodal["sensor"] for v in vectors])))
        ours["joint"].append(auc(np.stack([v.joint for v in vectors])))
    for name, values_of in ours.items():
        assert np.mean(values_of) > np.mean(raw) - 0.02, (name, np.mean(values_of), np.mean(raw))


# -- free text ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sounds(shipped: Embedder) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and classes of the clips of fold 4."""
    clips = read_clips(outside("esc10"), [4])
    vectors = shipped.embed([WindowInput(0, 5_000, clips=[(0, clip.samples)]) for clip in clips])
    return np.stack([v.unimodal["audio"] for v in vectors]), np.array([clip.sound for clip in clips])


def nearest(shipped: Embedder, sounds: tuple[np.ndarray, np.ndarray], text: str, count: int) -> list[str]:
    vectors, truth = sounds
    order = np.argsort(-(vectors @ shipped.embed_text(text)), kind="stable")
    return [synthetic.SOUND_NAMES[truth[i]] for i in order[:count]]


@pytest.mark.parametrize(
    ("text", "sound"),
    [("chain saw noise", "chainsaw"), ("waves at the sea", "sea_waves"), ("a dog that barked", "dog_bark")],
)
def test_free_text_finds_the_sound(shipped: Embedder, sounds, text: str, sound: str) -> None:
    assert nearest(shipped, sounds, text, 3) == [sound] * 3


def test_words_that_share_parts_with_those_of_training_find_the_sound(shipped: Embedder, sounds) -> None:
    found = {word: nearest(shipped, sounds, word, 1)[0] for words in PARTS.values() for word in words}
    right = [found[word] == sound for sound, words in PARTS.items() for word in words]
    assert np.mean(right) >= 0.9, found


def test_those_words_are_in_no_caption_of_training() -> None:
    rng = random.Random(0)
    written = {
        word
        for sound in range(len(synthetic.SOUND_NAMES))
        for condition in range(len(synthetic.CONDITION_NAMES))
        for _ in range(200)
        for word in re.findall(r"\w+", synthetic.caption(sound, condition, rng).text.casefold())
    }
    assert not written & {word for words in PARTS.values() for word in words}
