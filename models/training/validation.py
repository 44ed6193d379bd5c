"""Validation of training on a stream: how well each modality of a window finds the others of the same window."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from models.config import SHARED_DIM
from models.embedder import Embedder
from models.network import Network
from models.training.stream_losses import window_keys
from models.training.stream_windows import StreamWindow


def validation_retrieval(network: Network, windows: Sequence[StreamWindow], guard_ms: int) -> dict[str, float]:
    """Mean reciprocal rank of a window's own vector by direction, "audio -> caption" and so on, among windows that are
    neither its neighbours in time (guard_ms) nor have the same words. Ties count against the model. Directions with
    fewer than two windows are left out."""
    network = copy.deepcopy(network).cpu().eval()
    network.config = replace(network.config, balance="none")
    vectors = Embedder(network, "validation").embed([w.window for w in windows])
    keys = window_keys(windows)
    out: dict[str, float] = {}
    for one in network.modalities:
        for two in network.modalities:
            rows = [i for i, v in enumerate(vectors) if one in v.unimodal and two in v.unimodal]
            if one == two or len(rows) < 2:
                continue
            left, right = (np.stack([vectors[i].unimodal[m][:SHARED_DIM] for i in rows]) for m in (one, two))
            scores = left @ right.T  # (R, R)
            negative = keys.labels(torch.tensor(rows), guard_ms).numpy() < 0
            ranks = 1 + ((scores >= np.diag(scores)[:, None]) & negative).sum(1)
            out[f"{one} -> {two}"] = float(np.mean(1 / ranks))
    return out


def mean_over(directions: Mapping[str, float]) -> float:
    """The mean of all directions; 0 where there is none."""
    return float(np.mean(list(directions.values()))) if directions else 0.0
