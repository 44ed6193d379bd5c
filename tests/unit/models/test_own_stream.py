"""Training on a stream's own windows: it learns, is deterministic, resumes, stops, and how bad input ends."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import models
from models.checkpoint import read_checkpoint, write_checkpoint
from models.config import preset
from models.interface import WindowInput
from models.network import Network
from models.training import fusion_only as fusion_training
from models.training import own_stream as fitting
from models.training.own_stream import FitOptions, Fitted, Progress, fit, start
from models.training.stream_windows import StreamWindow, split_training_validation
from models.training.validation import validation_retrieval
from tests.unit.models.test_encoders import picture, with_images

SPAN = 10_000
STATES = (("slow", 300.0), ("fast", 1_500.0), ("idle", 700.0), ("rough", 3_000.0))
QUICK = FitOptions(epochs=2, rows=16, rate=2e-3)


def plant(count: int = 80, seed: int = 0, seconds: float = 1.0) -> list[StreamWindow]:
    """A machine that is in one of four states for a while, heard and written about: there is something to learn."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(count):
        state = int(rng.integers(4))
        name, tone = STATES[state]
        at = i * SPAN
        level = 10.0 * (state + 1)
        readings = [(at + k * 1_000, {"pump.speed": level * rng.normal(1, 0.01), "temp": 40.0}) for k in range(8)]
        samples = int(seconds * 16_000)
        wave = np.sin(np.arange(samples) * 2 * np.pi * tone / 16_000) + rng.normal(0, 0.1, samples)
        note = f"runs {name}, round {i}"
        window = WindowInput(at, at + SPAN, readings, [(at, (wave * 6_000).astype(np.int16))], [(at + 5, note)])
        out.append(StreamWindow(f"m{i % 2}", window))
    return out


def trained(windows: list[StreamWindow], options: FitOptions = QUICK, seed: int = 1, **more: object) -> Fitted:
    return fit(windows, start(preset("tiny"), None, seed), options, **more)


@pytest.fixture
def ever_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last epoch is the best one: what is kept was trained."""
    seen: dict[int, int] = {}
    real = validation_retrieval

    def rising(network: Network, *rest: object) -> dict[str, float]:
        directions = real(network, *rest)
        seen["calls"] = seen.get("calls", 0) + 1
        return {**directions, "rising": float(100 * seen["calls"])}

    monkeypatch.setattr(fitting, "validation_retrieval", rising)


def version(fitted: Fitted, folder: Path) -> str:
    return write_checkpoint(folder, fitted.network, "")


def check_usable(fitted: Fitted, folder: Path) -> None:
    """Finite weights, a folder that loads, finite vectors of every subset."""
    assert all(t.isfinite().all() for t in fitted.network.state_dict().values())
    write_checkpoint(folder, fitted.network, "")
    model = models.load(folder)
    window = plant(1)[0].window
    subsets = [window, replace(window, clips=()), replace(window, readings=()), replace(window, captions=())]
    assert all(np.isfinite(v.joint).all() for v in model.embed(subsets))


# -- it learns ------------------------------------------------------------------------------------------------------


def test_retrieval_on_later_windows_gets_better_without_a_label() -> None:
    fitted = trained(plant(160, seconds=0.5), FitOptions(epochs=16, rows=32, rate=3e-3, guard_ms=1, patience=16))
    assert fitted.retrieval > 1.5 * fitted.before
    assert fitted.best_epoch > 0
    assert set(fitted.directions) == {f"{a} -> {b}" for a in ORDER for b in ORDER if a != b}
    assert set(fitted.contributions) == set(ORDER)


ORDER = ("sensor", "audio", "caption")


@pytest.mark.parametrize("loss", ["infonce", "triplet"])
def test_every_loss_trains(loss: str, tmp_path: Path) -> None:
    check_usable(trained(plant(60), replace(QUICK, loss=loss, epochs=1)), tmp_path)


@pytest.mark.parametrize("fusion", ["concat", "mean"])
def test_every_fusion_trains(fusion: str, tmp_path: Path) -> None:
    config = replace(preset("tiny"), fusion=fusion)
    check_usable(fit(plant(60), start(config, None, 0), replace(QUICK, epochs=1)), tmp_path)


def test_a_balanced_model_is_trained_saved_and_loaded(tmp_path: Path) -> None:
    fitted = trained(plant(60), replace(QUICK, epochs=1, balance="whiten"))
    check_usable(fitted, tmp_path)
    assert read_checkpoint(tmp_path)[0].config.balance == "whiten"


def test_progress_has_epoch_step_loss_and_retrieval() -> None:
    seen: list[Progress] = []
    trained(plant(60), QUICK, on_progress=seen.append)
    assert all(p.retrieval is not None and 0 < p.retrieval <= 1 for p in seen)
    epochs = [(p.epoch, p.step) for p in seen if p.stage == "epoch"]
    assert epochs == [(e, s) for e in range(2) for s in range(1, seen[0].steps + 1)]
    assert all(math.isfinite(p.loss) and p.loss > 0 for p in seen)


@pytest.mark.usefixtures("ever_better")
def test_progress_of_the_fusion_follows_that_of_the_epochs() -> None:
    seen: list[Progress] = []
    fitted = trained(plant(60), QUICK, on_progress=seen.append)
    epochs, fusion = ([p for p in seen if p.stage == stage] for stage in ("epoch", "fusion"))
    assert seen == epochs + fusion
    assert [(p.step, p.steps) for p in fusion] == [
        (s, fitted.training // 4) for s in range(1, fitted.training // 4 + 1)
    ]


def test_where_no_epoch_was_better_the_encoders_are_what_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "validation_retrieval", lambda *_: {"a -> b": 0.5})
    begun = start(preset("tiny"), None, 1)
    before = {name: tensor.clone() for name, tensor in begun.state_dict().items()}
    fitted = fit(plant(60), begun, QUICK)
    assert fitted.best_epoch == 0
    after = fitted.network.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items() if not name.startswith("fusion."))


@pytest.mark.parametrize("better", [False, True])
def test_the_fusion_by_time_is_kept_only_where_it_finds_later_windows_better(
    better: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.3, 0.4 if better else 0.3])
    monkeypatch.setattr(fusion_training, "next_window_retrieval", lambda *_: next(scores))
    monkeypatch.setattr(fitting, "validation_retrieval", lambda *_: {"a -> b": 0.5})
    begun = start(preset("tiny"), None, 1)
    before = begun.fusion.latents.detach().clone()
    fitted = fit(plant(60), begun, QUICK)
    assert (fitted.next_window_before, fitted.next_window) == (0.3, 0.4 if better else 0.3)
    assert torch.equal(before, fitted.network.fusion.latents) == (not better)
    assert fitted.network.config.whitened == better


def test_training_stops_when_validation_gets_no_better(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.1, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1])
    monkeypatch.setattr(fitting, "validation_retrieval", lambda *_: {"a -> b": next(scores)})
    fitted = trained(plant(60), replace(QUICK, epochs=7, patience=2))
    assert (fitted.epochs, fitted.best_epoch, fitted.retrieval) == (3, 1, 0.5)


@pytest.mark.usefixtures("ever_better")
def test_a_third_party_modality_is_trained_like_the_built_in_ones(tmp_path: Path) -> None:
    windows = [
        replace(w, window=replace(w.window, extra={"image": [(w.window.start_ms, picture(i % 4))]}))
        for i, w in enumerate(plant(60))
    ]
    network = start(with_images(), None, 3)
    before = network.encoder("image").state_dict()["patch.weight"].clone()
    fitted = fit(windows, network, QUICK)
    assert "image" in fitted.contributions
    assert "image -> caption" in fitted.directions
    assert not torch.equal(before, fitted.network.encoder("image").state_dict()["patch.weight"])
    write_checkpoint(tmp_path, fitted.network, "")
    assert set(models.load(tmp_path).embed([windows[0].window])[0].attention) == {*ORDER, "image"}


# -- deterministic ----- ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("ever_better")
def test_the_same_seed_gives_the_same_version_and_another_seed_another(tmp_path: Path) -> None:
    windows = plant(60)
    one, two = (version(trained(windows), tmp_path / name) for name in "ab")
    other = version(trained(windows, replace(QUICK, seed=9)), tmp_path / "c")
    assert one == two
    assert other != one


@pytest.mark.usefixtures("ever_better")
def test_the_order_in_which_windows_are_given_changes_nothing(tmp_path: Path) -> None:
    windows = plant(60)
    assert version(trained(windows), tmp_path / "a") == version(trained(windows[::-1]), tmp_path / "b")


@pytest.mark.usefixtures("ever_better")
def test_a_run_that_was_interrupted_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    windows, options = plant(60), replace(QUICK, epochs=3, patience=9)
    whole = version(trained(windows, options), tmp_path / "whole")

    class Interrupted(Exception):
        pass

    def stop_in_the_third_epoch(progress: Progress) -> None:
        if progress.epoch == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        trained(windows, options, on_progress=stop_in_the_third_epoch, keep=tmp_path / "state")
    seen: list[Progress] = []
    resumed = trained(windows, options, on_progress=seen.append, keep=tmp_path / "state", resume=True)
    assert {p.epoch for p in seen if p.stage == "epoch"} == {2}
    assert resumed.best_epoch == 3
    assert version(resumed, tmp_path / "resumed") == whole


def test_a_state_of_another_run_is_refused(tmp_path: Path) -> None:
    trained(plant(60), replace(QUICK, epochs=1), keep=tmp_path)
    for windows, options in ((plant(61), replace(QUICK, epochs=1)), (plant(60), replace(QUICK, epochs=1, seed=4))):
        with pytest.raises(models.ModelError, match="other data, options or weights"):
            trained(windows, options, keep=tmp_path, resume=True)


def test_nothing_to_resume_and_a_damaged_state_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(models.ModelError, match="without --resume"):
        trained(plant(60), QUICK, keep=tmp_path, resume=True)
    trained(plant(60), replace(QUICK, epochs=1), keep=tmp_path)
    state = tmp_path / "state.safetensors"
    state.write_bytes(state.read_bytes()[:500])
    with pytest.raises(models.ModelError, match="damaged"):
        trained(plant(60), replace(QUICK, epochs=1), keep=tmp_path, resume=True)


# -- split and start ------------------------------------------------------------------------------------------------


def test_validation_is_the_last_part_of_the_time_with_a_gap_before_it() -> None:
    windows = plant(100)
    before, after = split_training_validation(windows, 0.2, 3 * SPAN)
    assert after == windows[80:]
    assert before == windows[:77]


def test_fine_tuning_starts_from_all_weights_that_fit() -> None:
    shipped = read_checkpoint(models.SHIPPED)[0]
    network = start(shipped.config, models.SHIPPED, 0)
    given = shipped.state_dict()
    assert all(torch.equal(weights, given[name]) for name, weights in network.state_dict().items())
    assert all(p.requires_grad for p in network.parameters())
    other = start(replace(shipped.config, fusion="concat"), models.SHIPPED, 0)
    assert torch.equal(other.state_dict()["encoders.caption.sentence.place"], given["encoders.caption.sentence.place"])


def test_cuda_that_is_not_there_is_an_error_that_names_what_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(models.ModelError, match="--device cpu"):
        fitting.choose_device("cuda")
    assert fitting.choose_device("auto").type == "cpu"


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["readings", "clips", "captions"])
def test_one_modality_only_is_an_error_that_names_what_mends_it(modality: str) -> None:
    none = {name: () for name in ("readings", "clips", "captions") if name != modality}
    windows = [replace(w, window=replace(w.window, **none)) for w in plant(60)]
    with pytest.raises(models.ModelError, match="no window holds two modalities"):
        trained(windows)


@pytest.mark.parametrize("count", [0, 1, 3, 39])
def test_too_few_windows_are_an_error_that_names_what_mends_it(count: int) -> None:
    with pytest.raises(models.ModelError, match="SENSORIUM_WINDOW__SIZE_MS"):
        trained(plant(count))


def test_all_windows_at_one_time_cannot_be_split() -> None:
    same = [StreamWindow(f"m{i}", replace(w.window, start_ms=0, end_ms=SPAN)) for i, w in enumerate(plant(60))]
    with pytest.raises(models.ModelError, match="longer recording"):
        trained(same)


def degenerate(kind: str) -> list[StreamWindow]:
    out = []
    for w in plant(60):
        window = w.window
        if kind == "constant sensors":
            window = replace(window, readings=[(t, {"a": 5.0, "b": 0.0}) for t, _ in window.readings])
        elif kind == "nan":
            bad = (math.nan, math.inf, -math.inf, None)
            window = replace(window, readings=[(t, {"a": bad[t % 4], "b": bad[t % 3]}) for t, _ in window.readings])
        elif kind == "huge":
            window = replace(window, readings=[(t, {"a": 1e300 * (-1) ** t, "b": 5e-324}) for t, _ in window.readings])
        elif kind == "silence":
            window = replace(window, clips=[(t, np.zeros_like(s)) for t, s in window.clips])
        elif kind == "empty clips":
            window = replace(window, clips=[(t, s[:0]) for t, s in window.clips])
        elif kind == "one caption":
            window = replace(window, captions=[(t, "as ever") for t, _ in window.captions])
        else:
            window = replace(
                window,
                readings=[(t, {"a": 5.0}) for t, _ in window.readings],
                captions=[(0, "")],
                clips=[(t, np.zeros_like(s)) for t, s in window.clips],
            )
        out.append(replace(w, window=window))
    return out


@pytest.mark.parametrize(
    "kind", ["constant sensors", "nan", "huge", "silence", "empty clips", "one caption", "all of it the same"]
)
def test_degenerate_windows_end_in_a_usable_model(kind: str, tmp_path: Path) -> None:
    check_usable(trained(degenerate(kind), replace(QUICK, epochs=1)), tmp_path)


def test_windows_that_each_lack_another_modality_train(tmp_path: Path) -> None:
    fields = ("readings", "clips", "captions")
    windows = [replace(w, window=replace(w.window, **{fields[i % 3]: ()})) for i, w in enumerate(plant(70))]
    windows += [StreamWindow("quiet", WindowInput(i, i + 1)) for i in range(5)]
    check_usable(trained(windows, replace(QUICK, epochs=1)), tmp_path)


def test_a_loss_that_is_not_finite_is_an_error_that_names_what_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "step_losses", lambda *_: {"a": torch.tensor(math.nan, requires_grad=True)})
    with pytest.raises(models.ModelError, match="--rate"):
        trained(plant(60))


def test_a_pretrained_encoder_is_pinned_by_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from models.encoders import pretrained

    monkeypatch.setattr(pretrained, "_sentence_vector", lambda folder, text: np.full(6, 6**-0.5, np.float32))
    (tmp_path / "config.json").write_text("{}")
    config = preset("tiny")
    options = {"name": "sentence-transformers", "path": str(tmp_path)}
    config = replace(config, encoders={**config.encoders, "caption": options})
    fitted = fit(plant(60), Network(config), replace(QUICK, epochs=1))
    assert fitted.network.config.encoders["caption"]["sha256"] == pretrained.checksum(tmp_path)
