"""Banks of a stream's normal windows: their vectors in memory, and how windows enter and leave.

The state names the windows of every bank; this holds their vectors. A bank has a key: a modality, or `joint/<mask>`
with a bank of its own for every set of modalities, because a missing one alone moves the fused vector.

Vectors are held as 16-bit fixed-point numbers, each once. Their products are whole numbers, so a sum is exact in
any order, and a detector restored from the store finds the same distances to the last bit. What rounding moves in a
distance is below 1e-4, where `knn_floor`, the smallest scale of a distance, is .02.

Memory: a bank takes at most (`bank_size` + `recent_size`) x DIM x 2 bytes, 24 KiB at the defaults and 256
dimensions. A stream has a bank for each modality and for each set of modalities that occurs: 2 where it has sensors
alone, at most 10. Windows in quarantine and incidents add 0.5 KiB for each of their vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streams.drift.baselines import learn, nearest
from streams.drift.config import DriftConfig
from streams.drift.state import DriftState, Spread
from streams.drift.types import MODALITY_BITS, Observation, Vector

Row = NDArray[np.int16]
_ONE = 32767  # the number that stands for 1.0: products of unit vectors, and sums of them, fit 32 bits
_FIRST_ROWS = 4  # allocated for a new bank


def row_of(vector: Vector) -> Row:
    """A unit vector (DIM,) in fixed point."""
    return np.rint(vector * _ONE).astype(np.int16)


def distances(row: Row, rows: Row) -> NDArray[np.float64]:
    """Cosine distances (n,) of a row (DIM,) to rows (n, DIM)."""
    products = np.einsum("ij,j->i", rows, row.astype(np.int32))  # (n,) int32, exact
    return np.asarray(1.0 - products / float(_ONE * _ONE))


def bank_keys(window: Observation) -> list[tuple[str, str]]:
    """(vector name, bank key) of everything in a window that is compared with a bank."""
    present = [(name, name) for name, bit in MODALITY_BITS if window.mask & bit and name in window.vectors]
    return [*present, ("joint", f"joint/{window.mask}")]


def vector_name(key: str) -> str:
    """Name of the vector that a bank with this key holds."""
    return "joint" if key.startswith("joint/") else key


class Bank:
    """Rows of the reference windows of a key, and behind them those of its recent windows, in the state's order.

    The array grows in place; a reference bank that is complete gets no further row, and of the recent ones the
    oldest makes room.
    """

    __slots__ = ("_limit", "_n", "_room", "references")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._room: Row = np.empty((0, 0), dtype=np.int16)
        self._n = 0
        self.references = 0

    @property
    def rows(self) -> Row:
        """(n, DIM)"""
        return self._room[: self._n]

    @property
    def nbytes(self) -> int:
        return self._room.nbytes

    def append(self, row: Row) -> None:
        if self._n == len(self._room):
            grown = np.empty((min(self._limit, max(_FIRST_ROWS, 2 * self._n)), len(row)), dtype=np.int16)
            if self._n:
                grown[: self._n] = self.rows
            self._room = grown
        self._room[self._n] = row
        self._n += 1

    def drop_oldest_recent(self) -> None:
        self._room[self.references : self._n - 1] = self._room[self.references + 1 : self._n]
        self._n -= 1

    def replace(self, at: int, row: Row) -> None:
        self._room[at] = row


@dataclass(frozen=True, slots=True)
class Compared:
    """A vector's distances to the windows of its bank."""

    reference: NDArray[np.float64]  # (n,) those to the reference windows
    both: NDArray[np.float64]  # (n + m,) and to the recent ones
    starts: Sequence[int]  # of the windows, in the order of `both`


class ReferenceBanks:
    """The vectors of one stream's banks. Methods that take a state move it, and themselves, by one window."""

    def __init__(self, config: DriftConfig) -> None:
        self._config = config
        self._banks: dict[str, Bank] = {}
        self._waiting: dict[int, dict[str, Row]] = {}  # rows by vector name, of windows in quarantine
        self._incidents: dict[int, Row] = {}  # joint rows of the windows that opened incidents

    @classmethod
    def load(
        cls, config: DriftConfig, state: DriftState, vectors: Mapping[int, Mapping[str, Vector]]
    ) -> ReferenceBanks | None:
        """Banks as `state` names them, with vectors by window start; None where a reference window has no vector.

        Windows of the recent banks and in quarantine that have none are taken out of `state`: without them a
        distance is at most larger.
        """
        banks = cls(config)
        for key, starts in state.reference.items():
            if not all(_has(vectors, start, key) for start in starts):
                return None
            name, bank = vector_name(key), banks._bank(key)
            recent = [start for start in state.recent.get(key, []) if _has(vectors, start, key)]
            if key in state.recent:
                state.recent[key] = recent
            for start in (*starts, *recent):
                bank.append(row_of(vectors[start][name]))
            bank.references = len(starts)
        waiting = [
            (start, [key for key in keys if _has(vectors, start, key)])
            for start, keys in zip(state.waiting, state.waiting_keys, strict=True)
        ]
        state.waiting = [start for start, keys in waiting if keys]
        state.waiting_keys = [keys for _, keys in waiting if keys]
        for start, keys in zip(state.waiting, state.waiting_keys, strict=True):
            banks._waiting[start] = {name: row_of(vectors[start][name]) for name in map(vector_name, keys)}
        incident = () if state.incident is None else (state.incident.start_ms,)
        for start in (*incident, *(past.start_ms for past in state.past)):
            if _has(vectors, start, "joint"):
                banks._incidents[start] = row_of(vectors[start]["joint"])
        return banks

    @property
    def nbytes(self) -> int:
        """Bytes of the rows held, with what Python adds to each array and dict."""
        single = [row for rows in self._waiting.values() for row in rows.values()] + list(self._incidents.values())
        arrays = sum(bank.nbytes + 400 for bank in self._banks.values()) + sum(row.nbytes + 200 for row in single)
        return arrays + 250 * len(self._waiting)

    def _bank(self, key: str) -> Bank:
        if key not in self._banks:
            self._banks[key] = Bank(self._config.bank_size + self._config.recent_size)
        return self._banks[key]

    # -- comparing -----------------------------------------------------------------------------------------------

    def compare(self, state: DriftState, key: str, row: Row, *, without: int | None = None) -> Compared | None:
        """Distances of a vector to its bank, if the reference is large enough; `without` the window of a start."""
        bank = self._banks.get(key)
        if bank is None or bank.references <= self._config.neighbours:
            return None
        found, references = distances(row, bank.rows), bank.references
        starts = state.reference[key]
        if key in state.recent:
            starts = starts + state.recent[key]
        if without is not None and without in starts:
            kept = [place for place, start in enumerate(starts) if start != without]
            references = sum(place < references for place in kept)
            found, starts = found[kept], [starts[place] for place in kept]
            if references <= self._config.neighbours:
                return None
        return Compared(found[:references], found, starts)

    def nearest_incident(self, state: DriftState, joint: Vector) -> str | None:
        """Id of the past incident whose first window is most like this fused vector."""
        row = row_of(joint)
        found = [(p.id, self._incidents[p.start_ms]) for p in state.past if p.start_ms in self._incidents]
        if not found:
            return None
        _, place = nearest(distances(row, np.stack([other for _, other in found])), 1)
        return found[place][0]

    # -- learning ------------------------------------------------------------------------------------------------

    def learn(self, state: DriftState, start_ms: int, keys: Sequence[tuple[str, str]], rows: Mapping[str, Row]) -> None:
        """A reference bank takes windows until it is complete; later ones wait in quarantine for the recent bank.

        `keys`: the `bank_keys` of the window that starts at `start_ms`; `rows`: its vectors, by name.
        """
        config = self._config
        waiting = []
        for name, key in keys:
            if key in state.spreads:
                waiting.append(key)
                continue
            reference = state.reference.get(key, [])
            if len(reference) < config.bank_size:
                reference = state.reference[key] = [*reference, start_ms]
                bank = self._bank(key)
                bank.append(rows[name])
                bank.references += 1
            if state.windows >= config.warm_windows and len(reference) >= config.warm_modality:
                self._complete(state, key)
        if waiting:
            state.waiting = [*state.waiting, start_ms]
            state.waiting_keys = [*state.waiting_keys, waiting]
            self._waiting[start_ms] = {name: rows[name] for name in map(vector_name, waiting)}
        while state.waiting and state.waiting[0] <= start_ms - config.quarantine_ms:
            self._leave_quarantine(state)

    def _leave_quarantine(self, state: DriftState) -> None:
        (start, *state.waiting), (keys, *state.waiting_keys) = state.waiting, state.waiting_keys
        rows = self._waiting.pop(start)
        for key in keys:
            recent = state.recent.get(key, [])
            if len(recent) == self._config.recent_size:
                self._banks[key].drop_oldest_recent()
                recent = recent[1:]
            state.recent[key] = [*recent, start]
            self._banks[key].append(rows[vector_name(key)])

    def _complete(self, state: DriftState, key: str) -> None:
        """The reference is frozen; what its own members are apart, each against the others, is the first yardstick."""
        matrix = self._banks[key].rows
        if len(matrix) <= self._config.neighbours:
            return
        spread = Spread()
        for place, row in enumerate(matrix):
            apart = np.delete(distances(row, matrix), place)
            spread = learn(spread, nearest(apart, self._config.neighbours)[0], float("inf"))
        state.spreads[key] = spread

    def open_incident(self, state: DriftState, window: Observation) -> None:
        """Keep the window that opened an incident, for 'most like', and let go of the windows in quarantine.

        What was seen shortly before an incident may be its beginning, and must not become normal.
        """
        self._incidents[window.start_ms] = row_of(window.vectors["joint"])
        state.waiting, state.waiting_keys = [], []
        self._waiting.clear()

    def end_incident(self, state: DriftState) -> None:
        """Let go of incidents that the state has forgotten."""
        kept = {past.start_ms for past in state.past}
        self._incidents = {start: row for start, row in self._incidents.items() if start in kept}

    def forget_normal(self) -> None:
        """Empty banks; incidents stay."""
        self._banks, self._waiting = {}, {}

    def replace(self, state: DriftState, start_ms: int, vectors: Mapping[str, Vector]) -> None:
        """A window has new vectors: wherever it is held, it is held with these."""
        rows = {name: row_of(vector) for name, vector in vectors.items()}
        for key, bank in self._banks.items():
            if vector_name(key) in rows:
                for place, start in enumerate([*state.reference[key], *state.recent.get(key, [])]):
                    if start == start_ms:
                        bank.replace(place, rows[vector_name(key)])
        for name in self._waiting.get(start_ms, {}):
            self._waiting[start_ms][name] = rows.get(name, self._waiting[start_ms][name])
        if start_ms in self._incidents:
            self._incidents[start_ms] = rows.get("joint", self._incidents[start_ms])


def _has(vectors: Mapping[int, Mapping[str, Vector]], start: int, key: str) -> bool:
    return vector_name(key) in vectors.get(start, {})
