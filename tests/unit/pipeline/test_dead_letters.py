"""Bad input in the middle of good traffic, through the whole service but Kafka."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from streams.events.dead_letter import parse_letter, retry_record
from streams.events.types import RawRecord
from streams.settings import Settings
from streams.testing import Harness, Sent
from tests.bad_inputs import AUDIO, BAD_INPUTS, CAPTIONS, CLIPS, NOW_MS, READINGS, encode, tone
from tests.standin import StandInModel


def harness(folder: Path) -> Harness:
    return Harness(folder, model=StandInModel(), settings=Settings(state=folder, audio=AUDIO), now_ms=NOW_MS + 60_000)


async def good_traffic(h: Harness, second: int) -> None:
    time = NOW_MS + second * 1_000
    await h.push(READINGS, "pump", {"time": time, "values": {"flow": 3.0}}, settle=False)
    if second % 10 == 0:
        clip = encode(tone(), 16_000, "FLAC")
        await h.push(CLIPS, "pump", clip, headers={"time": str(time).encode()}, settle=False)
        await h.push(CAPTIONS, "pump", {"time": time, "text": "all well"}, settle=False)


async def windows(folder: Path, *, with_bad_input: bool) -> tuple[list[Any], list[Sent]]:
    async with harness(folder) as h:
        bad = iter(BAD_INPUTS if with_bad_input else [])
        for second in range(60):
            await good_traffic(h, second)
            for item in (next(bad, None), next(bad, None)):
                if item is not None:
                    await h.push(item.topic, item.key, item.value, headers=dict(item.headers), settle=False)
            if second % 7 == 0:
                await h.settle()
        assert next(bad, None) is None
        await h.settle()
        await h.advance(60_000)
        # nothing bad holds a commit back
        assert h.commit() == {tp: end for tp, end in h.ends().items() if end}
        return [(w.stream, w.start_ms, w.events, w.modalities) for w in h.windows()], h.dead()


async def test_every_bad_input_ends_in_dead_letters_once_and_the_rest_is_as_without_it(tmp_path: Path) -> None:
    undisturbed, none = await windows(tmp_path / "good", with_bad_input=False)
    disturbed, dead = await windows(tmp_path / "bad", with_bad_input=True)
    assert none == []
    assert len(undisturbed) == 6
    assert disturbed == undisturbed

    letters = [parse_letter(RawRecord("dead-letters", 0, i, 0, d.key, d.value, d.headers)) for i, d in enumerate(dead)]
    assert len({letter.origin for letter in letters}) == len(letters) == len(BAD_INPUTS)
    for topic in (READINGS, CLIPS, CAPTIONS):
        # of one topic they come in the order in which they were sent
        sent = [(bad.reason.value, bad.key, bad.headers) for bad in BAD_INPUTS if bad.topic == topic]
        found = [(letter.reason, letter.key, letter.headers) for letter in letters if letter.topic == topic]
        assert found == sent


async def test_a_dead_letter_that_is_retried_unmended_comes_back_with_its_count(tmp_path: Path) -> None:
    async with harness(tmp_path) as h:
        await h.push(READINGS, "pump", b"flow=1.5")
        for retries in range(3):
            newest = h.dead()[-1]
            raw = RawRecord("dead-letters", 0, len(h.dead()), 0, newest.key, newest.value, newest.headers)
            letter = parse_letter(raw)
            assert (letter.reason, letter.retries, letter.offset) == ("not_json", retries, retries)
            topic, key, value, headers = retry_record(letter)
            assert value == b"flow=1.5"
            await h.push(topic, key, value, headers=dict(headers))
