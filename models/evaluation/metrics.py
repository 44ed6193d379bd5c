"""Measures of an embedding space, as small pure functions of numpy arrays; tests compare each with a naive twin.

Scores are similarities, higher is nearer. `allowed` (N, M) leaves pairs out: a query and itself, or its neighbours in
time. Ties count against the model: an item that scores as much as the relevant one is ranked before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Flags = NDArray[np.bool_]
Labels = NDArray[Any]  # (N,) anything that compares


def ranks(scores: Array, relevant: Flags, allowed: Flags | None = None) -> NDArray[np.int64]:
    """scores, relevant (N, M) -> (N,) place of each query's best relevant item, from 1; 0 where it has none."""
    usable = np.ones_like(relevant) if allowed is None else allowed
    best = np.where(relevant & usable, scores, -np.inf).max(1, initial=-np.inf)  # (N,)
    before = ((scores >= best[:, None]) & usable & ~relevant).sum(1)
    return np.where(np.isfinite(best), before + 1, 0).astype(np.int64)


def recall_at(places: NDArray[np.int64], k: int) -> float:
    """Share of the queries with a relevant item whose best one is among the first k; NaN for no query."""
    queried = places[places > 0]
    return float((queried <= k).mean()) if len(queried) else float("nan")


def median_rank(places: NDArray[np.int64]) -> float:
    """Median place of the best relevant item, over the queries that have one; NaN for no query."""
    queried = places[places > 0]
    return float(np.median(queried)) if len(queried) else float("nan")


def precision_at(scores: Array, relevant: Flags, k: int, allowed: Flags | None = None) -> Array:
    """(N,) share of each query's nearest items that are relevant: of the k nearest, or of the R nearest where only
    R < k are relevant at all, so that a perfect order scores 1 however rare the query's class is; NaN where R is 0."""
    usable = np.ones_like(relevant) if allowed is None else allowed
    order = np.argsort(np.where(usable, -scores, np.inf), axis=1, kind="stable")[:, :k]  # (N, k)
    places = np.minimum((relevant & usable).sum(1), k)  # (N,)
    hits = np.take_along_axis(relevant & usable, order, 1) & (np.arange(order.shape[1]) < places[:, None])
    return np.where(places > 0, hits.sum(1) / np.maximum(places, 1), np.nan)


def macro_mean(values: Array, labels: Labels) -> float:
    """Mean over classes of the mean of each class: a rare state counts as much as a common one. NaNs are left out."""
    known = ~np.isnan(values)
    values, labels = values[known], labels[known]
    return float(np.mean([values[labels == one].mean() for one in np.unique(labels)])) if len(values) else float("nan")


def bootstrap(
    values: Array, labels: Labels, blocks: Labels, *, rounds: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Interval of `macro_mean(values, labels)` when whole blocks are resampled: consecutive windows of one stream are
    not independent. A class that a draw misses is left out of it."""
    rng = np.random.default_rng(seed)
    known = ~np.isnan(values)
    values, labels, blocks = values[known], labels[known], blocks[known]
    if not len(values):
        return float("nan"), float("nan")
    names, classes = np.unique(blocks, return_inverse=True), np.unique(labels, return_inverse=True)
    count, kinds = len(names[0]), len(classes[0])
    cell = names[1] * kinds + classes[1]
    total = np.bincount(cell, values, count * kinds).reshape(count, kinds)  # sums by block and class
    held = np.bincount(cell, None, count * kinds).reshape(count, kinds)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=rounds)  # (rounds, blocks) how often each is drawn
    sums, sizes = drawn @ total, drawn @ held
    means = np.where(sizes > 0, sums / np.maximum(sizes, 1), np.nan)
    found = np.nanmean(means, axis=1)
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def alignment(left: Array, right: Array) -> float:
    """Mean squared distance of pairs (N, D), (N, D) that belong together (Wang and Isola 2020); 0 is best."""
    return float(((left - right) ** 2).sum(1).mean()) if len(left) else float("nan")


def uniformity(vectors: Array, t: float = 2.0) -> float:
    """log of the mean of e^(-t d^2) over all pairs (N, D) (Wang and Isola 2020); lower is more evenly spread."""
    if len(vectors) < 2:
        return float("nan")
    distance = np.maximum(2 - 2 * (vectors @ vectors.T), 0)[np.triu_indices(len(vectors), 1)]
    return float(np.log(np.exp(-t * distance).mean()))


def modality_gap(left: Array, right: Array) -> float:
    """Distance between the means of two modalities' vectors (Liang et al. 2022)."""
    if not len(left) or not len(right):
        return float("nan")
    return float(np.linalg.norm(left.mean(0) - right.mean(0)))


def index_shares(queries: Array, items: Array, owner: Labels, allowed: Flags, k: int = 10) -> dict[str, float]:
    """In an index that mixes modalities: owner -> its share of the k nearest items of all queries. Equal shares, given
    as many items of each, mean that no modality crowds out the others."""
    scores = np.where(allowed, queries @ items.T, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    found = owner[order[np.take_along_axis(allowed, order, 1)]]
    return {str(name): float((found == name).mean()) if len(found) else float("nan") for name in np.unique(owner)}


def few_shot(
    vectors: Array, labels: Labels, groups: Labels, shots: int, *, episodes: int = 50, seed: int = 0
) -> tuple[float, int]:
    """Accuracy of the nearest class mean of `shots` examples of each class, and the number of classes.

    vectors (N, DIM), labels (N,), groups (N,): stretches of time of a stream; examples and queries never share one.
    Classes with too few windows for both are left out; every class counts the same. NaN for fewer than two classes.
    """
    rng = np.random.default_rng(seed)
    classes = [c for c in np.unique(labels) if (labels == c).sum() > shots and len(np.unique(groups[labels == c])) > 1]
    if len(classes) < 2:
        return float("nan"), len(classes)
    scores = []
    for _ in range(episodes):
        means, queried, truth = [], [], []
        for number, name in enumerate(classes):
            own = np.flatnonzero(labels == name)
            shuffled = rng.permutation(np.unique(groups[own]))
            examples: list[int] = []
            used = 0
            while len(examples) < shots and used < len(shuffled) - 1:  # the last group is for queries
                examples += own[groups[own] == shuffled[used]].tolist()
                used += 1
            means.append(vectors[rng.permutation(examples)[:shots]].mean(0))
            rest = own[np.isin(groups[own], shuffled[used:])]
            queried.append(rest)
            truth.append(np.full(len(rest), number))
        centres = np.stack(means)
        centres = centres / np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)
        predicted = (vectors[np.concatenate(queried)] @ centres.T).argmax(1)
        scores.append(macro_mean((predicted == np.concatenate(truth)).astype(float), np.concatenate(truth)))
    return float(np.mean(scores)), len(classes)


def quantiles(values: Sequence[float], *points: float) -> list[float]:
    """Of a list; NaN for an empty one."""
    return [float(q) for q in np.quantile(values, points)] if values else [float("nan")] * len(points)


def roc_auc(normal: Array, odd: Array) -> float:
    """Probability that an odd score (M,) is above a normal one (N,), ties counted half (area under the ROC curve)."""
    above = (odd[:, None] > normal[None, :]).mean()
    equal = (odd[:, None] == normal[None, :]).mean()
    return float(above + equal / 2)
