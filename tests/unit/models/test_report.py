"""Evaluation: its rules hold, good and bad models are told apart, and the command prints what it measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from models.errors import ModelError
from models.evaluation import report as evaluation
from models.evaluation.corpus import GUARD_MS, MASKS, Corpus, Sign, fault_signs, split_by_time
from models.evaluation.report import embed_corpus, evaluate, precisions
from models.interface import DIM, MODALITY_NAMES, WindowInput, WindowVectors
from models.training.compare_fusions import Tables, comparison_report
from streams.cli import app
from streams.cli.common import CommandError
from streams.settings import Settings
from streams.sources.dataset import labelled_windows
from tests.two_models import random_model

HOP = 10_000
STATES = ("calm", "loud", "hot")


def corpus(count: int = 240, streams: int = 3) -> Corpus:
    """Windows whose state is in their first reading; every second has no caption."""
    rng = np.random.default_rng(0)
    windows, names, signs = [], [], []
    for n in range(count):
        at, state = n // streams * HOP, int(rng.integers(3))
        clip = (at, np.zeros(10, np.int16))
        captions = [(at, f"round {n}")] if n % 2 else []
        windows.append(WindowInput(at, at + HOP, [(at, {"state": float(state), "own": float(n)})], [clip], captions))
        names.append(f"s{n % streams}")
        signs.append([Sign(STATES[state])])
    return Corpus(windows, names, signs)


class Oracle:
    """Knows the state by the readings, and nothing else; `blur` is noise of a window's own."""

    version = "oracle-1"

    def __init__(self, blur: float) -> None:
        self.blur = blur

    def embed(self, windows: Sequence[WindowInput]) -> list[WindowVectors]:
        return [self._one(window) for window in windows]

    def _one(self, window: WindowInput) -> WindowVectors:
        own_number = int(window.readings[0][1]["own"] or 0) if window.readings else 0
        rng = np.random.default_rng([window.start_ms, own_number])
        own = rng.standard_normal(DIM) * self.blur / DIM**0.5
        if window.readings:
            own[int(window.readings[0][1]["state"] or 0)] += 1
        vector = (own / max(np.linalg.norm(own), 1e-9) if own.any() else np.eye(DIM)[9]).astype(np.float32)
        there = [
            name
            for name, held in zip(MODALITY_NAMES, (window.readings, window.clips, window.captions), strict=True)
            if held
        ]
        return WindowVectors(vector, dict.fromkeys(there, vector), dict.fromkeys(there, 1 / len(there)))

    def embed_text(self, text: str) -> Any:
        raise NotImplementedError

    embed_audio = embed_text


def test_a_mask_takes_away_what_it_does_not_name() -> None:
    window = corpus().windows[1]
    for mask in MASKS.values():
        cut = window.only(mask)
        held = {"sensor": cut.readings, "audio": cut.clips, "caption": cut.captions}
        assert {name for name, some in held.items() if some} == set(mask)


def test_training_and_questions_are_apart_in_time_within_each_stream() -> None:
    whole = corpus()
    early, late = split_by_time(whole, 0.6)
    assert len(early.windows) + len(late.windows) < len(whole.windows)
    for stream in set(whole.streams):
        before = max(w.start_ms for s, w in zip(early.streams, early.windows, strict=True) if s == stream)
        after = min(w.start_ms for s, w in zip(late.streams, late.windows, strict=True) if s == stream)
        assert after - before >= GUARD_MS


def test_no_answer_is_a_neighbour_in_time_of_the_question() -> None:
    some = corpus(60)
    apart = some.apart()
    for i, j in np.ndindex(apart.shape):
        near = some.streams[i] == some.streams[j] and abs(some.starts[i] - some.starts[j]) <= GUARD_MS
        assert apart[i, j] == (not near)


def test_rare_and_unknown_states_are_not_queried() -> None:
    some = corpus(60)
    signs = [[], [Sign("once")], *some.signs[2:]]
    assert replace(some, signs=signs).queryable().tolist() == [False, False, *[True] * 58]


def test_the_state_of_a_window_cut_down_is_what_shows_in_the_rest_of_it() -> None:
    rain, hot = Sign("rain", frozenset({"audio", "caption"})), Sign("hot", frozenset({"sensor"}))
    some = replace(corpus(4), signs=[[rain, hot], [rain], [hot], []])
    assert some.states().tolist() == ["rain+hot", "rain", "hot", ""]
    assert some.states(("audio",)).tolist() == ["rain", "rain", "calm", ""]
    assert some.states(("sensor",)).tolist() == ["hot", "calm", "hot", ""]


def test_a_kind_that_only_names_modalities_is_a_fault_in_each() -> None:
    everywhere, heard, worn = (
        fault_signs(*told)
        for told in (
            ("all", ("caption", "sensor", "audio")),
            ("audio", ("audio",)),
            ("worn bearing", ("sensor", "audio")),
        )
    )
    some = replace(corpus(3), signs=[everywhere, heard, worn])
    assert some.states(("audio",)).tolist() == ["audio fault", "audio fault", "worn bearing"]
    assert some.states(("sensor",)).tolist() == ["sensor fault", "calm", "worn bearing"]
    assert len(set(some.states().tolist())) == 3
    assert fault_signs("leak", ()) == [Sign("leak")]


def test_a_fault_that_a_mask_hides_costs_it_nothing() -> None:
    some = corpus()
    shown = frozenset({"sensor"})
    hidden = replace(some, signs=[[Sign("s"), Sign(signs[0].name, shown)] for signs in some.signs])
    for corpus_, high in ((some, False), (hidden, True)):
        measured = evaluate(Oracle(0.1), corpus_, seeds=1)["masks"]["no sensors"]["same mask"]["precision"]
        assert (measured == 1.0) is high


def test_a_model_that_knows_the_state_finds_it_and_one_that_is_noise_does_not() -> None:
    some = corpus()
    for blur, low, high in ((0.1, 0.999, 1.0), (100.0, 0.2, 0.5)):
        measured = evaluate(Oracle(blur), some, seeds=2)
        for index in ("same mask", "whole windows"):
            for mask in ("full", "no sound", "sensors only"):
                assert low <= measured["masks"][mask][index]["precision"] <= high, (blur, index, mask)
        assert low <= measured["single modalities"]["sensor"]["same mask"]["precision"] <= high
        assert all(low <= value <= high for value in measured["few shots"]["accuracy"])
        assert measured["masks"]["full"]["cosine to full"] == {"mean": pytest.approx(1), "p5": pytest.approx(1)}
    assert measured["complete"] == 120
    json.dumps(measured, allow_nan=False)


def test_retrieval_is_in_all_directions_with_the_number_of_queries() -> None:
    measured = evaluate(Oracle(0.5), corpus(), seeds=1)["retrieval"]
    names = [*MODALITY_NAMES, "joint"]
    assert set(measured) == {f"{a} -> {b}" for a in names for b in names if a != b}
    # the oracle's vectors of a window are all the same: each finds its own
    assert {(one["recall at 1"], one["median rank"], one["of"]) for one in measured.values()} == {(1.0, 1.0, 120.0)}


def test_windows_with_the_same_captions_are_all_relevant() -> None:
    some = corpus()
    same = [replace(w, captions=[(w.start_ms, "all quiet")]) if w.captions else w for w in some.windows]
    scrambled = Oracle(100.0)
    one = evaluate(scrambled, replace(some, windows=same), seeds=1)["retrieval"]["joint -> caption"]
    assert one["median rank"] == 1  # whatever is nearest is right


def test_masks_are_measured_on_windows_that_hold_all_three() -> None:
    some = corpus()
    space = embed_corpus(Oracle(0.1), some)
    assert len(space.index) == 120
    (values, labels, blocks) = precisions(space.masked["sensors only"], space, some, ("sensor",))["whole windows"]
    assert (len(values), set(labels), len(set(blocks))) == (120, set(STATES), 6)


def test_a_window_of_which_nobody_knows_the_state_is_no_answer() -> None:
    """Windows at the end of a recording may lack a clip: they are near what asks without sound."""
    some = corpus()
    space = embed_corpus(Oracle(0.0), some)
    blind = WindowInput(10**9, 10**9 + HOP, readings=some.windows[0].readings)
    more = Corpus([*some.windows, *[blind] * 50], [*some.streams, *["elsewhere"] * 50], [*some.signs, *[()] * 50])
    queries = space.masked["sensors only"]
    wider = replace(space, whole=np.concatenate([space.whole, np.repeat(queries[:1] * 2, 50, 0)]))
    for index in ("same mask", "whole windows"):
        before, after = (precisions(queries, *given, ("sensor",))[index][0] for given in ((space, some), (wider, more)))
        np.testing.assert_array_equal(before, after)
        assert before.mean() == 1.0


def test_a_recording_without_captions_is_an_error_that_names_what_is_missing() -> None:
    some = corpus()
    with pytest.raises(ModelError, match="hold readings, sound and a caption"):
        embed_corpus(Oracle(1), replace(some, windows=[replace(w, captions=()) for w in some.windows]))


def judged(value: float, spread: float = 0.05, seed: int = 0) -> evaluation.Judged:
    rng = np.random.default_rng(seed)
    return value + rng.normal(0, spread, 300), np.repeat(["a", "b"], 150), np.arange(300) // 10


def tables(attention: float, spread: float = 0.05) -> Tables:
    methods = {"attention": judged(attention, spread, 1), "concat": judged(0.6, spread, 2)}
    methods |= {"mean": judged(0.5, spread, 3), "audio alone": judged(0.4, spread, 4)}
    methods |= {"sensor alone": judged(0.62, spread, 5)}
    return {index: dict.fromkeys(MASKS, methods) for index in ("same mask", "whole windows")}


def test_a_lead_is_sure_only_beyond_its_interval_and_over_the_best_single_modality() -> None:
    for value, spread, wins, surely in ((0.7, 0.05, True, True), (0.61, 0.05, False, False), (0.7, 2.0, None, False)):
        one = comparison_report([tables(value, spread)])["same mask"]["full"]
        if spread < 1:
            assert one["best single"] == "sensor alone"
            assert one["wins"] is wins
        assert one["surely"] is surely
        assert set(one["lead of attention over"]) == {one["best single"], "concat", "mean"}


def test_seeds_are_averaged_query_by_query_and_shown_one_by_one() -> None:
    row = comparison_report([tables(0.7), tables(0.9)])["whole windows"]["no caption"]["methods"]["attention"]
    assert row["precision"] == pytest.approx(np.mean(row["of each seed"]), abs=1e-3)
    assert row["of each seed"][1] - row["of each seed"][0] == pytest.approx(0.2, abs=1e-3)


async def test_a_recording_becomes_the_windows_of_the_service_with_its_labels(plant_recording: Path) -> None:
    found = await labelled_windows(plant_recording, Settings(state=plant_recording / "none"))
    assert len({(one.stream, one.window.start_ms) for one in found}) == len(found) == 3 * 90
    rows = (plant_recording / "labels.csv").read_text().splitlines()[1:]
    assert rows
    faulty = {one.stream for one in found if one.faults}
    assert faulty == {row.split(",")[0] for row in rows}
    assert {(kind, " ".join(shows)) for one in found for kind, shows in one.faults} == {
        tuple(row.split(",")[3:5]) for row in rows
    }
    assert sum(len(one.window.readings) for one in found) == sum(
        len(path.read_text().splitlines()) - 1 for path in (plant_recording / "sensors").glob("*.csv")
    )


@pytest.fixture(scope="module")
def small_recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from streams.sources.plant_recording import record

    folder = tmp_path_factory.mktemp("eval") / "plant"
    record(folder, streams=2, seed=3, seconds=1500)
    return folder


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["eval", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_prints_tables_and_json(tmp_path: Path, small_recording: Path) -> None:
    version = random_model(tmp_path / "model", 1)
    arguments = ["--recording", str(small_recording), "--model", str(tmp_path / "model"), "--seeds", "1"]
    measured = json.loads(run(*arguments, "--json"))
    assert measured["model"] == version
    assert set(measured["masks"]) == set(MASKS)
    assert all(0 < stage["p50"] <= stage["p95"] for stage in measured["CPU ms of a window"].values())
    text = run(*arguments)
    for shown in ("sensor -> caption", "captions only", "modality gap", "shots of", "in batches of", "bootstrap"):
        assert shown in text


def test_the_command_compares_fusions_over_the_encoders_of_a_model(tmp_path: Path, small_recording: Path) -> None:
    random_model(tmp_path / "model", 1)
    arguments = ["--recording", str(small_recording), "--model", str(tmp_path / "model"), "--compare-fusions"]
    text = run(*arguments, "--seeds", "2", "--steps", "3")
    assert "index: whole windows" in text
    assert "attention leads on" in text
    with pytest.raises(CommandError, match="--epochs"):
        run(*arguments, "--preset", "tiny")


def test_the_command_trains_and_compares_the_fusions(small_recording: Path) -> None:
    arguments = ["--recording", str(small_recording), "--compare-fusions", "--preset", "tiny", "--epochs", "1"]
    compared = json.loads(run(*arguments, "--seeds", "1", "--json"))
    assert {row["fusion"] for row in compared["training"]} == {"attention", "concat", "mean"}
    full = compared["whole windows"]["full"]["methods"]
    assert set(full) == {"attention", "concat", "mean", "sensor alone", "audio alone", "caption alone"}
    assert set(compared["same mask"]["sound only"]["methods"]) == {"attention", "concat", "mean", "audio alone"}
