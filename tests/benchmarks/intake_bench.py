"""Intake: from Kafka to windows through our Faust agents, beside a plain Faust agent and bare aiokafka.

python -m tests.benchmarks.intake_bench

400 thousand JSON readings of 57 bytes, 100 streams, four partitions, out of order within the disorder bound, wait in a
real Kafka. Each peer reads them in a process of its own; CPU-seconds count from the moment its partitions are assigned
until its last message is done, and, as "whole process", from its birth.

- ours: the worker as it runs (Faust agents, batch transport, decoding, clock guard, windows, ledger, commits); only
  scoring is replaced: fired windows are counted, final panes released. Done when every record may be committed.
- plain Faust: one agent, `async for value in stream`, that only decodes, with the same decoder.
- bare aiokafka: `getmany`, decoding keys and values with the same decoder; and once more with a bare msgspec decoder.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streams.kafka.progress import Start
from streams.settings import Settings
from tests.benchmarks.measuring import (
    Figure,
    cpu_s,
    in_thread,
    kafka,
    made_topics,
    pin,
    print_table,
    ratio,
    run_peer,
    settings_in,
    whole_cpu_s,
)

MESSAGES = 400_000
FAUST_MESSAGES = 60_000  # the plain agent takes a CPU-second for some ten thousand
STREAMS = 100
RATE_HZ = 10
T0_MS = 1_767_225_600_000
DISORDER_MS = 2_000
ROUNDS = 3
WINDOW = {"idle_timeout_ms": 500}
TOPIC = "sensor-readings"


# -- load --------------------------------------------------------------------------------------------------------


async def produce(settings: Settings, messages: int) -> None:
    """Fill the topic; every stream ends with a reading far ahead, so that all windows before it become final."""
    from streams.kafka.clients import new_producer

    assert settings.kafka is not None
    rng = random.Random(3)
    arrivals = []
    for i in range(messages):
        tick, stream = divmod(i, STREAMS)
        time_ms = T0_MS + tick * 1000 // RATE_HZ + stream
        arrivals.append((time_ms + rng.random() * (DISORDER_MS - 1), time_ms, stream))
    arrivals.sort()
    last_ms = max(time_ms for _, time_ms, _ in arrivals)
    arrivals += [(0.0, last_ms + 100_000, stream) for stream in range(STREAMS)]
    producer = new_producer(settings, settings.kafka, linger_ms=20, max_batch_size=262_144)
    await producer.start()
    try:
        for _, time_ms, stream in arrivals:
            values = f'{{"flow":{3 + stream % 7}.{time_ms % 90 + 10},"temp":{50 + time_ms % 9}.5}}'
            value = f'{{"time":{time_ms},"values":{values}}}'.encode()
            await producer.send(settings.topic(TOPIC), value, key=b"pump-%d" % stream)
        await producer.flush()
    finally:
        await producer.stop()


# -- peers -------------------------------------------------------------------------------------------------------


async def ours(settings: Settings, messages: int) -> dict[str, float]:
    """The real worker with scoring replaced."""
    from streams.pipeline.pipeline import Pipeline
    from streams.process import freeze_gc, limit_malloc_arenas
    from streams.serving import worker as worker_module
    from streams.windows.types import Fired, PaneFinal

    class Counting(Pipeline):
        """In the place of scoring and storing: what they do with Kafka's offsets, and nothing else."""

        windows = events = released = 0
        done = asyncio.Event()

        async def run(self) -> None:
            topic = settings.topic(TOPIC)
            while True:
                partition, output = await self.queue.get()
                if type(output) is Fired:
                    self.windows += 1
                    self.events += output.home_events[0]
                elif type(output) is PaneFinal:
                    self.ledger.release((topic, partition.number), partition.epoch, output.offsets[0])
                    self.released += len(output.offsets[0])
                    if self.released >= messages:
                        self.done.set()

    class Measured(worker_module.Worker):
        began: float | None = None

        async def assigned(self, starts: Mapping[tuple[str, int], Start]) -> None:
            await super().assigned(starts)
            self.began = cpu_s()

    worker_module.Pipeline = Counting  # type: ignore[misc]
    assert settings.kafka is not None
    limit_malloc_arenas()  # this and the next as the command does
    async with Measured(settings, settings.kafka) as worker:
        counting: Any = worker.pipeline
        freeze_gc()
        stop = asyncio.Event()
        running = asyncio.create_task(worker.run(stop))
        done = asyncio.create_task(counting.done.wait())
        await asyncio.wait({running, done}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        assert worker.began is not None
        took = cpu_s() - worker.began
        stop.set()
        await running
    assert counting.events >= messages, f"{counting.events} events in windows, {messages} were sent"
    return {"cpu_s": took, "windows": counting.windows}


async def plain_faust(settings: Settings, messages: int) -> dict[str, float]:
    """The agent of Faust's own tutorial."""
    import faust

    from streams.events.json_codec import decode_reading

    app = faust.App(
        settings.topic_prefix + "plain",
        broker=f"kafka://{settings.kafka}",
        autodiscover=False,
        key_serializer="raw",
        value_serializer="raw",
        consumer_auto_offset_reset="earliest",
        topic_allow_declare=False,
        topic_disable_leader=True,
        topic_partitions=settings.partitions,
        worker_redirect_stdouts=False,
        web_enabled=False,
        stream_wait_empty=False,
    )
    topic = app.topic(settings.topic(TOPIC), key_type=bytes, value_type=bytes)
    done = asyncio.Event()
    seen, began, ended = 0, 0.0, 0.0

    @app.agent(topic)
    async def decode(stream: Any) -> None:
        nonlocal seen, began, ended
        async for value in stream:
            if not seen:
                began = cpu_s()
            decode_reading(value, (), 0)
            seen += 1
            if seen == messages:
                ended = cpu_s()
                done.set()

    app.finalize()
    starting = asyncio.create_task(app.start())
    await done.wait()
    await asyncio.wait_for(app.stop(), 20)
    starting.cancel()
    return {"cpu_s": ended - began}


async def bare(settings: Settings, messages: int, *, minimal: bool = False) -> dict[str, float]:
    """aiokafka alone."""
    import msgspec

    from streams.events.envelope import decode_key
    from streams.events.json_codec import decode_reading, decode_readings
    from streams.kafka.clients import new_consumer

    class Row(msgspec.Struct):
        time: int
        values: dict[str, float]

    decode_row = msgspec.json.Decoder(Row).decode
    assert settings.kafka is not None
    consumer = new_consumer(settings, settings.kafka)
    consumer.subscribe([settings.topic(TOPIC)])
    await consumer.start()
    seen, began = 0, cpu_s()
    while seen < messages:
        for records in (await consumer.getmany(timeout_ms=500)).values():
            if minimal:
                for record in records:
                    decode_row(record.value)
            else:
                for record in records:
                    decode_key(record.key)
                    if decode_reading(record.value, record.headers, record.timestamp) is None:
                        decode_readings(record.value, record.headers, record.timestamp)
            seen += len(records)
    took = cpu_s() - began
    await consumer.stop()
    return {"cpu_s": took}


PEERS = {
    "ours": ours,
    "faust": plain_faust,
    "bare": bare,
    "minimal": lambda settings, messages: bare(settings, messages, minimal=True),
}


# -- the benchmark -----------------------------------------------------------------------------------------------


async def measure(rounds: int = ROUNDS, messages: int = MESSAGES) -> list[Figure]:
    async with kafka() as (broker, folder):
        filled = settings_in(folder, broker.bootstrap, partitions=4)
        await made_topics(filled)
        await produce(filled, messages)
        best: dict[str, dict[str, float]] = {}
        counts = {"bare": messages, "ours": messages, "minimal": messages, "faust": min(FAUST_MESSAGES, messages)}
        for turn in range(rounds):
            for peer, count in counts.items():
                arguments = [peer, folder / f"{peer}{turn}", broker.bootstrap, filled.topic_prefix, count]
                found = await in_thread(run_peer, "intake_bench", arguments)
                found["rate"], found["whole"] = count / found["cpu_s"], count / found["whole_s"]
                if peer not in best or found["rate"] > best[peer]["rate"]:
                    best[peer] = found
    names = {
        "ours": "ours: agents, decoding, windows, ledger, commits",
        "faust": "a plain Faust agent that only decodes",
        "bare": "bare aiokafka getmany, same decoding",
        "minimal": "bare aiokafka getmany, bare msgspec decoding",
    }
    figures = []
    for peer, name in names.items():
        whole = f"whole process {best[peer]['whole']:,.0f}"
        figures.append(Figure(f"intake: {name}", round(best[peer]["rate"]), "messages/CPU-s", note=whole))
    rate = best["ours"]["rate"]
    figures.append(ratio("intake: ours to plain Faust", rate, best["faust"]["rate"], least=10))
    figures.append(ratio("intake: ours to bare aiokafka, same decoding", rate, best["bare"]["rate"], least=0.25))
    return figures


def run() -> list[Figure]:
    return asyncio.run(measure())


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--peer"]:
        pin()
    if arguments[:1] == ["--peer"]:
        peer, state, bootstrap, prefix, count = arguments[1:]
        # every round reads from the start: a group of its own
        settings = settings_in(
            Path(state), bootstrap, prefix, partitions=4, window=WINDOW, group=Path(state).name, log_level="error"
        )
        found = asyncio.run(PEERS[peer](settings, int(count)))
        print(json.dumps(found | {"whole_s": whole_cpu_s()}))
        return
    print_table(run())


if __name__ == "__main__":
    main(sys.argv[1:])
