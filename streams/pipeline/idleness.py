"""Which inputs are caught up, as the broker confirmed it: a backlogged input is never taken for a quiet one."""

from __future__ import annotations

from streams.kafka.progress import InputProgress
from streams.pipeline.state import PartitionState

_POLL_FRESH_MS = 3_000  # a partition counts as caught up only if the broker confirmed it this recently


def caught_up(partition: PartitionState, modality: int, progress: InputProgress | None) -> bool:
    """Whether everything that the broker holds of this input was taken in."""
    if progress is None or progress.highwater is None or progress.polled_ms_ago is None:
        return False
    if partition.in_hand[modality] or progress.polled_ms_ago >= _POLL_FRESH_MS:
        return False
    read = partition.read[modality]
    if read >= progress.highwater:
        return True
    # a log may end in control records that are never delivered: then the position decides, if all that was delivered
    # was taken in
    delivered = partition.resume[modality] if progress.delivered is None else progress.delivered
    return read >= delivered and progress.position >= progress.highwater
