"""What a model makes of windows that it has not seen: retrieval, masks, balance, few shots. The rules are in RULES.

Everything is measured on vectors as the service would store them. A query and its answers are never neighbours in time:
windows of one stream less than GUARD_MS apart are no evidence about a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.config import SHARED_DIM
from models.errors import ModelError
from models.evaluation import metrics
from models.evaluation.corpus import GUARD_MS, LEAST, MASKS, Corpus
from models.interface import MODALITY_NAMES, WindowModel, WindowVectors

Array = NDArray[np.float32]
BLOCK_MS = 600_000  # of one stream: what the bootstrap draws
SHOT_MS = 300_000  # of one stream: examples and queries never share one
K = 5
SHOTS = 5
RULES = (
    "retrieval: windows that hold all three modalities; relevant are the same window and every window with the same "
    "captions; ties count against the model",
    f"precision at {K} per mask: a window cut down to the mask is the query for windows of the same state (precision "
    f"at R where only R < {K} are relevant); mean over states: a rare one counts as much as a common one",
    "two indexes: `same mask` holds windows cut down alike, `whole windows` holds them with all they have",
    "state: the sound (the folder of the clips; the stream, where clips lie in one folder) and each kind of fault in "
    f"labels.csv that overlaps it; states with fewer than {LEAST} windows are not queried; a window of unknown state "
    "is left out of the answers",
    "the state of a window cut down is what can show in the rest of it: a fault in the modalities that labels.csv "
    "names, the sound in sound and captions; a kind that only names modalities (all, sensor, audio, caption) is a "
    "fault in each of them",
    f"no answer is of the same stream within {GUARD_MS // 1000} s of the query",
    f"intervals: 95 %, bootstrap over stretches of {BLOCK_MS // 60_000} minutes of a stream",
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
    joint = _joint(whole)
    masked = {"full": joint[index]}
    for name, mask in MASKS.items():
        if name != "full":
            masked[name] = _joint(model.embed([corpus.windows[i].only(mask) for i in index]))
    return Space(joint, index, unimodal, masked)


def _joint(vectors: Sequence[WindowVectors]) -> Array:
    """(N, DIM)."""
    return np.stack([one.joint for one in vectors])


def evaluate(model: WindowModel, corpus: Corpus, seeds: int = 3) -> dict[str, Any]:
    """All measurements but CPU time, as plain numbers. `seeds`: draws of what depends on chance.

    Raises ModelError where hardly any window holds all three modalities.
    """
    space = embed_corpus(model, corpus)
    complete = corpus.take(space.index)
    shots = [
        metrics.few_shot(
            space.whole[corpus.queryable()],
            corpus.states()[corpus.queryable()],
            corpus.stretches(SHOT_MS)[corpus.queryable()],
            SHOTS,
            seed=seed,
        )
        for seed in range(seeds)
    ]
    return {
        "model": model.version,
        "windows": len(corpus.windows),
        "complete": len(space.index),
        "states": _state_counts(complete),
        "rules": list(RULES),
        "retrieval": retrieval_report(space, complete),
        "masks": {
            name: mask_report(space.masked[name], space, corpus, mask, space.masked["full"])
            for name, mask in MASKS.items()
        },
        "single modalities": {
            name: mask_report(space.unimodal[name], space, corpus, (name,)) for name in MODALITY_NAMES
        },
        "balance": balance_report(space, complete),
        "few shots": {
            "shots": SHOTS,
            "classes": shots[0][1],
            "accuracy": [round(accuracy, 4) for accuracy, _ in shots],
        },
    }


def _state_counts(corpus: Corpus) -> dict[str, int]:
    names, counts = np.unique(corpus.states()[corpus.queryable()], return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def retrieval_report(space: Space, complete: Corpus) -> dict[str, dict[str, float]]:
    """Each modality's vector, and the joint one, as the query for each other vector of the same window. A query is its
    shared part, as a search by text or sound is."""
    captions = [frozenset(text for _, text in window.captions) for window in complete.windows]
    number = {texts: i for i, texts in enumerate(dict.fromkeys(captions))}
    groups = np.array([number[texts] for texts in captions])
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
    """(N, DIM) with the private part set to 0, of length 1: what a query of another modality is."""
    cut = np.array(vectors, np.float64)
    cut[:, SHARED_DIM:] = 0
    lengths = np.linalg.norm(cut, axis=1, keepdims=True)
    shared: Array = (cut / np.maximum(lengths, 1e-12)).astype(np.float32)
    return shared


def mask_report(
    queries: Array, space: Space, corpus: Corpus, mask: Sequence[str], full: Array | None = None
) -> dict[str, Any]:
    """Precision of `queries` (C, DIM) of the complete windows; `full` (C, DIM): the same windows with all modalities;
    None for vectors of one modality, which are not compared with whole windows."""
    report: dict[str, Any] = {}
    for name, (values, labels, blocks) in precisions(queries, space, corpus, mask, full is not None).items():
        low, high = metrics.bootstrap(values, labels, blocks)
        report[name] = {"precision": metrics.macro_mean(values, labels), "low": low, "high": high}
    if full is not None:
        cosines = (queries.astype(np.float64) * full).sum(1)
        report["cosine to full"] = {"mean": float(cosines.mean()), "p5": float(np.quantile(cosines, 0.05))}
    return report


Judged = tuple[NDArray[np.floating[Any]], NDArray[Any], NDArray[Any]]  # (Q,) each: a query's value, state, stretch


def precisions(
    queries: Array, space: Space, corpus: Corpus, mask: Sequence[str], whole: bool = True
) -> dict[str, Judged]:
    """Precision at K of each complete window whose state, as `mask` shows it, is queried, in the two indexes."""
    queried = np.flatnonzero(corpus.queryable(mask)[space.index])
    rows, states = space.index[queried], corpus.states(mask)
    answers = corpus.apart() & (states != "")
    labels, blocks = states[rows], corpus.stretches(BLOCK_MS)[rows]
    relevant = labels[:, None] == labels[None]
    alike = metrics.precision_at(queries[queried] @ queries[queried].T, relevant, K, answers[np.ix_(rows, rows)])
    found: dict[str, Judged] = {"same mask": (alike, labels, blocks)}
    if whole:
        relevant = labels[:, None] == states[None]
        among = metrics.precision_at(queries[queried] @ space.whole.T, relevant, K, answers[rows])
        found["whole windows"] = (among, labels, blocks)
    return found


def balance_report(space: Space, complete: Corpus) -> dict[str, Any]:
    """Alignment, uniformity and modality gap of the shared parts; shares of the nearest neighbours by modality in an
    index that holds all modalities."""
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
            f"queries by {name}": metrics.index_shares(parts[name], items, owner, allowed) for name in names
        },
    }
