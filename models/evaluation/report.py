"""What a model makes of windows that it has not seen: retrieval, masks, balance, few shots, time. The rules are stated.

Everything is measured on vectors as the service would store them. Queries and their answers are never neighbours in
time: windows of one stream less than GUARD_MS apart say nothing about a model.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.config import SHARED_DIM
from models.embedder import BATCH, Embedder
from models.errors import ModelError
from models.evaluation import metrics
from models.interface import MODALITY_NAMES, WindowInput, WindowModel, WindowVectors
from models.network import Network

Array = NDArray[np.float32]
GUARD_MS = 60_000
BLOCK_MS = 600_000  # of one stream: what the bootstrap draws
SHOT_MS = 300_000  # of one stream: examples and questions never share one
K = 5
SHOTS = 5
LEAST = 8  # windows of a state that is asked for
MASKS: Mapping[str, tuple[str, ...]] = {
    "full": ("sensor", "audio", "caption"),
    "no caption": ("sensor", "audio"),
    "no sound": ("sensor", "caption"),
    "no sensors": ("audio", "caption"),
    "sound only": ("audio",),
    "sensors only": ("sensor",),
    "captions only": ("caption",),
}
RULES = (
    "retrieval: windows that hold all three modalities; right are the same window and every window with the same "
    "captions; ties count against the model",
    f"precision at {K} per mask: a window cut down to the mask asks for windows of the same state (precision at R "
    f"where only R < {K} can be found); mean over states: a rare one counts as much as a common one",
    "two indexes: `same mask` holds windows cut down alike, `whole windows` holds them with all they have",
    "state: the sound (the folder of the clips; the stream, where clips lie in one folder) and each kind of fault in "
    f"labels.csv that overlaps it; states with fewer than {LEAST} windows are not asked for; a window of which nobody "
    "knows the state is no answer either, right or wrong",
    "a window cut down is asked only for what can show in what is left of it: a fault in the modalities that "
    "labels.csv names, the sound in sound and captions; a kind that says no more than where (all, sensor, audio, "
    "caption) is a fault in each of its modalities",
    f"no answer is of the same stream within {GUARD_MS // 1000} s of the question",
    f"intervals: 95 %, bootstrap over stretches of {BLOCK_MS // 60_000} minutes of a stream",
)


@dataclass(frozen=True, slots=True)
class Sign:
    """Something that was going on, and the modalities that it can show in."""

    name: str
    shows: frozenset[str] = frozenset(MODALITY_NAMES)


def fault_signs(kind: str, shows: Sequence[str]) -> list[Sign]:
    """A fault of labels.csv: its kind and the modalities that it shows in (none known: all). A kind that says no more
    than where is a fault in each of its modalities: what is labelled "all" sounds as what is labelled "audio"."""
    where = [name for name in MODALITY_NAMES if name in shows] or list(MODALITY_NAMES)
    if kind in ("all", *MODALITY_NAMES):
        return [Sign(f"{name} fault", frozenset((name,))) for name in where]
    return [Sign(kind, frozenset(where))]


@dataclass(frozen=True, slots=True)
class Corpus:
    """Windows with what is known of each: its stream and its signs (none: nobody knows what was going on)."""

    windows: Sequence[WindowInput]
    streams: Sequence[str]
    signs: Sequence[Sequence[Sign]]

    def take(self, index: Sequence[int] | NDArray[np.int64]) -> Corpus:
        return Corpus(
            [self.windows[i] for i in index], [self.streams[i] for i in index], [self.signs[i] for i in index]
        )

    def states(self, mask: Sequence[str] = MODALITY_NAMES) -> NDArray[Any]:
        """(N,) all that shows in these modalities as one name; "calm" where nothing does, "" for unknown."""
        return np.array(
            [
                "+".join(sign.name for sign in signs if sign.shows.intersection(mask)) or ("calm" if signs else "")
                for signs in self.signs
            ]
        )

    @property
    def starts(self) -> NDArray[np.int64]:
        return np.array([window.start_ms for window in self.windows], np.int64)

    def stretches(self, ms: int) -> NDArray[Any]:
        """A name for each window's stretch of time of its stream."""
        return np.array([f"{s}/{w.start_ms // ms}" for s, w in zip(self.streams, self.windows, strict=True)])

    def apart(self, guard_ms: int = GUARD_MS) -> NDArray[np.bool_]:
        """(N, N) True where two windows are of different streams, or far enough apart in time."""
        streams, starts = np.unique(self.streams, return_inverse=True)[1], self.starts
        near = np.abs(starts[:, None] - starts[None]) <= guard_ms
        apart: NDArray[np.bool_] = ~((streams[:, None] == streams[None]) & near)
        return apart

    def complete(self) -> NDArray[np.int64]:
        """Windows that hold all three modalities."""
        return np.array([i for i, w in enumerate(self.windows) if w.readings and w.clips and w.captions], np.int64)

    def asked(self, mask: Sequence[str] = MODALITY_NAMES) -> NDArray[np.bool_]:
        """(N,) windows whose state is known and common enough to be asked for."""
        states = self.states(mask)
        names, counts = np.unique(states, return_counts=True)
        common = {name for name, count in zip(names.tolist(), counts.tolist(), strict=True) if name and count >= LEAST}
        return np.array([state in common for state in states.tolist()])


def split_by_time(corpus: Corpus, share: float = 0.6, guard_ms: int = GUARD_MS) -> tuple[Corpus, Corpus]:
    """The earlier part of each stream and the later one, with a gap between them that nobody sees."""
    streams, starts = np.array(corpus.streams), corpus.starts
    early, late = [], []
    for stream in np.unique(streams):
        own = np.flatnonzero(streams == stream)
        cut = starts[own].min() + share * (starts[own].max() - starts[own].min())
        early += own[starts[own] < cut].tolist()
        late += own[starts[own] >= cut + guard_ms].tolist()
    return corpus.take(sorted(early)), corpus.take(sorted(late))


def cut_down(window: WindowInput, mask: Sequence[str]) -> WindowInput:
    """The window as if only these modalities had been heard."""
    return replace(
        window,
        readings=window.readings if "sensor" in mask else (),
        clips=window.clips if "audio" in mask else (),
        captions=window.captions if "caption" in mask else (),
    )


@dataclass(frozen=True, slots=True)
class Space:
    """A model's vectors of a corpus: whole windows, and the complete ones (`index`) cut down to each mask."""

    whole: Array  # (N, DIM)
    index: NDArray[np.int64]  # (C,)
    unimodal: Mapping[str, Array]  # (C, DIM)
    masked: Mapping[str, Array]  # (C, DIM)


def embed_corpus(model: WindowModel, corpus: Corpus) -> Space:
    """Raises ModelError where hardly any window holds all three modalities."""
    index = corpus.complete()
    if len(index) < 2 * LEAST:
        raise ModelError(
            f"only {len(index)} windows hold readings, sound and a caption; evaluation needs {2 * LEAST}: take a longer"
            " recording, or longer windows with SENSORIUM_WINDOW__SIZE_MS"
        )
    whole = model.embed(corpus.windows)
    unimodal = {name: np.stack([whole[i].unimodal[name] for i in index]) for name in MODALITY_NAMES}
    joint = np.stack([vectors.joint for vectors in whole])
    masked = {"full": joint[index]}
    for name, mask in MASKS.items():
        if name != "full":
            masked[name] = _joint(model.embed([cut_down(corpus.windows[i], mask) for i in index]))
    return Space(joint, index, unimodal, masked)


def _joint(vectors: Sequence[WindowVectors]) -> Array:
    return np.stack([one.joint for one in vectors])


def evaluate(model: WindowModel, corpus: Corpus, seeds: int = 3) -> dict[str, Any]:
    """Everything but the time it takes, as plain numbers. `seeds`: how often what is drawn by chance is drawn."""
    space = embed_corpus(model, corpus)
    complete = corpus.take(space.index)
    shots = [
        metrics.few_shot(
            space.whole[corpus.asked()],
            corpus.states()[corpus.asked()],
            corpus.stretches(SHOT_MS)[corpus.asked()],
            SHOTS,
            seed=seed,
        )
        for seed in range(seeds)
    ]
    return {
        "model": model.version,
        "windows": len(corpus.windows),
        "complete": len(space.index),
        "states": _counted(complete),
        "rules": list(RULES),
        "retrieval": retrieval(space, complete),
        "masks": {
            name: mask_report(space.masked[name], space, corpus, mask, space.masked["full"])
            for name, mask in MASKS.items()
        },
        "single modalities": {
            name: mask_report(space.unimodal[name], space, corpus, (name,)) for name in MODALITY_NAMES
        },
        "balance": balance(space, complete),
        "few shots": {
            "shots": SHOTS,
            "classes": shots[0][1],
            "accuracy": [round(accuracy, 4) for accuracy, _ in shots],
        },
    }


def _counted(corpus: Corpus) -> dict[str, int]:
    names, counts = np.unique(corpus.states()[corpus.asked()], return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def retrieval(space: Space, complete: Corpus) -> dict[str, dict[str, float]]:
    """Each modality asks for each other one's vector, and for the joint one, of its own window; and the joint one for
    each. A query is its shared part, as a search by text or sound is."""
    said = [frozenset(text for _, text in window.captions) for window in complete.windows]
    number = {words: i for i, words in enumerate(dict.fromkeys(said))}
    groups = np.array([number[words] for words in said])
    relevant = groups[:, None] == groups[None]
    np.fill_diagonal(relevant, True)
    vectors = {**space.unimodal, "joint": space.masked["full"]}
    blocks, found = complete.stretches(BLOCK_MS), {}
    for one in vectors:
        for other in vectors:
            if one == other:
                continue
            places = metrics.ranks(shared_part(vectors[one]) @ vectors[other].T, relevant)
            first = (places == 1).astype(float)
            low, high = metrics.bootstrap(first, np.zeros(len(first)), blocks)
            found[f"{one} -> {other}"] = {
                **{f"recall at {k}": metrics.recall_at(places, k) for k in (1, 5, 10)},
                "recall at 1, low": low,
                "recall at 1, high": high,
                "median rank": metrics.median_rank(places),
                "of": float(len(places)),
            }
    return found


def shared_part(vectors: Array) -> Array:
    """(N, DIM) with the private part taken away, of length 1: what a query of another modality is."""
    cut = np.array(vectors, np.float64)
    cut[:, SHARED_DIM:] = 0
    lengths = np.linalg.norm(cut, axis=1, keepdims=True)
    shared: Array = (cut / np.maximum(lengths, 1e-12)).astype(np.float32)
    return shared


def mask_report(
    queries: Array, space: Space, corpus: Corpus, mask: Sequence[str], full: Array | None = None
) -> dict[str, Any]:
    """`queries` (C, DIM) of the complete windows; `full`: what they are cut down from (None: vectors of one modality,
    which have no whole windows to be found among)."""
    report: dict[str, Any] = {}
    for name, (values, labels, blocks) in precisions(queries, space, corpus, mask, full is not None).items():
        low, high = metrics.bootstrap(values, labels, blocks)
        report[name] = {"precision": metrics.macro_mean(values, labels), "low": low, "high": high}
    if full is not None:
        cosines = (queries.astype(np.float64) * full).sum(1)
        report["cosine to full"] = {"mean": float(cosines.mean()), "p5": float(np.quantile(cosines, 0.05))}
    return report


Judged = tuple[NDArray[np.floating[Any]], NDArray[Any], NDArray[Any]]  # a value for each query, its state, its stretch


def precisions(
    queries: Array, space: Space, corpus: Corpus, mask: Sequence[str], whole: bool = True
) -> dict[str, Judged]:
    """Precision at K of each complete window whose state, as `mask` shows it, is asked for, in the two indexes."""
    asked = np.flatnonzero(corpus.asked(mask)[space.index])
    rows, states = space.index[asked], corpus.states(mask)
    answers = corpus.apart() & (states != "")
    labels, blocks = states[rows], corpus.stretches(BLOCK_MS)[rows]
    right = labels[:, None] == labels[None]
    alike = metrics.precision_at(queries[asked] @ queries[asked].T, right, K, answers[np.ix_(rows, rows)])
    found: dict[str, Judged] = {"same mask": (alike, labels, blocks)}
    if whole:
        among = metrics.precision_at(queries[asked] @ space.whole.T, labels[:, None] == states[None], K, answers[rows])
        found["whole windows"] = (among, labels, blocks)
    return found


def balance(space: Space, complete: Corpus) -> dict[str, Any]:
    """Alignment, uniformity and gap of the shared parts; who fills an index in which all modalities lie together."""
    parts = {name: shared_part(vectors) for name, vectors in space.unimodal.items()}
    names = list(parts)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    items = np.concatenate([parts[name] for name in names])
    owner = np.repeat(np.array(names), len(complete.windows))
    allowed = np.tile(complete.apart(), (1, len(names)))
    return {
        "alignment": {f"{a}, {b}": metrics.alignment(parts[a], parts[b]) for a, b in pairs},
        "modality gap": {f"{a}, {b}": metrics.modality_gap(parts[a], parts[b]) for a, b in pairs},
        "uniformity": {name: metrics.uniformity(part) for name, part in parts.items()}
        | {"joint": metrics.uniformity(shared_part(space.masked["full"]))},
        "share of a mixed index": {
            f"asked by {name}": metrics.index_shares(parts[name], items, owner, allowed) for name in names
        },
    }


def stage_times(network: Network, windows: Sequence[WindowInput], batches: int = 40) -> dict[str, dict[str, float]]:
    """CPU ms of a window in each stage, one thread: p50 and p95 over batches of BATCH, and for one window alone."""
    torch.set_num_threads(1)
    complete = [w for w in windows if w.readings and w.clips and w.captions]
    model = Embedder(network, "timed")
    taken: dict[str, list[float]] = {}

    def timed(stage: str, work: Any, share: int) -> Any:
        began = time.process_time()
        done = work()
        taken.setdefault(stage, []).append((time.process_time() - began) * 1000 / share)
        return done

    with torch.inference_mode():
        for number in range(batches + 2):
            if number == 2:
                taken.clear()  # the first ones warm up
            chunk = [complete[(number * BATCH + i) % len(complete)] for i in range(BATCH)]
            for name in network.modalities:
                encoder = network.encoder(name)
                items = timed(f"read {name}", lambda e=encoder, c=chunk: [e.read(w) for w in c], BATCH)
                shape = encoder.bucket(items[0])
                same = [item for item in items if encoder.bucket(item) == shape]
                timed(f"encode {name}", lambda e=encoder, s=same: e(s, BATCH), BATCH)
            timed(f"all, in batches of {BATCH}", lambda c=chunk: model.embed(c), BATCH)
            timed("all, one window alone", lambda c=chunk: model.embed(c[:1]), 1)
    return {
        stage: dict(zip(("p50", "p95"), metrics.quantiles(values, 0.5, 0.95), strict=True))
        for stage, values in taken.items()
    }
