"""Which inputs are caught up, as the broker confirmed it: a backlogged input is never taken for a quiet one."""

from __future__ import annotations

from streams.kafka.progress import InputProgress
from streams.pipeline.state import PartitionState

_POLL_FRESH_MS = 3_000  # a partition counts as caught up only if the broker confirmed it this recently
_LOOKS = 4  # of the ticker, that must find the same


def caught_up(partition: PartitionState, modality: int, progress: InputProgress | None) -> bool:
    """Whether everything that the broker holds of this input was taken in."""
    if progress is None or progress.highwater is None or not _fresh(partition, modality, progress):
        return False
    if partition.read[modality] >= progress.highwater:
        return True
    # the looks say nothing of what was written since the last of them
    return partition.looks_at_end[modality] >= _LOOKS and _at_end(partition, modality, progress)


def look(partition: PartitionState, modality: int, progress: InputProgress | None) -> None:
    """To be called at every tick: count how often in a row the input ended in records that are never delivered.

    A log may end in control records. Then the position decides, if all that was delivered was taken in; but for a
    moment a position is ahead of records that are on their way to us, so that one look says nothing.
    """
    at_end = progress is not None and _fresh(partition, modality, progress) and _at_end(partition, modality, progress)
    partition.looks_at_end[modality] = partition.looks_at_end[modality] + 1 if at_end else 0


def _fresh(partition: PartitionState, modality: int, progress: InputProgress) -> bool:
    if progress.polled_ms_ago is None:
        return False
    return not partition.in_hand[modality] and progress.polled_ms_ago < _POLL_FRESH_MS


def _at_end(partition: PartitionState, modality: int, progress: InputProgress) -> bool:
    if progress.highwater is None:
        return False
    delivered = partition.resume[modality] if progress.delivered is None else progress.delivered
    return partition.read[modality] >= delivered and progress.position >= progress.highwater
