"""The embedded Kafka: starts, stops, dies and comes back, and never outlives the process that started it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from streams.kafka.admin import create_topics
from streams.kafka.clients import new_consumer, new_producer
from streams.kafka.embedded import Broker, BrokerError, running_bootstrap
from streams.kafka.jars import Jar, JarError, cache_folder, class_path, read_pins
from streams.service import running_service
from streams.settings import Settings, load_settings
from tests.integration.support import until

pytestmark = [pytest.mark.kafka, pytest.mark.usefixtures("kafka_jars")]


def settings_for(broker: Broker, folder: Path) -> Settings:
    return load_settings(state=folder, kafka=broker.bootstrap)


async def send_caption(settings: Settings, text: str) -> None:
    assert settings.kafka is not None
    producer = new_producer(settings, settings.kafka)
    await producer.start()
    try:
        await producer.send_and_wait("captions", text.encode(), key=b"pump", partition=0)
    finally:
        await producer.stop()


async def captions(settings: Settings, count: int) -> list[str]:
    assert settings.kafka is not None
    consumer = new_consumer(settings, settings.kafka)
    await consumer.start()
    try:
        from aiokafka import TopicPartition

        consumer.assign([TopicPartition("captions", 0)])
        return [(await asyncio.wait_for(consumer.getone(), 30)).value.decode() for _ in range(count)]
    finally:
        await consumer.stop()


def gone(pid: int, within_s: float = 20.0) -> bool:
    deadline = time.monotonic() + within_s
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


async def test_what_was_acknowledged_outlives_kill_9_and_a_clean_stop_on_the_same_port(tmp_path: Path) -> None:
    broker = Broker(tmp_path)
    async with broker:
        settings = settings_for(broker, tmp_path)
        await create_topics(settings, broker.bootstrap)
        await send_caption(settings, "one")
        before = broker.bootstrap
        broker.kill()
        assert not broker.alive
        assert running_bootstrap(tmp_path) is None
        await broker.start()
        assert broker.bootstrap == before == running_bootstrap(tmp_path)
        await send_caption(settings, "two")
    async with Broker(tmp_path) as again:
        assert again.bootstrap == before
        assert await captions(settings, 2) == ["one", "two"]


async def test_a_folder_has_one_broker_and_the_second_names_its_owner(tmp_path: Path) -> None:
    async with Broker(tmp_path):
        with pytest.raises(BrokerError, match=rf"in use by another broker \(started by process {os.getpid()}\)"):
            await Broker(tmp_path).start()


async def test_a_port_that_is_taken_is_named_with_the_remedy(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BrokerError, match=f"port {port} is taken.*sensorium broker --port PORT"):
            await Broker(tmp_path, port).start()


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGINT", "SIGKILL"])
def test_no_kafka_outlives_the_command_that_ran_it(tmp_path: Path, signal_name: str) -> None:
    command = Path(sys.executable).with_name("sensorium")
    process = subprocess.Popen([command, "broker", "--state", str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "Apache Kafka at 127.0.0.1:" in process.stdout.readline()
    children = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    assert any("java" in psutil.Process(pid).name() for pid in children)
    process.send_signal(getattr(signal, signal_name))
    code = process.wait(30)
    assert code == (-signal.SIGKILL if signal_name == "SIGKILL" else 0)
    assert all(gone(pid) for pid in children)
    assert running_bootstrap(tmp_path) is None


def test_a_jar_that_differs_from_its_pin_is_never_put_on_the_class_path(tmp_path: Path) -> None:
    pins = read_pins()
    for pin in pins:
        (tmp_path / pin.file_name).symlink_to(cache_folder() / pin.file_name)
    assert len(class_path(tmp_path, pins).split(os.pathsep)) == len(pins)
    changed = tmp_path / pins[3].file_name
    content = bytearray(changed.read_bytes())
    changed.unlink()
    content[-1] ^= 1
    changed.write_bytes(content)
    with pytest.raises(JarError, match=rf"{pins[3].file_name} differs from its pinned sha256.*--fetch-only"):
        class_path(tmp_path, pins)
    changed.unlink()
    with pytest.raises(JarError, match=r"1 Kafka jars are missing.*--fetch-only"):
        class_path(tmp_path, pins)


def test_a_pins_file_that_is_damaged_names_the_line(tmp_path: Path) -> None:
    pins = tmp_path / "pins"
    pins.write_text(f"# fine\n{'0' * 64}  5  a:b:1\nnonsense\n")
    with pytest.raises(JarError, match="pins:3:"):
        read_pins(pins)
    pins.write_text(f"{'0' * 64}  5  a:b:1\n")
    assert read_pins(pins) == [Jar("0" * 64, 5, "a:b:1")]


async def test_a_broker_that_cannot_be_started_again_ends_the_service_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(_: Broker) -> None:
        raise BrokerError("no space left on the disk; check it with: sensorium doctor")

    async def serve_until_stopped() -> None:
        stop = asyncio.Event()
        async with running_service(load_settings(state=tmp_path), stop):
            monkeypatch.setattr(Broker, "start", fails)
            os.kill(json.loads((tmp_path / "kafka" / "broker.json").read_text())["pid"], signal.SIGKILL)
            await asyncio.wait_for(stop.wait(), 60)

    with pytest.raises(BrokerError, match="no space left"):
        await serve_until_stopped()


async def test_a_broker_that_dies_under_the_service_is_started_again_on_its_port(tmp_path: Path) -> None:
    stop = asyncio.Event()
    async with running_service(load_settings(state=tmp_path), stop) as running:
        before = json.loads((tmp_path / "kafka" / "broker.json").read_text())["pid"]
        os.kill(before, signal.SIGKILL)
        await until(lambda: running_bootstrap(tmp_path) is None, "the broker gone")
        await until(lambda: running_bootstrap(tmp_path) == running.bootstrap, "the broker again")
        assert json.loads((tmp_path / "kafka" / "broker.json").read_text())["pid"] != before
        assert not stop.is_set()
