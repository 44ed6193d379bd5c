"""`sensorium dlq`: dead letters and late events are listed, shown, and sent again to where they came from."""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from typing import Any

import structlog

from streams.errors import DataError
from streams.events.dead_letter import Letter, parse_letter, retry_record, unique_letters
from streams.events.envelope import format_ms
from streams.events.types import Reason, Rejection
from streams.kafka.clients import find_bootstrap, new_producer
from streams.kafka.reader import raw_record, read_all
from streams.kafka.unpacking import unpack_batch
from streams.settings import Settings

log = structlog.get_logger(__name__)


class LetterError(DataError):
    """A letter that is not there, or that cannot be sent again; the message names the command that helps."""


@dataclass(frozen=True, slots=True)
class ShownLetter:
    """A letter in the form in which it is printed."""

    letter: Letter

    @property
    def origin(self) -> str:
        topic, partition, offset = self.letter.origin
        return f"{topic}/{partition}/{offset}"

    @property
    def stream(self) -> str:
        return self.letter.stream

    @property
    def reason(self) -> str:
        return self.letter.reason

    @property
    def detail(self) -> str:
        return self.letter.detail

    @property
    def stage(self) -> str:
        return self.letter.stage

    @property
    def first_seen(self) -> str | None:
        return None if self.letter.first_seen_ms is None else format_ms(self.letter.first_seen_ms)

    @property
    def headers(self) -> tuple[tuple[str, bytes], ...]:
        return self.letter.headers

    @property
    def value(self) -> bytes | None:
        return self.letter.value

    def to_json(self) -> dict[str, Any]:
        """Everything but the original bytes."""
        letter = self.letter
        return {
            "origin": self.origin,
            "stream": self.stream,
            "reason": letter.reason,
            "detail": letter.detail,
            "stage": letter.stage,
            "first_seen": self.first_seen,
            "retries": letter.retries,
            "events": letter.events,
            "bytes": len(letter.value or b""),
            "truncated": letter.truncated,
        }

    def body_json(self) -> dict[str, Any]:
        """Headers and the original bytes, base64."""
        return {
            "headers": {name: value.decode("utf-8", "backslashreplace") for name, value in self.headers},
            "value_base64": None if self.value is None else base64.b64encode(self.value).decode(),
        }


async def read_letters(settings: Settings, *, late: bool, reason: str | None = None) -> list[ShownLetter]:
    """All letters, the oldest first; each origin once, however often a restarted worker wrote it."""
    topic = settings.topic("late-events" if late else "dead-letters")
    letters = []
    async for record in read_all(settings, find_bootstrap(settings), [topic]):
        try:
            letters.append((record.timestamp, parse_letter(raw_record(record))))
        except ValueError:
            continue  # a record that we did not write
    letters.sort(key=lambda pair: pair[0])
    unique = unique_letters(letter for _, letter in letters)
    return [ShownLetter(letter) for letter in unique if reason in (None, letter.reason)]


async def find_letter(settings: Settings, origin: str, *, late: bool) -> ShownLetter:
    """The letter of one origin, written topic/partition/offset."""
    for letter in await read_letters(settings, late=late):
        if letter.origin == origin:
            return letter
    raise LetterError(f"no letter from {origin}; see what there is with: sensorium dlq ls{' --late' if late else ''}")


async def retry_letters(settings: Settings, *, origin: str | None, reason: str | None, late: bool) -> int:
    """Send letters back to where they came from; returns how many.

    A batch that could not be unpacked is unpacked now and its records are sent. What cannot be sent again (an excerpt,
    or a batch that still cannot be unpacked) raises `LetterError` where it was named, and is left out and logged where
    all of a reason are sent.
    """
    if origin is not None:
        letters = [await find_letter(settings, origin, late=late)]
    else:
        letters = await read_letters(settings, late=late, reason=reason)
    producer = new_producer(settings, find_bootstrap(settings))
    await producer.start()
    sent = 0
    try:
        for shown in letters:
            try:
                originals = _originals(shown.letter)
            except LetterError as error:
                if origin is not None:
                    raise
                log.warning("letter not sent", origin=shown.origin, reason=str(error))
                continue
            for letter in originals:
                topic, key, value, headers = retry_record(letter)
                await producer.send_and_wait(topic, value, key=key, headers=headers)
            sent += 1
    finally:
        await producer.stop()
    return sent


def _originals(letter: Letter) -> list[Letter]:
    """The letter itself, or one for each record of a batch that could not be unpacked before. Raises `LetterError`."""
    origin = "{}/{}/{}".format(*letter.origin)
    if letter.truncated is not None:
        raise LetterError(
            f"the letter from {origin} is an excerpt ({letter.truncated} bytes were too large for the cluster); "
            "the original is still there as long as the topic keeps it: send that one again"
        )
    if letter.reason != Reason.UNREADABLE or letter.value is None:
        return [letter]
    try:
        records = unpack_batch(letter.origin, letter.value)
    except Rejection as error:
        raise LetterError(
            f"the batch from {origin} still cannot be unpacked: {error.detail}; check the codecs with: sensorium doctor"
        ) from None
    if records is None:
        return [letter]
    return [
        replace(
            letter,
            offset=record.offset,
            first_seen_ms=record.timestamp_ms,
            key=record.key,
            value=record.value,
            headers=record.headers,
        )
        for record in records
    ]
