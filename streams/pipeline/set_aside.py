"""Events that become part of no window: sent to `dead-letters` or `late-events`, acknowledged, and then released."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import structlog

from streams.events.dead_letter import dead_letter, late_letter
from streams.events.types import MODALITIES, Modality, Reason, Rejection
from streams.kafka.ledger import OffsetLedger
from streams.kafka.producer import Outputs
from streams.kafka.reader import raw_record
from streams.metrics import Metrics
from streams.pipeline.state import PartitionState
from streams.windows.types import Late, Refused

log = structlog.get_logger(__name__)
_AT_ONCE = 32  # awaiting their acknowledgement


class Aside:
    """Sends records aside. Every call returns when the records are acknowledged and released."""

    def __init__(
        self, outputs: Outputs, ledger: OffsetLedger, metrics: Metrics, topic: Callable[[Modality], str]
    ) -> None:
        self._outputs = outputs
        self._ledger = ledger
        self._metrics = metrics
        self._topic = topic

    async def rejected(
        self, partition: PartitionState, modality: Modality, rejected: Sequence[tuple[Any, Rejection]]
    ) -> None:
        """Records of which nothing can be used."""
        tp = (self._topic(modality), partition.number)

        async def one(record: Any, rejection: Rejection) -> None:
            await self._dead(tp, record, rejection, stage="decode")
            self._ledger.release(tp, partition.epoch, [record.offset])

        await self._each(partition, [one(*pair) for pair in rejected])

    async def refused(self, partition: PartitionState, refused: Sequence[tuple[Refused, Any]]) -> None:
        """Events that the window operator has no room for, with their Kafka records."""
        events: dict[tuple[int, int], list[Refused]] = {}
        raws = {(o.modality, o.record.offset): raw for o, raw in refused}
        for output, _ in refused:
            events.setdefault((output.modality, output.record.offset), []).append(output)

        async def one(origin: tuple[int, int], outputs: list[Refused]) -> None:
            tp = (self._topic(MODALITIES[origin[0]]), partition.number)
            await self._dead(tp, raws[origin], Rejection(outputs[0].reason, outputs[0].detail), stage="window")
            self._ledger.release(tp, partition.epoch, [origin[1]] * len(outputs))

        await self._each(partition, [one(*item) for item in events.items()])

    async def late(self, partition: PartitionState, late: Sequence[tuple[Late, Any]]) -> None:
        """Events whose last window is final, with their Kafka records."""
        counts: dict[tuple[int, int], int] = {}
        behind: dict[tuple[int, int], tuple[int, Any]] = {}
        for output, raw in late:
            origin = (output.modality, output.record.offset)
            counts[origin] = counts.get(origin, 0) + 1
            behind[origin] = (output.late_ms, raw)

        async def one(origin: tuple[int, int], events: int) -> None:
            tp = (self._topic(MODALITIES[origin[0]]), partition.number)
            late_ms, raw = behind[origin]
            detail = f"its window was final; the watermark was {late_ms} ms past its end"
            key, value, headers = late_letter(raw_record(raw), detail, events=events)
            await self._outputs.send("late-events", value, key=key, headers=headers)
            self._metrics.events.labels(tp[0], Reason.LATE.value).inc(events)
            self._ledger.release(tp, partition.epoch, [origin[1]] * events)

        await self._each(partition, [one(*item) for item in counts.items()])

    async def _dead(self, tp: tuple[str, int], record: Any, rejection: Rejection, *, stage: str) -> None:
        log.warning(
            "dead letter",
            topic=tp[0],
            partition=tp[1],
            offset=record.offset,
            reason=rejection.reason,
            detail=rejection.detail,
        )
        key, value, headers = dead_letter(raw_record(record), rejection, stage=stage)
        await self._outputs.send("dead-letters", value, key=key, headers=headers)
        self._metrics.events.labels(tp[0], rejection.reason.value).inc()

    @staticmethod
    async def _each(partition: PartitionState, sends: Sequence[Coroutine[Any, Any, None]]) -> None:
        """A few at a time; nothing of a partition that was revoked."""
        for start in range(0, len(sends), _AT_ONCE):
            some = sends[start : start + _AT_ONCE]
            if partition.revoked:
                for coroutine in some:
                    coroutine.close()
            else:
                await asyncio.gather(*some)
