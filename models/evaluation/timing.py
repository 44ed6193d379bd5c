"""CPU time of a model's stages."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from models.embedder import BATCH, Embedder
from models.evaluation import metrics
from models.interface import WindowInput
from models.network import Network


def stage_times(network: Network, windows: Sequence[WindowInput], batches: int = 40) -> dict[str, dict[str, float]]:
    """CPU ms of a window in each stage, one thread: p50 and p95 over batches of BATCH, and for one window alone. Only
    windows that hold all three modalities are timed."""
    torch.set_num_threads(1)
    complete = [w for w in windows if w.readings and w.clips and w.captions]
    model = Embedder(network, "timed")
    taken: dict[str, list[float]] = {}

    def timed(stage: str, work: Any, share: int) -> Any:
        began = time.process_time()
        done = work()
        taken.setdefault(stage, []).append((time.process_time() - began) * 1000 / share)
        return done

    with torch.inference_mode():
        for number in range(batches + 2):
            if number == 2:
                taken.clear()  # the first two are warm-up
            chunk = [complete[(number * BATCH + i) % len(complete)] for i in range(BATCH)]
            for name in network.modalities:
                encoder = network.encoder(name)
                items = timed(f"read {name}", lambda e=encoder, c=chunk: [e.read(w) for w in c], BATCH)
                shape = encoder.bucket(items[0])
                same = [item for item in items if encoder.bucket(item) == shape]
                timed(f"encode {name}", lambda e=encoder, s=same: e(s, BATCH), BATCH)
            timed(f"all, in batches of {BATCH}", lambda c=chunk: model.embed(c), BATCH)
            timed("all, one window alone", lambda c=chunk: model.embed(c[:1]), 1)
    return {
        stage: dict(zip(("p50", "p95"), metrics.quantiles(values, 0.5, 0.95), strict=True))
        for stage, values in taken.items()
    }
