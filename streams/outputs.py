"""Where results go: a producer seam that the service fills with Kafka and the test harness with a list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

Headers = Sequence[tuple[str, bytes]]


class Outputs(Protocol):
    """Sends records and awaits their acknowledgement; waits (never drops) while the broker is away."""

    async def send(self, topic: str, value: bytes | None, *, key: bytes | None, headers: Headers = ()) -> None:
        """Returns when the record is acknowledged by all in-sync replicas. `topic` is the short name."""
        ...
