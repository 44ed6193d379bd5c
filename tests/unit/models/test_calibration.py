"""Balance: moments, centring and whitening, and how much each modality contributes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from models.calibration import JOINT, KEPT, Balancer, Calibration, Moments, calibrate, contributions, whitener
from models.checkpoint import CALIBRATION, read_checkpoint, write_checkpoint
from models.config import SHARED_DIM, preset
from models.embedder import Embedder
from models.interface import WindowInput
from models.network import Network


def drawn(rows: int, seed: int = 0, dim: int = SHARED_DIM) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, dim)) @ rng.standard_normal((dim, dim)) * 0.1 + 3


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 40), max_size=5), seed=st.integers(0, 99))
def test_moments_are_the_same_however_the_rows_are_split(cuts: list[int], seed: int) -> None:
    rows = drawn(40, seed, 6)
    moments = Moments(6)
    edges = [0, *sorted(cuts), 40]
    for a, b in pairwise(edges):
        moments.update(rows[a:b])
    assert moments.count == 40
    np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-9)
    np.testing.assert_allclose(moments.covariance(0.0), np.cov(rows.T), rtol=1e-8, atol=1e-10)


def test_the_shrunk_covariance_keeps_its_trace_and_is_regular_with_few_rows() -> None:
    moments = Moments(30)
    moments.update(drawn(5, 1, 30))
    plain, shrunk = moments.covariance(0.0), moments.covariance()
    assert np.trace(shrunk) == pytest.approx(np.trace(plain))
    assert np.linalg.eigvalsh(plain)[0] == pytest.approx(0, abs=1e-9)
    assert np.linalg.eigvalsh(shrunk)[0] > 0


def test_moments_of_nothing_and_of_one_row_are_finite() -> None:
    moments = Moments(4)
    moments.update(np.zeros((0, 4)))
    assert (moments.covariance() == 0).all()
    moments.update(np.ones((1, 4)))
    assert (moments.covariance() == 0).all()
    assert (whitener(moments.covariance()) == np.eye(4)).all()


def test_whitening_makes_the_variance_one_along_the_axes_that_it_keeps() -> None:
    rows = drawn(4_000, 2, 12)
    moments = Moments(12)
    moments.update(rows)
    flat = np.cov(((rows - rows.mean(0)) @ whitener(moments.covariance(0.0)).T).T)
    values = np.linalg.eigvalsh(flat)
    kept = values > 0.5
    np.testing.assert_allclose(values[kept], 1, atol=1e-6)
    np.testing.assert_allclose(values[~kept], 0, atol=1e-6)
    spectrum = np.sort(np.linalg.eigvalsh(moments.covariance(0.0)))[::-1]
    assert spectrum[: kept.sum()].sum() / spectrum.sum() >= KEPT


def window(seed: int = 0, caption: str = "rain") -> WindowInput:
    noise = np.random.default_rng(seed).integers(-5_000, 5_000, 16_000).astype(np.int16)
    readings = [(i, {"a": 1.0 + seed, "b": 2.0}) for i in range(5)]
    return WindowInput(0, 10_000, readings, [(0, noise)], [(3, f"{caption} {seed}")])


def calibrated(kind: str, folder: Path) -> str:
    torch.manual_seed(0)
    network = Network(preset("tiny")).eval()
    vectors = Embedder(network, "plain").embed([window(i) for i in range(30)])
    named = {m: np.stack([v.unimodal[m][:SHARED_DIM] for v in vectors]) for m in ("sensor", "audio", "caption")}
    named[JOINT] = np.stack([v.joint[:SHARED_DIM] for v in vectors])
    named = {name: rows / np.linalg.norm(rows, axis=1, keepdims=True) for name, rows in named.items()}
    network.calibration = calibrate(named)
    network.config = replace(network.config, balance=kind)
    return write_checkpoint(folder, network, "")


@pytest.mark.parametrize("kind", ["centre", "whiten"])
def test_a_balanced_model_takes_each_modality_to_the_middle_and_keeps_unit_vectors(kind: str, tmp_path: Path) -> None:
    calibrated(kind, tmp_path)
    vectors = models.load(tmp_path).embed([window(i) for i in range(30)])
    for modality in ("sensor", "audio", "caption"):
        rows = np.stack([v.unimodal[modality][:SHARED_DIM] for v in vectors])
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        assert float(np.linalg.norm(rows.mean(0))) < 0.5  # uncentred vectors of one modality all point one way
    for v in vectors:
        for vector in (v.joint, *v.unimodal.values()):
            assert float(np.linalg.norm(vector)) == pytest.approx(1, abs=1e-5)


def test_calibration_is_part_of_the_version_and_comes_back_with_it(tmp_path: Path) -> None:
    versions = {kind: calibrated(kind, tmp_path / kind) for kind in ("none", "centre", "whiten")}
    assert len(set(versions.values())) == 3
    network, version = read_checkpoint(tmp_path / "centre")
    assert version == versions["centre"]
    assert network.calibration is not None
    assert set(network.calibration.means) == {"sensor", "audio", "caption", JOINT}
    (tmp_path / "none" / CALIBRATION).unlink()
    assert read_checkpoint(tmp_path / "none")[1] != versions["none"]


def test_a_balanced_vector_is_the_same_in_any_batch(tmp_path: Path) -> None:
    calibrated("whiten", tmp_path)
    model = models.load(tmp_path)
    together = model.embed([window(i) for i in range(11)])
    assert np.array_equal(model.embed([window(7)])[0].joint, together[7].joint)


def test_balance_without_a_calibration_is_an_error_that_names_the_way_out(tmp_path: Path) -> None:
    calibrated("centre", tmp_path)
    (tmp_path / CALIBRATION).unlink()
    with pytest.raises(models.ModelError, match="sensorium train --balance centre"):
        models.load(tmp_path)


@pytest.mark.parametrize("harm", ["truncated", "nan", "shape", "incomplete"])
def test_a_damaged_calibration_is_one_clear_error(harm: str, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    calibrated("centre", tmp_path)
    path = tmp_path / CALIBRATION
    tensors = load_file(path)
    if harm == "truncated":
        path.write_bytes(path.read_bytes()[:100])
    else:
        if harm == "nan":
            tensors["mean.audio"] = np.full(SHARED_DIM, np.nan, np.float32)
        elif harm == "shape":
            tensors["mean.audio"] = np.zeros(3, np.float32)
        else:
            del tensors["covariance.audio"]
        save_file(tensors, path)
    with pytest.raises(models.ModelError, match=CALIBRATION):
        models.load(tmp_path)


def test_a_name_that_was_never_calibrated_is_left_as_it_is() -> None:
    vectors = np.arange(2 * SHARED_DIM, dtype=np.float32).reshape(2, SHARED_DIM)
    balance = Balancer("centre", Calibration({}, {}))
    assert np.array_equal(balance("odour", vectors), vectors)


def test_a_modality_contributes_as_far_as_the_joint_vector_moves_without_it() -> None:
    torch.manual_seed(0)
    model = Embedder(Network(preset("tiny")).eval(), "tiny")
    windows = [window(i) for i in range(6)] + [replace(window(1), readings=(), clips=())]
    found = contributions(model, windows)
    assert set(found) == {"sensor", "audio", "caption"}
    whole = model.embed(windows[:6])
    less = model.embed([w.only(("sensor", "caption")) for w in windows[:6]])
    naive = np.mean([1 - float(a.joint @ b.joint) for a, b in zip(whole, less, strict=True)])
    assert found["audio"] == pytest.approx(float(naive), abs=1e-6)
    assert all(value > 0 for value in found.values())
    assert contributions(model, windows[6:]) == {}


def test_copying_a_folder_copies_its_version(tmp_path: Path) -> None:
    version = calibrated("whiten", tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert models.load(tmp_path / "b").version == version
