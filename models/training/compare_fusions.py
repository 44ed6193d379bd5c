"""The three fusions side by side, trained the same way on the same windows, and each single modality beside them.

Nothing else differs: the same windows, the same number of steps, the same loss, and either the same encoders, left as
they are (`fusion_only`, the default), or the same first weights of encoders that are trained along (`own_stream`).
All are trained on the earlier part of each stream's time and measured on the later part.
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
from models.evaluation.corpus import MASKS, Corpus, split_by_time
from models.evaluation.report import RULES, Judged, Space, embed_corpus, precisions
from models.training.fusion_only import FusionOptions, encode_corpus, fit_fusion, space_of
from models.training.own_stream import FitOptions, fit, start
from models.training.stream_windows import StreamWindow

ATTENTION = "attention"
Tables = dict[str, dict[str, dict[str, Judged]]]  # index -> mask -> method -> the precision of each query


@dataclass(frozen=True, slots=True)
class Trial:
    """`share`: of each stream's time that is trained on, 0..1. `whole`: how to train the encoders too; None: fusions
    only."""

    config: ModelConfig
    init: Path | None  # folder of the first weights; a fusion of another kind starts from random ones
    fusion: FusionOptions = field(default_factory=FusionOptions)
    whole: FitOptions | None = None
    seeds: int = 3
    share: float = 0.6


def compare_fusions(corpus: Corpus, trial: Trial, on_line: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Train and measure; see `comparison_report` for the result. on_line: called with a line of text after each
    training. Raises ModelError where the windows are too few to train on or to measure with."""
    early, late = split_by_time(corpus, trial.share)
    if not late.queryable()[late.complete()].any():
        raise ModelError("no state has enough windows in the later part of the recording; give it more with --share")
    runs: list[Tables] = []
    training: list[dict[str, Any]] = []
    trained = _fusions(early, late, trial) if trial.whole is None else _networks(early, late, trial)
    spaces: dict[str, Space] = {}
    for kind, seed, space, facts in trained:
        training.append({"fusion": kind, "seed": seed, **facts})
        on_line(f"seed {seed}, {kind}: {facts['CPU s']:.0f} CPU-s")
        spaces[kind] = space
        if len(spaces) == len(FUSIONS):
            runs.append(measure(spaces, late))
            spaces = {}
    counts = {"trained on": len(early.windows), "measured on": len(late.windows)}
    return {**counts, "training": training, **comparison_report(runs)}


Outcome = tuple[str, int, Space, dict[str, Any]]  # fusion, seed, its vectors, facts of its training


def _fusions(early: Corpus, late: Corpus, trial: Trial) -> Iterator[Outcome]:
    """Fusions over fixed encoders."""
    network = start(trial.config, trial.init, 0).eval().requires_grad_(False)
    encoded, held_out = encode_corpus(network, early), encode_corpus(network, late)
    for seed in range(trial.seeds):
        for kind in FUSIONS:
            began = time.process_time()
            trained = fit_fusion(network, encoded, kind, trial.fusion, seed)
            seconds = time.process_time() - began
            yield kind, seed, space_of(trained, held_out), {"steps": trial.fusion.steps, "CPU s": round(seconds, 1)}


def _networks(early: Corpus, late: Corpus, trial: Trial) -> Iterator[Outcome]:
    """Encoders and fusion together, as `sensorium train` does."""
    assert trial.whole is not None
    windows = [StreamWindow(s, w) for s, w in zip(early.streams, early.windows, strict=True)]
    for seed in range(trial.seeds):
        for kind in FUSIONS:
            network = start(replace(trial.config, fusion=kind), trial.init, seed)
            fitted = fit(windows, network, replace(trial.whole, seed=seed))
            facts = {
                "epochs": fitted.epochs,
                "best epoch": fitted.best_epoch,
                "retrieval before": round(fitted.before, 4),
                "retrieval": round(fitted.retrieval, 4),
                "CPU s": round(fitted.cpu_seconds, 1),
            }
            yield kind, seed, embed_corpus(Embedder(fitted.network, kind), late), facts


def measure(spaces: dict[str, Space], corpus: Corpus) -> Tables:
    """Precision of every query by index, mask and method. A single modality is queried by its vectors in attention's
    run: the best of a mask is the best that is possible without fusing."""
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


def comparison_report(runs: Sequence[Tables]) -> dict[str, Any]:
    """Means over seeds with intervals, and attention's lead over every other method, query by query. `wins`: attention
    leads the best single modality and both simple fusions by the mean; `surely`: the intervals of all these leads are
    above 0."""
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
    """Query by query, paired: the difficulty of a query cancels out."""
    return one[0] - other[0], one[1], one[2]


def _interval(judged: Judged) -> dict[str, Any]:
    low, high = metrics.bootstrap(*judged)
    return {"precision": metrics.macro_mean(judged[0], judged[1]), "low": low, "high": high}
