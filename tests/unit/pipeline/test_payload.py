"""A window as a point and back: offsets, what the operator must know after a restart, what repeats may change."""

from __future__ import annotations

import json
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from streams.drift import Verdict
from streams.events.types import Caption, IncidentEvent, Reading, WindowRecord
from streams.pipeline.payload import (
    BOOKKEEPING,
    WindowPayload,
    bookkeeping,
    decode_offsets,
    encode_offsets,
    mask_of,
    payload_from,
    payload_of,
    stored_window,
    window_record,
)
from streams.windows.types import Fired

VERDICT = Verdict("ok", 0.5, 22, None, (), {"joint": 0.5}, {"sensor": 1.0}, "another window size", 3)
HERE = {"sensor": "id-1/0", "audio": "id-2/0", "caption": "id-3/0"}


def window(**changes: object) -> Fired:
    made = Fired(
        stream="pump",
        start_ms=10_000,
        end_ms=20_000,
        firing=0,
        readings=[Reading(11_000, {"flow": 3.0}), Reading(12_000, {"flow": 5.0})],
        clips=[],
        captions=[Caption(13_000, "all quiet"), Caption(14_000, "all quiet"), Caption(15_000, "x" * 500)],
        home_events=(2, 0, 3),
        duplicates=1,
        members=((7, 8, 8), (), (1, 2, 300)),
        stored=None,
        interval_ms=1_000,
    )
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def made(of: Fired, *, verdict: Verdict = VERDICT) -> WindowPayload:
    return payload_of(
        of,
        revision=2,
        content_hash="abc",
        model="m1",
        verdict=verdict,
        attention={"sensor": 1.0},
        drift="c3RhdGU=",
        origin=HERE,
        final_before_ms=5_000,
    )


def through_a_store(payload: WindowPayload) -> dict[str, Any]:
    """As a store would give it back: stores hold JSON."""
    given_back: dict[str, Any] = json.loads(json.dumps(payload.to_dict()))
    return given_back


# -- there and back -----------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 1 << 62)))
def test_offsets_come_back_as_they_went_in(offsets: list[int]) -> None:
    assert decode_offsets(encode_offsets(offsets)) == frozenset(offsets)


def test_offsets_that_follow_each_other_take_little_room() -> None:
    assert len(encode_offsets(range(10**9, 10**9 + 600))) < 830
    assert encode_offsets([]) == ""


def test_a_payload_comes_back_from_a_store_as_it_went_in() -> None:
    step = IncidentEvent("opened", "i", "pump", 0, "w", 20_000, 10_000, 50, "pump: odd", {"sensor": 1.0})
    payload = made(window(), verdict=Verdict("alarm", 1.5, 60, "i", (step,), {"joint": 1.5}, {"sensor": 1.0}))
    again = payload_from(through_a_store(payload))
    assert again == payload
    assert msgspec.convert(again.steps[0], IncidentEvent) == step


def test_a_payload_of_a_store_that_is_older_is_read_with_the_defaults() -> None:
    kept = through_a_store(made(window()))
    for name in ("reason", "unwatched", "bank", "interval", "silent"):
        del kept[name]
    found = payload_from(kept)
    assert (found.reason, found.unwatched, found.bank, found.interval, found.silent) == (None, 0, False, None, None)


def test_what_is_final_has_the_name_on_disk_that_older_stores_have() -> None:
    assert through_a_store(made(window()))["sealed"] == 5_000


def test_a_payload_carries_why_a_stream_is_warming_what_is_not_watched_and_the_usual_interval() -> None:
    payload = made(window())
    assert (payload.reason, payload.unwatched, payload.interval) == ("another window size", 3, 1_000)


# -- what the operator must know ----------------------------------------------------------------------------------


def test_a_payload_says_what_the_operator_must_know_after_a_restart() -> None:
    found = stored_window(payload_from(through_a_store(made(window()))), HERE)
    assert (found.start_ms, found.revision, found.content_hash) == (10_000, 2, "abc")
    assert found.members == (frozenset({7, 8}), frozenset(), frozenset({1, 2, 300}))
    assert not found.foreign


@pytest.mark.parametrize(
    "origin",
    [
        {"sensor": "id-9/0", "caption": "id-3/0"},  # one topic was deleted and made anew
        {"sensor": "id-1/4", "caption": "id-3/4"},  # the stream was in another partition
        "a cluster id",  # a store from before topics were told apart
    ],
)
def test_offsets_of_other_records_say_nothing_and_the_window_is_foreign(origin: Any) -> None:
    found = stored_window(payload_from(through_a_store(made(window())) | {"origin": origin}), HERE)
    assert found.members == (frozenset(), frozenset(), frozenset())
    assert found.foreign


def test_a_topic_that_a_window_holds_nothing_of_has_no_say() -> None:
    payload = made(window())  # no clips
    assert not stored_window(payload, HERE | {"audio": "made anew/0"}).foreign


# -- what is shown ------------------------------------------------------------------------------------------------


def test_a_mask_has_a_bit_for_every_modality_present() -> None:
    assert mask_of(window()) == 0b101
    assert mask_of(window(captions=[])) == 0b001
    assert made(window()).modalities == ["sensor", "caption"]


def test_captions_are_shown_once_each_and_cut() -> None:
    assert made(window()).captions == ["all quiet", "x" * 200]


def test_bookkeeping_is_all_that_repeats_may_change() -> None:
    once, twice = window(), window(duplicates=5, members=((7, 8, 9), (), (1, 2, 300)))
    before, after = through_a_store(made(once)), through_a_store(made(twice))
    assert {key for key in before if before[key] != after[key]} == {"duplicates", "members"}
    assert set(bookkeeping(once, HERE, None)) == set(BOOKKEEPING)


def test_a_window_record_counts_the_events_whose_last_window_it_is() -> None:
    record = window_record("id", made(window(home_events=(1, 0, 0))))
    assert isinstance(record, WindowRecord)
    assert (record.events, record.duplicates, record.modalities) == ({"sensor": 1}, 1, ["sensor", "caption"])
