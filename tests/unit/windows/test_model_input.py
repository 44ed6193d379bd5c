"""A fired window as a model takes it."""

from __future__ import annotations

import numpy as np

from models.interface import WindowInput
from streams.events.types import Caption, Clip, Reading
from streams.windows.model_input import model_input


def test_events_become_the_content_of_their_modality_with_the_last_unit_of_each_channel() -> None:
    samples = np.arange(4, dtype=np.int16)
    readings = [
        Reading(time_ms=1, values={"p": 1.0, "t": None}, units={"p": "bar"}),
        Reading(time_ms=2, values={"p": 2.0}, units={"p": "kPa", "t": "C"}),
        Reading(time_ms=3, values={"p": 3.0}),
    ]
    clips = [Clip(time_ms=4, samples=samples, sha256="ab")]
    captions = [Caption(time_ms=5, text="rain", source="operator")]
    assert model_input(0, 10, readings, clips, captions) == WindowInput(
        start_ms=0,
        end_ms=10,
        readings=[(1, {"p": 1.0, "t": None}), (2, {"p": 2.0}), (3, {"p": 3.0})],
        clips=[(4, samples)],
        captions=[(5, "rain")],
        units={"p": "kPa", "t": "C"},
    )


def test_a_window_of_nothing_is_empty() -> None:
    assert model_input(0, 10, [], [], []) == WindowInput(0, 10, [], [], [])
