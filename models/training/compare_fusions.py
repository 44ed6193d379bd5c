"""The three fusions side by side, trained the same way on the same windows, and each single modality beside them.

Nothing else differs: the same windows, the same number of steps, the same loss, and either the same encoders, left as
they are (`fusion_only`, the default), or the same first weights of encoders that are trained along (`own_stream`).
All train on the earlier part of each stream's time and are asked about the later one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.config import FUSIONS, ModelConfig
from models.embedder import Embedder
from models.errors import ModelError
from models.evaluation import metrics
from models.evaluation.report import (
    MASKS,
    RULES,
    Corpus,
    Judged,
    Space,
    embed_corpus,
    precisions,
    split_by_time,
)
from models.training.fusion_only import FusionOptions, encode, fit_fusion, space_of
from models.training.own_stream import FitOptions, StreamWindow, fit, start

ATTENTION = "attention"
Told = Callable[[str], None]
Tables = dict[str, dict[str, dict[str, Judged]]]  # index -> mask -> method -> what each query got


@dataclass(frozen=True, slots=True)
class Trial:
    """`share`: of each stream's time that is trained on. `whole`: how to train encoders too; None: fusions only."""

    config: ModelConfig
    init: Path | None  # weights to begin with; a fusion of another kind begins anew
    fusion: FusionOptions = field(default_factory=FusionOptions)
    whole: FitOptions | None = None
    seeds: int = 3
    share: float = 0.6


def compare_fusions(corpus: Corpus, trial: Trial, told: Told = lambda _: None) -> dict[str, Any]:
    """Train and measure; see `report` for what comes of it. Raises ModelError where the windows cannot teach."""
    early, late = split_by_time(corpus, trial.share)
    if not late.asked()[late.complete()].any():
        raise ModelError("the later part of the recording holds no state with windows enough to ask for: see --share")
    runs: list[Tables] = []
    training: list[dict[str, Any]] = []
    trained = _fusions(early, late, trial) if trial.whole is None else _networks(early, late, trial)
    spaces: dict[str, Space] = {}
    for kind, seed, space, said in trained:
        training.append({"fusion": kind, "seed": seed, **said})
        told(f"seed {seed}, {kind}: {said['CPU s']:.0f} CPU-s")
        spaces[kind] = space
        if len(spaces) == len(FUSIONS):
            runs.append(measure(spaces, late))
            spaces = {}
    return {"trained on": len(early.windows), "asked about": len(late.windows), "training": training, **report(runs)}


Outcome = tuple[str, int, Space, dict[str, Any]]  # fusion, seed, its vectors, what is to be said of its training


def _fusions(early: Corpus, late: Corpus, trial: Trial) -> Iterator[Outcome]:
    """Fusions over encoders that stay as they are."""
    network = start(trial.config, trial.init, 0).eval().requires_grad_(False)
    lessons, questions = encode(network, early), encode(network, late)
    for seed in range(trial.seeds):
        for kind in FUSIONS:
            began = time.process_time()
            trained = fit_fusion(network, lessons, kind, trial.fusion, seed)
            seconds = time.process_time() - began
            yield kind, seed, space_of(trained, questions), {"steps": trial.fusion.steps, "CPU s": round(seconds, 1)}


def _networks(early: Corpus, late: Corpus, trial: Trial) -> Iterator[Outcome]:
    """Encoders and fusion together, as `sensorium train` does."""
    assert trial.whole is not None
    lessons = [StreamWindow(s, w) for s, w in zip(early.streams, early.windows, strict=True)]
    for seed in range(trial.seeds):
        for kind in FUSIONS:
            network = start(replace(trial.config, fusion=kind), trial.init, seed)
            fitted = fit(lessons, network, replace(trial.whole, seed=seed))
            said = {
                "epochs": fitted.epochs,
                "best epoch": fitted.best_epoch,
                "retrieval before": round(fitted.before, 4),
                "retrieval": round(fitted.retrieval, 4),
                "CPU s": round(fitted.cpu_seconds, 1),
            }
            yield kind, seed, embed_corpus(Embedder(fitted.network, kind), late), said


def measure(spaces: dict[str, Space], corpus: Corpus) -> Tables:
    """Precision of every query by mask and method. A single modality is asked by the vectors that attention's run gave
    it: a mask's best one is the best that anybody gets without fusing."""
    tables: Tables = {"same mask": {}, "whole windows": {}}
    alone = spaces[ATTENTION].unimodal
    for mask, names in MASKS.items():
        single = {
            f"{name} alone": precisions(alone[name], spaces[ATTENTION], corpus, names, whole=False)["same mask"]
            for name in names
        }
        for index in tables:
            tables[index][mask] = dict(single)
        for kind, space in spaces.items():
            for index, judged in precisions(space.masked[mask], space, corpus, names).items():
                tables[index][mask][kind] = judged
    return tables


def report(runs: Sequence[Tables]) -> dict[str, Any]:
    """Means over seeds with intervals, and attention's lead over every other method, query by query. `wins`: over the
    best single modality and both simple fusions by the mean; `surely`: the intervals of all these leads are above 0."""
    out: dict[str, Any] = {"rules": list(RULES), "seeds": len(runs)}
    for index in runs[0]:
        out[index] = {}
        for mask in MASKS:
            judged = {name: pooled([run[index][mask][name] for run in runs]) for name in runs[0][index][mask]}
            rows = {name: _interval(one) for name, one in judged.items()}
            for name, row in rows.items():
                each = [metrics.macro_mean(*run[index][mask][name][:2]) for run in runs]
                row["of each seed"] = [round(value, 4) for value in each]
            single = max((n for n in rows if n.endswith(" alone")), key=lambda n: rows[n]["precision"])
            against = [single, *(kind for kind in FUSIONS if kind != ATTENTION)]
            leads = {name: _interval(difference(judged[ATTENTION], judged[name])) for name in against}
            out[index][mask] = {
                "methods": rows,
                "best single": single,
                "lead of attention over": leads,
                "wins": all(lead["precision"] > 0 for lead in leads.values()),
                "surely": all(lead["low"] > 0 for lead in leads.values()),
            }
    return out


def pooled(runs: Sequence[Judged]) -> Judged:
    """Each query's mean over the seeds: queries, states and stretches are the same in every run."""
    values: NDArray[np.floating[Any]] = np.mean([one[0] for one in runs], axis=0)
    return values, runs[0][1], runs[0][2]


def difference(one: Judged, other: Judged) -> Judged:
    """Query by query: what both find hard drops out."""
    return one[0] - other[0], one[1], one[2]


def _interval(judged: Judged) -> dict[str, Any]:
    low, high = metrics.bootstrap(*judged)
    return {"precision": metrics.macro_mean(judged[0], judged[1]), "low": low, "high": high}
