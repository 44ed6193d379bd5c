"""Random variations for training: what may change, and what never does."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from models.encoders.augment import drop_words, vary_mels, vary_readings
from models.encoders.log_mel import FRAME_COLUMNS, MEL_BANDS, SILENCE
from models.training.augment import random_subsets, subset_of_bits, uniform_subsets


@pytest.mark.parametrize("text", ["rain", "a b", "smoke at the motor of pump 3", ""])
def test_words_are_dropped_in_order_and_never_all_of_them(text: str) -> None:
    lengths = set()
    for seed in range(200):
        kept = drop_words(text, random.Random(seed)).split()
        words = iter(text.split())
        assert all(word in words for word in kept)  # a subsequence
        assert bool(kept) == bool(text)
        lengths.add(len(kept))
    assert len(lengths) > 1 or len(text.split()) < 2


def test_readings_keep_their_times_lose_some_channels_never_all_and_stay_near_their_values() -> None:
    readings = [(t, {"a": 10.0 + t, "b": None, "c": math.nan}) for t in range(5)]
    dropped = 0
    for seed in range(200):
        varied = vary_readings(readings, random.Random(seed))
        assert [t for t, _ in varied] == [t for t, _ in readings]
        names = {name for _, row in varied for name in row}
        assert names
        assert all(set(row) == names for _, row in varied)
        dropped += len(names) < 3
        for (_, row), (_, before) in zip(varied, readings, strict=True):
            if "a" in row:
                assert row["a"] == pytest.approx(before["a"], rel=0.12)
            assert row.get("b") is None
            assert math.isnan(row.get("c", math.nan))
    assert 0 < dropped < 200
    assert readings == [(t, {"a": 10.0 + t, "b": None, "c": readings[t][1]["c"]}) for t in range(5)]  # not in place


def test_readings_without_a_channel_are_kept_as_they_are() -> None:
    assert vary_readings([], random.Random(0)) == []
    assert vary_readings([(3, {})], random.Random(0)) == [(3, {})]


def test_mels_keep_their_shape_stay_above_silence_and_are_not_changed_in_place() -> None:
    mels = torch.rand(3, MEL_BANDS, FRAME_COLUMNS) * 4 - 6
    before = mels.clone()
    for seed in range(30):
        varied = vary_mels(mels, random.Random(seed))
        assert varied.shape == mels.shape
        assert varied.isfinite().all()
        assert varied.min() >= SILENCE
        assert not torch.equal(varied, mels)
    assert torch.equal(mels, before)
    assert torch.equal(vary_mels(mels, random.Random(1)), vary_mels(mels, random.Random(1)))


@pytest.mark.parametrize("draw", [random_subsets, uniform_subsets])
def test_a_subset_is_part_of_what_is_present_and_empty_only_where_nothing_is(draw) -> None:
    present = torch.tensor([[True, True, True], [False, True, True], [True, False, False], [False] * 3] * 100)
    kept = draw(present, random.Random(0))
    assert not (kept & ~present).any()
    assert torch.equal(kept.any(-1), present.any(-1))
    full = np.unique(kept[::4].numpy(), axis=0)
    assert len(full) == 7  # every subset that is not empty comes up


def test_the_bits_of_a_number_choose_the_modalities_of_every_row() -> None:
    assert subset_of_bits(0b101, torch.zeros(2, 3)).tolist() == [[True, False, True]] * 2
