"""A small terminal: as much of one as rich's live display needs, to see what a user sees."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
from pathlib import Path

_TOKEN = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|\x1b[^\[]|([\r\n\b\x07])|([^\x1b\r\n\b\x07]+)")


class Screen:
    """Rows of characters; what scrolls out at the top is kept in `history`."""

    def __init__(self, columns: int, lines: int) -> None:
        self.columns, self.lines = columns, lines
        self.rows = [""] * lines
        self.history: list[str] = []
        self.x = self.y = 0
        self.cursor_shown = True
        self.alternate = False
        self._rest = ""

    @property
    def text(self) -> str:
        return "\n".join(row.rstrip() for row in self.rows)

    def feed(self, data: str) -> None:
        data, self._rest = self._rest + data, ""
        escape = data.rfind("\x1b")
        if escape >= 0 and not re.match(r"\x1b(\[[?0-9;]*[A-Za-z]|[^\[])", data[escape:]):
            data, self._rest = data[:escape], data[escape:]  # the sequence goes on in the next read
        for parameters, kind, control, text in _TOKEN.findall(data):
            if kind:
                self._sequence(parameters, kind)
            elif control == "\r":
                self.x = 0
            elif control == "\n":
                self._down()
            elif control == "\b":
                self.x = max(0, self.x - 1)
            elif text:
                self._write(text)

    def _sequence(self, parameters: str, kind: str) -> None:
        count = int(parameters) if parameters.isdigit() else 1
        if kind == "A":
            self.y = max(0, self.y - count)
        elif kind == "B":
            self.y = min(self.lines - 1, self.y + count)
        elif kind == "K":
            self.rows[self.y] = "" if parameters == "2" else self.rows[self.y][: self.x]
        elif kind == "J":
            self.rows[self.y :] = [self.rows[self.y][: self.x], *[""] * (self.lines - self.y - 1)]
        elif kind == "H":
            self.x = self.y = 0
        elif kind in "hl" and parameters == "?25":
            self.cursor_shown = kind == "h"
        elif kind in "hl" and parameters == "?1049":
            self.alternate = kind == "h"
        else:
            assert kind == "m", f"unknown control sequence {parameters}{kind}"

    def _write(self, text: str) -> None:
        for character in text:
            if self.x == self.columns:
                self.x = 0
                self._down()
            row = self.rows[self.y].ljust(self.x)
            self.rows[self.y] = row[: self.x] + character + row[self.x + 1 :]
            self.x += 1

    def _down(self) -> None:
        if self.y == self.lines - 1:
            self.history.append(self.rows.pop(0).rstrip())
            self.rows.append("")
        else:
            self.y += 1


class Terminal:
    """A process with a terminal of its own, as in a window of a desktop; closing it hangs up."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str], columns: int, lines: int) -> None:
        self.screen = Screen(columns, lines)
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.modes = termios.tcgetattr(self.slave)
        slave = self.slave

        def take() -> None:  # in the child: this terminal is the one that Ctrl-C and hanging up come from
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may be under nohup

        environment = environment | {"TERM": "xterm-256color", "LANG": "C.UTF-8"}
        for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
            environment.pop(name, None)
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=folder,
            env=environment,
            start_new_session=True,
            preexec_fn=take,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        rest = b""
        while True:
            try:
                data = rest + os.read(self.master, 65_536)
            except OSError:
                return
            if data == rest:
                return
            text = data.decode(errors="ignore")
            rest = data[len(text.encode()) :] if data.startswith(text.encode()) else b""
            self.screen.feed(text)

    def press(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def modes_are_as_before(self) -> bool:
        return termios.tcgetattr(self.slave) == self.modes

    def close(self) -> None:
        """As closing the window does."""
        for descriptor in (self.slave, self.master):
            if descriptor >= 0:
                os.close(descriptor)
        self.slave = self.master = -1

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.close()
