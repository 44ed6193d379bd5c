"""What encoders read of a window: patches of channels, words, frames of sound."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.encoders.caption import read_caption, window_captions
from models.encoders.log_mel import FRAMES_MAX, frame_starts, log_mel, spread, window_frames
from models.encoders.sensor_tokens import SLOTS, TOKENS_MAX
from models.encoders.text_hashing import WORDS_MAX, stable_hash, words
from tests.unit.models.windows import START, rows, tokens


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
