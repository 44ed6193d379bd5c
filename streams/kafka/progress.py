"""How far a consumer has got in one partition of an input."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class InputProgress:
    """Where the consumer stands in one partition, as the broker last confirmed."""

    position: int  # next offset to be fetched
    highwater: int | None
    polled_ms_ago: int | None  # since the broker last answered for this partition
    delivered: int | None = None  # one past the last record handed on; None: not known
