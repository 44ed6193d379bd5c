"""`sensorium demo` as a user runs it, in a terminal: what is on the screen, and that nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.terminal import Terminal

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

COMMAND = str(Path(sys.executable).with_name("sensorium"))
ROOT = Path(__file__).resolve().parents[2]
STREAMS = ("compressor", "conveyor", "cooling-loop", "feed-pump", "furnace-fan", "generator")
GIVE_UP_S = 150.0  # 15 s and 60 s are promised on a machine that does nothing else


class Demo(Terminal):
    """`sensorium demo` in a terminal, with a folder of its own for temporary files."""

    def __init__(self, folder: Path, columns: int = 80, lines: int = 24) -> None:
        self.temporary = folder / "tmp"
        self.temporary.mkdir(exist_ok=True)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SENSORIUM_")}
        for name in ("SENSORIUM_CACHE", "SENSORIUM_MAVEN"):
            if name in os.environ:
                environment[name] = os.environ[name]
        environment["TMPDIR"] = str(self.temporary)
        environment["SENSORIUM_KAFKA"] = "kafka.of.our.plant:9092"  # no simulated event may get there
        environment["SENSORIUM_STORE"] = "http://qdrant.of.our.plant:6333"
        super().__init__([COMMAND, "demo"], folder, environment, columns, lines)

    def wait_for(self, what: str, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + GIVE_UP_S
        while not condition():
            assert self.process.poll() is None, f"ended: {self.screen.text}"
            assert time.monotonic() < deadline, f"waited in vain for {what}:\n{self.screen.text}"
            time.sleep(0.1)

    def wait_until_ready(self) -> None:
        self.wait_for("Kafka", lambda: "ready: Kafka" in self.screen.text)

    def below(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def ports(self) -> set[int]:
        """All that it and what it started listens on."""
        found = set()
        for process in [psutil.Process(self.process.pid), *self.below()]:
            with contextlib.suppress(psutil.Error):
                listening = (c for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN)
                found |= {connection.laddr.port for connection in listening}
        return found


def assert_nothing_left(demo: Demo, below: list[psutil.Process], ports: set[int]) -> None:
    _, alive = psutil.wait_procs(below, 20)
    assert alive == []
    taken = set()
    for connection in psutil.net_connections("inet"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr:
            taken.add(connection.laddr.port)
    assert ports & taken == set()


@pytest.fixture
def demo(kafka_jars: None, tmp_path: Path) -> Iterator[Demo]:
    demo = Demo(tmp_path)
    try:
        yield demo
    finally:
        demo.end()


def test_make_demo_runs_the_demo() -> None:
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # not part of a make
    command = ["make", "-n", "demo"]
    planned = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, check=True).stdout
    assert planned.strip().endswith("bin/sensorium demo")


def test_windows_then_an_explained_incident_then_ctrl_c_leaves_nothing(demo: Demo) -> None:
    demo.wait_until_ready()
    demo.wait_for("windows", lambda: re.search(r"[1-9]\d* windows from \d+ events, 6 streams", demo.screen.text))
    # until a machine's first score and first note, its line ends with the dash
    lines = [rf"(?m)^{stream} .*(warming|ok|alarm) +\S+ +\S" for stream in STREAMS]
    demo.wait_for("scores or notes", lambda: all(re.search(line, demo.screen.text) for line in lines))
    table = demo.screen.text
    for stream in STREAMS:
        line = next(line for line in table.splitlines() if line.startswith(stream))
        assert re.search(rf"^{stream} +\d\d:\d\d:\d\d  [sac ]+ +(warming|ok|alarm) +(-|\d+\.\d\d) ", line), line
    demo.wait_for("an incident", lambda: re.search(r"\d\d:\d\d:\d\d opened +\d+  [a-z-]+: ", demo.screen.text))
    shown = demo.screen.text
    told = shown[shown.index("opened") :]
    stream, because = re.sub(r"\s+", " ", told).split(" ", 2)[2].split(": ", 1)
    assert stream in STREAMS
    assert re.search(r"expected|unlike anything (heard|said)|do not belong together", because), because
    assert max(len(line) for line in shown.splitlines()) <= 80
    assert "--state " + str(demo.temporary)[:20] in shown  # how to ask it from elsewhere
    assert demo.screen.history == []  # redrawn in place: nothing scrolls

    below, ports = demo.below(), demo.ports()
    assert len(below) >= 2  # Kafka, and what watches it
    assert len(ports) >= 3  # Kafka, its controller, the API
    demo.press(b"\x03")
    assert demo.process.wait(60) == 0
    assert_nothing_left(demo, below, ports)
    assert list(demo.temporary.iterdir()) == []
    time.sleep(0.2)  # for the last lines to be read
    assert "stopped; nothing is left behind" in demo.screen.text
    assert "Traceback" not in demo.screen.text
    assert demo.screen.cursor_shown
    assert not demo.screen.alternate
    assert demo.modes_are_as_before()


def test_closing_the_terminal_leaves_nothing(demo: Demo) -> None:
    demo.wait_until_ready()
    below, ports = demo.below(), demo.ports()
    demo.close()
    assert demo.process.wait(60) == 0
    assert_nothing_left(demo, below, ports)
    assert list(demo.temporary.iterdir()) == []


def test_kill_9_leaves_no_kafka_and_the_next_demo_removes_its_data(demo: Demo, tmp_path: Path) -> None:
    from streams.cli.demo import remove_abandoned

    demo.wait_until_ready()
    below, ports = demo.below(), demo.ports()
    demo.process.kill()
    demo.process.wait()
    assert_nothing_left(demo, below, ports)
    left = list(demo.temporary.iterdir())
    assert len(left) == 1
    assert remove_abandoned(demo.temporary) == left
