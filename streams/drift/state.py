"""What a detector carries from window to window, as plain data: it travels in the payload of every stored window."""

from __future__ import annotations

import base64
import binascii
import copy

import msgspec


class Spread(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Running mean and variance of a score on calm windows."""

    n: int = 0
    mean: float = 0.0
    var: float = 0.0


class Baseline(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Slow baseline of one feature of one channel."""

    n: int = 0
    mean: float = 0.0
    var: float = 0.0


class OpenIncident(msgspec.Struct, array_like=True, frozen=True):
    """An incident that has been opened and not closed. The order of the fields is that of the stored arrays."""

    id: str
    opened_ms: int  # end of the window that opened it
    onset_ms: int  # start of the first window of the run that opened it
    start_ms: int  # start of the window that opened it
    sequence: int
    last_step_ms: int  # end of the window of the last step
    severity: int  # highest of all steps
    modality: str  # dominant one at the last step
    judged_ms: int  # end of the last window with evidence: a score of that modality, or a score too high
    calm_ms: int = 0  # calm evidence of that modality since the last window that was not calm
    open_ms: int = 0  # time of the windows since it was opened
    seen_ms: int = 0  # end of the last window
    rest_calm_ms: int = 0  # time of calm windows with a score of any kind since the last that was not calm


class Past(msgspec.Struct, array_like=True, frozen=True):
    """An incident that is over, for 'most like'."""

    id: str
    start_ms: int


class DriftState(msgspec.Struct):
    """Everything. Banks hold window starts; their vectors are read from the store.

    A copy shares what it holds: lists and structs in a state are replaced, never changed in place.
    """

    fingerprint: str = ""  # `DriftConfig.fingerprint` of the numbers it was learnt with; none in states of old
    reason: str | None = None  # why it is learnt anew, while it is warming
    windows: int = 0
    reference: dict[str, list[int]] = {}  # by modality, and by "joint/<mask>"
    recent: dict[str, list[int]] = {}
    waiting: list[int] = []  # starts of calm windows in quarantine
    waiting_keys: list[list[str]] = []  # the banks that each of them would enter
    spreads: dict[str, Spread] = {}  # of distances to both banks
    reference_spreads: dict[str, Spread] = {}  # of distances to the reference alone; frozen when learnt
    channels: dict[str, Baseline] = {}
    presence: dict[str, float] = {}  # share of the last windows that had a modality
    runs: dict[str, int] = {}  # consecutive windows above the line, per score
    run_onsets: dict[str, int] = {}  # start of the first window of each such run
    cusum: float = 0.0
    incident: OpenIncident | None = None
    past: list[Past] = []

    def to_payload(self) -> str:
        """MessagePack in base64, a few KB. Not JSON: one float in eight comes out of Qdrant's payloads a bit off."""
        return base64.b64encode(msgspec.msgpack.encode(self)).decode()

    @classmethod
    def from_payload(cls, payload: str) -> DriftState:
        """The inverse of `to_payload`, to the last bit.

        Of a payload of another format, what is left is an open incident and an empty fingerprint: the detector
        closes the one and learns anew because of the other.
        """
        try:
            packed = base64.b64decode(payload)
        except binascii.Error:
            return cls()
        try:
            return msgspec.msgpack.decode(packed, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            pass
        try:
            return cls(incident=msgspec.msgpack.decode(packed, type=_Remnant).incident)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return cls()

    def copy(self) -> DriftState:
        """A state that can be moved on without a trace in this one; costs no copy of what it holds."""
        other = copy.copy(self)
        other.reference = dict(self.reference)
        other.recent = dict(self.recent)
        other.spreads = dict(self.spreads)
        other.reference_spreads = dict(self.reference_spreads)
        other.channels = dict(self.channels)
        other.presence = dict(self.presence)
        other.runs = dict(self.runs)
        other.run_onsets = dict(self.run_onsets)
        return other

    def bank_starts(self) -> frozenset[int]:
        """Starts of all windows whose vectors are needed."""
        banks = (*self.reference.values(), *self.recent.values(), self.waiting)
        incident = () if self.incident is None else (self.incident.start_ms,)
        return frozenset().union(*banks, incident, (past.start_ms for past in self.past))


class _Remnant(msgspec.Struct):
    incident: OpenIncident | None = None
