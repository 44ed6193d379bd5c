"""Each measure against a twin written the slow and obvious way, and at its edges."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.evaluation import metrics


@st.composite
def retrievals(draw: Any) -> tuple[Any, Any, Any]:
    n, m = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    scores = rng.integers(-3, 4, (n, m)) / 4  # few values: ties are common
    return scores, rng.random((n, m)) < 0.4, rng.random((n, m)) < 0.8


@settings(max_examples=200, deadline=None)
@given(retrievals())
def test_ranks_are_those_of_a_sorted_list_with_ties_against_us(case: Any) -> None:
    scores, relevant, allowed = case
    for query, place in enumerate(metrics.ranks(scores, relevant, allowed)):
        items = [(-s, bool(r)) for s, r, a in zip(scores[query], relevant[query], allowed[query], strict=True) if a]
        order = [right for _, right in sorted(items)]  # False before True at the same score
        assert place == (order.index(True) + 1 if True in order else 0)


@settings(max_examples=200, deadline=None)
@given(retrievals(), st.integers(1, 8))
def test_precision_counts_the_nearest_that_are_allowed_as_many_as_could_be_right(case: Any, k: int) -> None:
    scores, relevant, allowed = case
    for query, value in enumerate(metrics.precision_at(scores, relevant, k, allowed)):
        items = [i for i in range(scores.shape[1]) if allowed[query, i]]
        places = min(k, sum(relevant[query, i] for i in items))
        nearest = sorted(items, key=lambda i: -scores[query, i])[:places]
        if places:
            assert value == pytest.approx(sum(relevant[query, i] for i in nearest) / places)
        else:
            assert math.isnan(value)


def test_recall_and_median_leave_out_who_has_nothing_to_find() -> None:
    places = np.array([1, 3, 0, 11, 2])
    assert [metrics.recall_at(places, k) for k in (1, 5, 10)] == [0.25, 0.75, 0.75]
    assert metrics.median_rank(places) == 2.5
    assert math.isnan(metrics.recall_at(np.zeros(3, np.int64), 1))
    assert math.isnan(metrics.median_rank(np.zeros(3, np.int64)))


def test_a_rare_class_counts_as_much_as_a_common_one() -> None:
    values, labels = np.array([1.0] * 9 + [0.0] + [np.nan]), np.array(["a"] * 9 + ["b"] + ["a"])
    assert metrics.macro_mean(values, labels) == 0.5
    assert math.isnan(metrics.macro_mean(np.array([np.nan]), np.array(["a"])))


def test_the_bootstrap_is_that_of_a_loop_over_drawn_blocks() -> None:
    rng = np.random.default_rng(3)
    blocks, labels = rng.integers(0, 12, 200), rng.integers(0, 3, 200)
    values = rng.random(200) + blocks / 12
    drawn = np.random.default_rng(0).multinomial(12, np.full(12, 1 / 12), size=400)
    means = []
    for counts in drawn:
        index = np.concatenate([np.flatnonzero(blocks == b) for b, times in enumerate(counts) for _ in range(times)])
        means.append(metrics.macro_mean(values[index], labels[index]))
    expected = np.quantile(means, [0.025, 0.975])
    assert metrics.bootstrap(values, labels, blocks, rounds=400) == pytest.approx(tuple(expected))


def test_blocks_that_agree_within_themselves_make_a_wide_interval() -> None:
    blocks = np.repeat(np.arange(8), 50)
    values = (blocks % 2).astype(float)
    labels = np.zeros(400)
    low, high = metrics.bootstrap(values, labels, blocks)
    alone = metrics.bootstrap(values, labels, np.arange(400))
    assert high - low > 3 * (alone[1] - alone[0])


def unit(seed: int, n: int, dim: int = 8) -> Any:
    rows = np.random.default_rng(seed).standard_normal((n, dim))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_alignment_uniformity_and_gap_are_their_definitions() -> None:
    left, right = unit(1, 20), unit(2, 20)
    pairs = [sum((a - b) ** 2) for a, b in zip(left, right, strict=True)]
    assert metrics.alignment(left, right) == pytest.approx(np.mean(pairs))
    some = [math.exp(-2 * sum((left[i] - left[j]) ** 2)) for i in range(20) for j in range(i)]
    assert metrics.uniformity(left) == pytest.approx(math.log(np.mean(some)))
    assert metrics.modality_gap(left, right) == pytest.approx(math.dist(left.mean(0), right.mean(0)))
    assert metrics.modality_gap(left, left) == 0
    assert all(
        math.isnan(v)
        for v in (
            metrics.uniformity(left[:1]),
            metrics.alignment(left[:0], right[:0]),
            metrics.modality_gap(left[:0], right),
        )
    )


def test_shares_of_a_mixed_index_add_up_and_show_who_drowns_whom() -> None:
    items = np.concatenate([unit(1, 30), unit(2, 30) + 5 * np.eye(8)[0]])
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    owner = np.repeat(["sensor", "audio"], 30)
    queries = items[30:]
    allowed = np.ones((30, 60), bool)
    allowed[np.arange(30), np.arange(30) + 30] = False
    shares = metrics.index_shares(queries, items, owner, allowed, 10)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["audio"] > 0.95
    slow = []
    for q in range(30):
        nearest = sorted((i for i in range(60) if allowed[q, i]), key=lambda i: -(queries[q] @ items[i]))[:10]
        slow += [owner[i] for i in nearest]
    assert shares["audio"] == pytest.approx(slow.count("audio") / len(slow))


def test_few_shots_tell_separate_classes_apart_and_noise_not() -> None:
    centres = np.eye(8)[:3] * 4
    labels, groups = np.repeat([0, 1, 2], 60), np.tile(np.repeat(np.arange(6), 10), 3) + np.repeat([0, 10, 20], 60)
    apart = centres[labels] + unit(3, 180)
    assert metrics.few_shot(apart / np.linalg.norm(apart, axis=1, keepdims=True), labels, groups, 5) == (1.0, 3)
    guessed, classes = metrics.few_shot(unit(4, 180), labels, groups, 5)
    assert classes == 3
    assert 0.2 < guessed < 0.47


def test_few_shots_never_learn_from_the_group_they_are_asked_about() -> None:
    # every group is a point of its own, and a group's neighbour is of the other class: only cheating scores well
    groups = np.repeat(np.arange(20), 10)
    labels = groups % 2
    vectors = unit(5, 20, 32)[groups]
    accuracy, _ = metrics.few_shot(vectors, labels, groups, 5)
    assert accuracy < 0.75


def test_few_shots_need_two_classes_with_enough() -> None:
    accuracy, classes = metrics.few_shot(unit(1, 10), np.zeros(10), np.arange(10), 3)
    assert (math.isnan(accuracy), classes) == (True, 1)


def test_quantiles_of_nothing_are_not_a_number() -> None:
    assert metrics.quantiles([1.0, 2.0, 3.0], 0.5) == [2.0]
    assert math.isnan(metrics.quantiles([], 0.5)[0])
