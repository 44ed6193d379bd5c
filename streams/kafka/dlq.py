"""`sensorium dlq`: looking through dead letters and late events, and sending them round again."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

from streams.events.dead_letter import Letter, parse_letter, retry_record, unique_letters
from streams.events.envelope import format_ms
from streams.kafka.clients import find_bootstrap, new_producer
from streams.kafka.reader import raw_record, read_all
from streams.serving.queries import QueryError
from streams.settings import Settings


@dataclass(frozen=True, slots=True)
class ShownLetter:
    """A letter as people and programs are shown it."""

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
            continue  # somebody else's record: nothing we could say of it
    letters.sort(key=lambda pair: pair[0])
    unique = unique_letters(letter for _, letter in letters)
    return [ShownLetter(letter) for letter in unique if reason in (None, letter.reason)]


async def find_letter(settings: Settings, origin: str, *, late: bool) -> ShownLetter:
    """The letter of one origin, written topic/partition/offset."""
    for letter in await read_letters(settings, late=late):
        if letter.origin == origin:
            return letter
    raise QueryError(f"no letter from {origin}; see what there is with: sensorium dlq ls{' --late' if late else ''}")


async def retry_letters(settings: Settings, *, origin: str | None, reason: str | None, late: bool) -> int:
    """Send letters back to where they came from; returns how many."""
    if origin is not None:
        letters = [await find_letter(settings, origin, late=late)]
    else:
        letters = await read_letters(settings, late=late, reason=reason)
    producer = new_producer(settings, find_bootstrap(settings))
    await producer.start()
    try:
        for shown in letters:
            topic, key, value, headers = retry_record(shown.letter)
            await producer.send_and_wait(topic, value, key=key, headers=headers)
    finally:
        await producer.stop()
    return len(letters)
