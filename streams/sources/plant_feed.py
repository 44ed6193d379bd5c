"""Sends the simulated plant to Kafka in real time: `sensorium simulate` and `sensorium demo`."""

from __future__ import annotations

import asyncio
import time

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from streams.kafka.clients import KafkaUnreachable, new_producer
from streams.settings import Settings
from streams.sources.recording import Message
from streams.sources.simulator import Plant, plan_faults

_UNLIMITED_MS = 366 * 86_400_000
_FIRST_FAULT_MS = 5_000  # after the history ends
_FAULT_EVERY_MS = 90_000
_FAULT_LASTS_MS = 45_000
_STEP_MS = 250  # between two rounds of sending


async def feed(
    settings: Settings,
    bootstrap: str,
    stop: asyncio.Event,
    *,
    streams: int,
    seed: int = 7,
    speed: float = 1.0,
    seconds: float | None = None,
    history_s: float = 0.0,
    noise: float = 1.0,
) -> int:
    """Run a plant in real time (times `speed`) until `stop`, or for `seconds` of event time; returns events sent.

    `history_s` seconds of its past, without faults, are sent first and at once. Raises `KafkaUnreachable`.
    """
    now_ms = int(time.time() * 1000)
    start_ms = now_ms - int(history_s * 1000)
    first_ms = now_ms + _FIRST_FAULT_MS
    end_ms = now_ms + (_UNLIMITED_MS if seconds is None else int(seconds * 1000))
    faults = plan_faults(
        first_ms,
        min(end_ms, first_ms + 86_400_000),
        seed=seed,
        streams=streams,
        every_ms=_FAULT_EVERY_MS,
        lasts_ms=_FAULT_LASTS_MS,
    )
    plant = Plant(streams, seed, faults, noise)
    producer = new_producer(settings, bootstrap, linger_ms=10)
    sent = 0
    try:
        await producer.start()
    except KafkaError as error:
        await producer.stop()
        raise KafkaUnreachable(f"Kafka at {bootstrap} does not answer ({error}); see: sensorium doctor") from None
    try:
        for n, message in enumerate(plant.messages(start_ms, now_ms)):
            await _send(producer, settings, message)
            sent += message.events
            if n % 500 == 0:
                await asyncio.sleep(0)
                if stop.is_set():
                    return sent
        began, at_ms = time.monotonic(), now_ms
        while not stop.is_set() and at_ms < end_ms:
            reached = now_ms + int((time.monotonic() - began) * 1000 * speed)
            for message in plant.messages(at_ms, min(reached, end_ms)):
                await _send(producer, settings, message)
                sent += message.events
            at_ms = max(at_ms, min(reached, end_ms))
            try:
                await asyncio.wait_for(stop.wait(), _STEP_MS / 1000)
            except TimeoutError:
                continue
        await producer.flush()
    finally:
        await producer.stop()
    return sent


async def _send(producer: AIOKafkaProducer, settings: Settings, message: Message) -> None:
    await producer.send(settings.topic(message.topic), message.value, key=message.key, headers=message.headers)
