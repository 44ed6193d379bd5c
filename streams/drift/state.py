"""What a detector carries from window to window, as plain data: it travels in the payload of every stored window."""

from __future__ import annotations

import base64

import msgspec


class Spread(msgspec.Struct, array_like=True):
    """Running mean and variance of a score on calm windows."""

    n: int = 0
    mean: float = 0.0
    var: float = 0.0


class Baseline(msgspec.Struct, array_like=True):
    """Slow baseline of one feature of one channel."""

    n: int = 0
    mean: float = 0.0
    var: float = 0.0


class OpenIncident(msgspec.Struct, array_like=True):
    """An incident that has been opened and not closed."""

    id: str
    opened_ms: int  # end of the window that opened it
    onset_ms: int  # start of the first window of the run that led to it
    start_ms: int  # start of the window that opened it
    sequence: int
    told_ms: int  # end of the window of the last step
    severity: int  # highest told so far
    modality: str  # dominant one, as last told
    judged_ms: int  # end of the last window that could say something of it
    calm_ms: int = 0  # time seen calm since it was last seen not to be
    open_ms: int = 0  # time seen since it was opened; neither counts the time in which nothing was seen


class Past(msgspec.Struct, array_like=True):
    """A closed incident, for 'most like'."""

    id: str
    start_ms: int


class DriftState(msgspec.Struct):
    """Everything. Banks hold window starts; their vectors are read from the store."""

    windows: int = 0
    reference: dict[str, list[int]] = {}  # by modality, and by "joint/<mask>"
    recent: dict[str, list[int]] = {}
    waiting: list[int] = []  # starts of calm windows in quarantine
    waiting_keys: list[list[str]] = []  # the banks that each of them would enter
    spreads: dict[str, Spread] = {}  # of distances to both banks
    reference_spreads: dict[str, Spread] = {}  # of distances to the reference alone; frozen when learnt
    channels: dict[str, Baseline] = {}
    runs: dict[str, int] = {}  # consecutive windows above the line, per score
    run_onset_ms: int | None = None
    cusum: float = 0.0
    incident: OpenIncident | None = None
    past: list[Past] = []

    def to_payload(self) -> str:
        """MessagePack in base64, a few KB. Not JSON: one float in eight comes out of Qdrant's payloads a bit off."""
        return base64.b64encode(msgspec.msgpack.encode(self)).decode()

    @classmethod
    def from_payload(cls, payload: str) -> DriftState:
        """The inverse of `to_payload`, to the last bit."""
        return msgspec.msgpack.decode(base64.b64decode(payload), type=cls)

    def copy(self) -> DriftState:
        return msgspec.msgpack.decode(msgspec.msgpack.encode(self), type=DriftState)
