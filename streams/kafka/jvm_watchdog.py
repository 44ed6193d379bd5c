"""The watchdog of the broker's JVM: kills Kafka when the parent process dies. Run as a script; imports stdlib only.

Its standard input is the control pipe: `t` stops the JVM, `k` kills it, end of file means that the parent is gone
(killed -9 included) and stops it too. On Linux the JVM also dies with this process. The first line on standard output
is the JVM's process id; the exit status is the JVM's.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable

GRACE_S = 5.0  # for a clean stop after the parent is gone
_PR_SET_PDEATHSIG = 1


def _dies_with_parent() -> Callable[[], None] | None:
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)

    # The signal is tied to the parent *thread*; this process has only one, which is why this is not done from the
    # service itself, where the forking thread may well end before the process.
    def arm() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    return arm


def main(command: list[str]) -> int:
    parent = os.getppid()
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)  # the control pipe decides, not the terminal
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    arm = _dies_with_parent()

    def prepare() -> None:
        # An ignored signal would stay ignored in the JVM, which must get SIGTERM.
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(name, signal.SIG_DFL)
        if arm is not None:
            arm()

    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, preexec_fn=prepare)
    print(child.pid, flush=True)
    pipe: int | None = sys.stdin.fileno()
    while child.poll() is None:
        waiting = [read_end] if pipe is None else [read_end, pipe]
        # The parent is checked as well: a process that it forked may keep the control pipe open.
        ready, _, _ = select.select(waiting, [], [], 1.0)
        if read_end in ready:
            os.read(read_end, 64)
        command_byte = b""
        if pipe in ready and pipe is not None:
            command_byte = os.read(pipe, 1)
            if not command_byte:
                pipe = None
        elif os.getppid() != parent and pipe is not None:
            pipe = None
        else:
            continue
        with contextlib.suppress(ProcessLookupError):
            if command_byte == b"k":
                child.kill()
            elif command_byte == b"t":
                child.terminate()
            elif pipe is None:
                child.terminate()
                try:
                    child.wait(GRACE_S)
                except subprocess.TimeoutExpired:
                    child.kill()
    code = child.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
