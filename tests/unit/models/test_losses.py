"""Losses: each equals a naive twin written with loops, sees no ignored pair, and is finite where nothing compares."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.training.losses import LOSSES, agreement, co_occurrence, contrast, infonce, siglip, triplet, variance

SCALE, BIAS = torch.tensor(10.0).double(), torch.tensor(-2.0).double()
MARGIN = 0.2


def vectors(count: int, seed: int, dim: int = 8) -> torch.Tensor:
    drawn = torch.randn(count, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=-1)


cases = st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(0, 10_000)).flatmap(
    lambda s: st.tuples(
        st.just(vectors(s[0], s[2])),
        st.just(vectors(s[1], s[2] + 1)),
        st.lists(
            st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=s[1], max_size=s[1]), min_size=s[0], max_size=s[0]
        ).map(lambda rows: torch.tensor(rows, dtype=torch.float64)),
    )
)


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def naive_siglip(left, right, labels) -> float:
    by_sign: dict[float, list[float]] = {1.0: [], -1.0: []}
    for i in range(len(left)):
        for j in range(len(right)):
            sign = labels[i, j].item()
            if sign:
                by_sign[sign].append(math.log1p(math.exp(-sign * (float(left[i] @ right[j]) * 10 - 2))))
    return (mean(by_sign[1.0]) + mean(by_sign[-1.0])) / 2


def naive_infonce(left, right, labels) -> float:
    def one_way(a, b, marks) -> float:
        losses = []
        for i in range(len(a)):
            negatives = [10 * float(a[i] @ b[k]) for k in range(len(b)) if marks[i, k] < 0]
            for j in range(len(b)):
                if marks[i, j] > 0 and negatives:
                    own = 10 * float(a[i] @ b[j])
                    losses.append(math.log(math.exp(own) + sum(map(math.exp, negatives))) - own)
        return mean(losses)

    return (one_way(left, right, labels) + one_way(right, left, labels.T)) / 2


def naive_triplet(left, right, labels) -> float:
    def one_way(a, b, marks) -> float:
        losses = []
        for i in range(len(a)):
            negatives = [1 - float(a[i] @ b[k]) for k in range(len(b)) if marks[i, k] < 0]
            for j in range(len(b)):
                if marks[i, j] > 0 and negatives:
                    own = 1 - float(a[i] @ b[j])
                    farther = [d for d in negatives if d > own]
                    losses.append(max(0.0, own - (min(farther) if farther else max(negatives)) + MARGIN))
        return mean(losses)

    return (one_way(left, right, labels) + one_way(right, left, labels.T)) / 2


TWINS = {"siglip": naive_siglip, "infonce": naive_infonce, "triplet": naive_triplet}


@pytest.mark.parametrize("kind", LOSSES)
@settings(max_examples=60, deadline=None)
@given(case=cases)
def test_a_loss_equals_its_naive_twin(kind, case) -> None:
    left, right, labels = case
    assert float(contrast(kind, left, right, labels, SCALE, BIAS)) == pytest.approx(
        TWINS[kind](left, right, labels), rel=1e-7, abs=1e-9
    )


@pytest.mark.parametrize("kind", LOSSES)
@settings(max_examples=40, deadline=None)
@given(case=cases)
def test_gradients_are_finite_and_an_ignored_pair_has_none(kind, case) -> None:
    left, right, labels = case
    left, right = left.clone().requires_grad_(), right.clone().requires_grad_()
    contrast(kind, left, right, labels, SCALE, BIAS).backward()
    assert left.grad is not None
    assert right.grad is not None
    assert left.grad.isfinite().all()
    assert right.grad.isfinite().all()
    alone = (labels == 0).all(1)
    assert (left.grad[alone] == 0).all()


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("label", [-1.0, 0.0, 1.0])
def test_a_batch_of_one_kind_of_pair_is_finite(kind, label) -> None:
    same = vectors(1, 0).expand(4, 8).float().requires_grad_()
    loss = contrast(kind, same, same, torch.full((4, 4), label), SCALE.float(), BIAS.float())
    loss.backward()
    assert loss.isfinite()
    assert same.grad is not None
    assert same.grad.isfinite().all()
    if label == 0:
        assert loss == 0


def test_nothing_to_compare_is_zero_and_not_nan() -> None:
    left, right, labels = vectors(3, 1), vectors(4, 2), torch.zeros(3, 4).double()
    for loss in (siglip(left, right, labels, SCALE, BIAS), infonce(left, right, labels, SCALE)):
        assert loss == 0
    assert triplet(left, right, torch.ones(3, 4).double()) == 0


@settings(max_examples=40, deadline=None)
@given(count=st.integers(2, 9), dim=st.integers(1, 6), seed=st.integers(0, 999), target=st.floats(0.01, 2.0))
def test_the_variance_hinge_equals_its_naive_twin(count, dim, seed, target) -> None:
    x = vectors(count, seed, dim)
    total = 0.0
    for d in range(dim):
        column = [float(v) for v in x[:, d]]
        centre = mean(column)
        spread = math.sqrt(sum((v - centre) ** 2 for v in column) / (count - 1) + 1e-8)
        total += max(0.0, target - spread)
    assert float(variance(x, target)) == pytest.approx(total / dim / target, rel=1e-7, abs=1e-12)


def test_the_variance_hinge_is_one_for_collapse_zero_for_spread_and_finite_for_a_single_row() -> None:
    collapsed = vectors(1, 0, 16).expand(10, 16).clone().requires_grad_()
    loss = variance(collapsed)
    loss.backward()
    assert loss.item() == pytest.approx(1, abs=1e-2)
    assert collapsed.grad is not None
    assert collapsed.grad.isfinite().all()
    assert variance(vectors(500, 1, 16)) == 0
    assert variance(vectors(1, 1)) == 0
    assert variance(vectors(2, 1)[:0]) == 0


def test_neighbours_of_a_stream_and_equal_words_are_ignored_and_all_else_is_a_negative() -> None:
    labels = co_occurrence(
        stream=torch.tensor([0, 0, 0, 1]),
        time_ms=torch.tensor([0, 10, 100, 10]),
        caption=torch.tensor([5, -1, -1, 5]),
        guard_ms=30,
    )
    assert labels.tolist() == [[1, 0, -1, 0], [0, 1, -1, -1], [-1, -1, 1, -1], [0, -1, -1, 1]]


def test_labels_are_same_different_or_unknown() -> None:
    assert agreement(torch.tensor([1, 2, -1]), torch.tensor([1, -1])).tolist() == [[1, 0], [-1, 0], [0, 0]]
