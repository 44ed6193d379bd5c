"""A real Qdrant server, or three that form a cluster, as child processes of a test."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import httpx
import pytest


def find_binary() -> Path:
    """The server to start. Skips where there is none: CI has no server, the engines without one must do there."""
    named = os.environ.get("QDRANT_BIN") or shutil.which("qdrant")
    if not named:
        pytest.skip("no Qdrant server to start: set QDRANT_BIN, or put qdrant on the PATH")
    return Path(named)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


class QdrantServer:
    """One node; its data outlives `kill` and is served again by `start`, on the same ports."""

    def __init__(self, folder: Path, *, cluster: bool = False, bootstrap: str | None = None) -> None:
        self.binary = find_binary()
        self.folder = folder
        self.http_port, self.grpc_port, self.p2p_port = free_ports(3)
        self.url = f"http://127.0.0.1:{self.http_port}"
        self._cluster = cluster
        self._bootstrap = bootstrap
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def p2p(self) -> str:
        return f"http://127.0.0.1:{self.p2p_port}"

    def start(self) -> QdrantServer:
        self.folder.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {
            "QDRANT__SERVICE__HOST": "127.0.0.1",
            "QDRANT__SERVICE__HTTP_PORT": str(self.http_port),
            "QDRANT__SERVICE__GRPC_PORT": str(self.grpc_port),
            "QDRANT__STORAGE__STORAGE_PATH": str(self.folder / "storage"),
            "QDRANT__STORAGE__SNAPSHOTS_PATH": str(self.folder / "snapshots"),
            "QDRANT__TELEMETRY_DISABLED": "true",
            "QDRANT__LOG_LEVEL": "WARN",
        }
        command = [str(self.binary)]
        if self._cluster:
            environment |= {"QDRANT__CLUSTER__ENABLED": "true", "QDRANT__CLUSTER__P2P__PORT": str(self.p2p_port)}
            command += ["--uri", self.p2p]
            command += [] if self._bootstrap is None else ["--bootstrap", self._bootstrap]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, env=environment, cwd=self.folder, stdout=log, stderr=log)
        self._wait()
        return self

    def _wait(self) -> None:
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline:
            assert self._process is not None
            if self._process.poll() is not None:
                pytest.fail(f"Qdrant ended with {self._process.returncode}: {(self.folder / 'log').read_text()[-800:]}")
            try:
                if httpx.get(self.url + "/readyz", trust_env=False, timeout=2).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        pytest.fail(f"Qdrant is not ready after 40 s: {(self.folder / 'log').read_text()[-800:]}")

    def kill(self) -> None:
        """kill -9, and wait until it is gone: its write-ahead log is locked until then."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
