"""What the service produced, to be looked at by a test: the record, and outputs that keep it in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from streams.events.topics import INPUTS
from streams.kafka.producer import Headers, Outputs


@dataclass(frozen=True, slots=True)
class Sent:
    """A record that the service produced. `topic`: the short name."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


class ReadableOutputs(Outputs, Protocol):
    """Outputs whose records can be read; they outlive a crash of the worker."""

    @property
    def sent(self) -> Sequence[Sent]:
        """Everything produced to the output topics so far, each topic's in order."""
        ...


class RecordedOutputs:
    """Outputs that keep everything in memory."""

    def __init__(self, append: Callable[[Sent, int, int | None], object] | None = None) -> None:
        """`append` is given what is sent to an input topic, with its partition and timestamp."""
        self.sent: list[Sent] = []
        self._append = append

    async def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None,
        headers: Headers = (),
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> None:
        sent = Sent(topic, key, value, tuple(headers))
        self.sent.append(sent)
        if self._append is not None and topic in INPUTS and partition is not None:
            self._append(sent, partition, timestamp_ms)
