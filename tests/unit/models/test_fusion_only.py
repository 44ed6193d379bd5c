"""A fusion alone over fixed encoders: the same vectors as the usual way, deterministic, and it learns."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.checkpoint import read_checkpoint, write_checkpoint
from models.config import FUSIONS, preset
from models.embedder import Embedder
from models.evaluation.corpus import MASKS, Corpus, Sign
from models.evaluation.report import embed_corpus, shared_part
from models.fusion import Whitened
from models.interface import DIM, WindowInput
from models.network import Network
from models.training.augment import uniform_subsets
from models.training.fusion_only import (
    EncodedCorpus,
    FusionOptions,
    _NeighbourBatches,
    encode_corpus,
    fit_fusion,
    neighbours,
    next_window_retrieval,
    refine_fusion,
    space_of,
)

HOP = 10_000
QUICK = FusionOptions(steps=3, rows=16)


def corpus(count: int = 48) -> Corpus:
    """Two machines in one of two states for five minutes each; some windows lack a modality."""
    rng = np.random.default_rng(0)
    windows, streams, signs = [], [], []
    for n in range(count):
        at = n // 2 * HOP
        state = (at // 300_000 + n % 2) % 2
        wave = np.sin(np.arange(16_000) * (0.05 + 0.2 * state)) * 6_000 + rng.normal(0, 300, 16_000)
        readings = [(at + k * 1_000, {"speed": 10.0 + 20 * state + rng.normal(0, 0.5)}) for k in range(6)]
        clips = [(at, wave.astype(np.int16))] if n % 5 else []
        captions = [(at + 50, f"{('slow', 'fast')[state]} round {n}")] if n % 3 else []
        windows.append(WindowInput(at, at + HOP, readings, clips, captions))
        streams.append(f"m{n % 2}")
        signs.append([Sign(("slow", "fast")[state])])
    return Corpus(windows, streams, signs)


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(3)
    return Network(preset("tiny")).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def encoded(network: Network) -> EncodedCorpus:
    return encode_corpus(network, corpus())


@pytest.mark.parametrize("kind", FUSIONS)
def test_masks_without_encoding_again_give_the_vectors_of_windows_cut_down(
    network: Network, encoded: EncodedCorpus, kind: Any
) -> None:
    trained = fit_fusion(network, encoded, kind, QUICK, seed=0)
    quick, usual = space_of(trained, encoded), embed_corpus(Embedder(trained, kind), encoded.corpus)
    assert quick.index.tolist() == usual.index.tolist()
    np.testing.assert_allclose(quick.whole, usual.whole, atol=2e-5)
    for name, vectors in usual.masked.items():
        np.testing.assert_allclose(quick.masked[name], vectors, atol=2e-5, err_msg=name)
    for name, vectors in usual.unimodal.items():
        np.testing.assert_allclose(quick.unimodal[name], vectors, atol=2e-5, err_msg=name)


def test_only_the_fusion_changes_and_the_same_seed_gives_the_same(network: Network, encoded: EncodedCorpus) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    one, two, other = (fit_fusion(network, encoded, "attention", QUICK, seed).state_dict() for seed in (1, 1, 2))
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name])
        assert name.startswith("fusion.") or torch.equal(tensor, before[name])
    assert any(not torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_training_brings_a_window_cut_down_to_windows_of_its_state(network: Network, encoded: EncodedCorpus) -> None:
    states = encoded.corpus.states()[encoded.corpus.complete()]
    alike = states[:, None] == states[None]

    def separation(trained: Network) -> float:
        space = space_of(trained, encoded)
        scores = space.masked["sensors only"] @ space.masked["full"].T
        return float(scores[alike].mean() - scores[~alike].mean())

    options = FusionOptions(steps=80, rows=24, rate=5e-3, near_ms=20_000, guard_ms=100_000)
    untrained = fit_fusion(network, encoded, "attention", replace(options, steps=0), 0)
    assert separation(fit_fusion(network, encoded, "attention", options, 0)) > separation(untrained) + 0.02


def test_with_alignment_a_modality_finds_the_joint_vector_of_its_window(
    network: Network, encoded: EncodedCorpus
) -> None:
    def separation(align: float) -> float:
        options = FusionOptions(80, 24, 5e-3, near_ms=0, guard_ms=1, align=align)
        space = space_of(fit_fusion(network, encoded, "attention", options, 0), encoded)
        joint, leads = shared_part(space.masked["full"]), []
        for own in space.unimodal.values():
            scores = shared_part(own) @ joint.T
            leads.append(np.diag(scores).mean() - scores[~np.eye(len(scores), dtype=bool)].mean())
        return float(np.mean(leads))

    assert separation(1.0) > separation(0.0) + 0.02


def test_a_fusion_continues_from_its_own_weights_or_from_fresh_ones(network: Network, many: EncodedCorpus) -> None:
    """The measured noise has weight 0 at first: the vectors are what they were."""
    still = FusionOptions(steps=0)
    kept, fresh = (fit_fusion(network, many, "attention", still, 0, fresh) for fresh in (False, True))
    assert all(whitened.turn.abs().sum() > 0 for whitened in kept.fusion.whitened.values())
    for name, tensor in network.fusion.state_dict().items():
        assert torch.equal(tensor, kept.fusion.state_dict()[name][..., : tensor.shape[-1]] if tensor.dim() else tensor)
    np.testing.assert_allclose(space_of(kept, many).whole, space_of(network, many).whole, atol=1e-6)
    assert not torch.equal(network.fusion.latents, fresh.fusion.latents)


def test_a_trained_fusion_continues_with_its_whitened_vectors_too(network: Network, many: EncodedCorpus) -> None:
    once = fit_fusion(network, many, "attention", QUICK, 0)
    on = fit_fusion(once, many, "attention", FusionOptions(steps=0), 0, fresh=False)
    assert all(torch.equal(tensor, on.state_dict()[name]) for name, tensor in once.state_dict().items())
    plain = fit_fusion(once, many, "concat", QUICK, 0, fresh=False)
    assert not plain.config.whitened
    assert not any("whitened" in name for name in plain.state_dict())


@pytest.fixture(scope="module")
def many(network: Network) -> EncodedCorpus:
    """Pairs of neighbours enough to measure how they differ."""
    return encode_corpus(network, corpus(600))


def test_neighbours_are_each_window_and_the_next_one_that_holds_the_modality() -> None:
    windows = corpus(60)
    rng = np.random.default_rng(4)
    starts, streams = windows.starts, windows.streams
    for share, near_ms in ((1.0, HOP), (0.6, 2 * HOP), (0.3, 3 * HOP), (0.0, HOP)):
        held = rng.random(60) < share
        rows, pairs = np.flatnonzero(held).tolist(), set()
        for i in rows:
            later = [(starts[j] - starts[i], j) for j in rows if streams[j] == streams[i] and starts[j] > starts[i]]
            if later and min(later)[0] <= near_ms:
                pairs.add((i, min(later)[1]))
        one, other = neighbours(windows, held, near_ms)
        assert set(zip(one.tolist(), other.tolist(), strict=True)) == pairs
        assert len(one) == len(pairs)


def test_retrieval_of_the_next_window_is_what_counting_by_hand_gives(network: Network, encoded: EncodedCorpus) -> None:
    some, near_ms, guard_ms = encoded.corpus, 2 * HOP, 60_000
    model = Embedder(network, "as it is")
    whole = [one.joint for one in model.embed(some.windows)]
    ranks = []
    for i, window in enumerate(some.windows[:-2]):
        following = i + 2  # two machines take turns
        for mask in MASKS.values():
            cut = window.only(mask)
            if not (cut.readings or cut.clips or cut.captions):
                continue
            asked = model.embed([cut])[0].joint
            far = [
                j
                for j in range(len(whole))
                if some.streams[j] != some.streams[i] or abs(some.starts[j] - some.starts[i]) >= guard_ms
            ]
            ranks.append(1 + sum(float(asked @ whole[j]) >= float(asked @ whole[following]) for j in far))
    expected = float(np.mean(1 / np.array(ranks)))
    assert next_window_retrieval(network, encoded, near_ms, guard_ms) == pytest.approx(expected, abs=1e-4)
    assert 0.1 < expected < 0.9
    assert next_window_retrieval(network, encoded, HOP - 1, guard_ms) == 0.0


def test_a_fusion_that_broke_finds_nothing(network: Network, encoded: EncodedCorpus) -> None:
    broken = copy.deepcopy(network)
    broken.fusion.latents.fill_(float("nan"))
    whole, after = (next_window_retrieval(n, encoded, HOP, 60_000) for n in (network, broken))
    assert after < 0.1 < whole


def test_refining_never_finds_later_windows_less(network: Network, encoded: EncodedCorpus) -> None:
    for rate in (5e-3, 10.0):  # learns, and breaks
        options = FusionOptions(60, 24, rate, near_ms=HOP, guard_ms=100_000)
        after, before, found = refine_fusion(network, encoded, encoded, options, 0)
        assert found >= before == next_window_retrieval(network, encoded, HOP, 100_000)
        assert found == next_window_retrieval(after, encoded, HOP, 100_000)
        assert (found > before) == (after is not network)
        if rate < 1:
            assert found > before + 0.02


def test_whitening_by_neighbours_separates_states() -> None:
    rng = np.random.default_rng(5)
    states = rng.normal(size=(2, DIM)) * 0.02
    loud = rng.normal(size=(3, DIM))  # directions of noise that hide the states
    drawn = np.repeat(states, 400, 0) + rng.normal(size=(800, 3)) @ loud + rng.normal(size=(800, DIM)) * 0.01
    vectors = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    apart = np.concatenate([vectors[1:400] - vectors[:399], vectors[401:] - vectors[400:-1]])
    whitened = Whitened()
    whitened.measure(vectors, apart)
    turn = whitened.turn.double().numpy()
    noise = apart.T @ apart / np.trace(apart.T @ apart) * DIM
    np.testing.assert_allclose(turn.T @ (0.99 * noise + 0.01 * np.eye(DIM)) @ turn, np.eye(DIM), atol=1e-4)

    def separation(rows: Any) -> float:
        cosines = np.asarray(rows) @ np.asarray(rows).T
        return float(cosines[:400, :400].mean() - cosines[:400, 400:].mean())

    even = whitened(torch.from_numpy(vectors).float())
    np.testing.assert_allclose(even.norm(dim=-1), 1.0, atol=1e-5)
    assert separation(even) > 3 * separation(vectors - vectors.mean(0)) > 0


@pytest.mark.parametrize("few", ["pairs", "differences"])
def test_what_cannot_be_measured_stays_zero(few: str) -> None:
    vectors = np.random.default_rng(6).normal(size=(600, DIM))
    whitened = Whitened()
    whitened.measure(vectors, vectors[1 : DIM - 1] - vectors[: DIM - 2] if few == "pairs" else np.zeros((500, DIM)))
    assert (whitened(torch.from_numpy(vectors).float()) == 0).all()


def test_a_whitened_fusion_is_saved_and_read_back_with_all_that_was_measured(
    network: Network, many: EncodedCorpus, tmp_path: Path
) -> None:
    trained = fit_fusion(network, many, "attention", QUICK, 0)
    assert trained.config.whitened
    assert all(whitened.turn.abs().sum() > 0 for whitened in trained.fusion.whitened.values())
    version = write_checkpoint(tmp_path, trained, "")
    again, same = read_checkpoint(tmp_path)
    assert (version, again.config) == (same, trained.config)
    cosines = (space_of(again, many).whole * space_of(trained, many).whole).sum(-1)
    assert cosines.min() > 0.999  # weights are kept as float16
    once, twice = (Embedder(again, same).embed(many.corpus.windows[:n])[3].joint for n in (4, 50))
    assert once.tobytes() == twice.tobytes()


def test_every_step_is_reported(network: Network, encoded: EncodedCorpus) -> None:
    steps: list[tuple[int, float]] = []
    fit_fusion(network, encoded, "concat", QUICK, 0, on_step=lambda step, loss: steps.append((step, loss)))
    assert [step for step, _ in steps] == [1, 2, 3]
    assert all(np.isfinite(loss) for _, loss in steps)


def test_a_subset_is_never_empty_never_more_than_there_is_and_any_comes_up() -> None:
    present = torch.tensor([[True, True, True]] * 400 + [[False, True, True]] * 20 + [[False, False, False]])
    kept = uniform_subsets(present, random.Random(0))
    assert not (kept & ~present).any()
    assert torch.equal(kept.any(-1), present.any(-1))
    counts = np.unique(kept[:400].numpy(), axis=0, return_counts=True)[1]
    assert len(counts) == 7
    assert counts.min() > 30


def test_a_batch_pairs_neighbours_and_makes_no_negative_of_what_may_be_the_same_state() -> None:
    some = corpus()
    same_text = [replace(w, captions=[(w.start_ms, "all quiet")]) if n < 6 else w for n, w in enumerate(some.windows)]
    some = replace(some, windows=same_text)
    options = FusionOptions(rows=40, near_ms=20_000, guard_ms=60_000)
    batches = _NeighbourBatches(some, options, random.Random(0))
    moved = 0
    for _ in range(5):
        one, other, labels = batches.draw()
        for row, (i, j) in enumerate(zip(one.tolist(), other.tolist(), strict=True)):
            apart = abs(int(some.starts[i]) - int(some.starts[j]))
            assert some.streams[i] == some.streams[j]
            assert apart <= 20_000
            moved += apart > 0
            assert labels[row, row] == 1
            for column, k in enumerate(other.tolist()):
                if column != row:
                    near = some.streams[i] == some.streams[k] and abs(some.starts[i] - some.starts[k]) < 60_000
                    texts = [{t for _, t in some.windows[n].captions} for n in (i, k)]
                    alike = near or (bool(texts[0]) and texts[0] == texts[1])
                    assert labels[row, column] == (0 if alike else -1)
    assert moved > 50
