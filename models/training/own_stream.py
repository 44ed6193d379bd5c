"""Training on a stream's own windows, without labels: what one window shows together belongs together.

The last part of the time is kept for validation, with a gap before it, and training stops when retrieval there stops
getting better. Then the fusion alone is trained further over fixed encoders (`fusion_only`), and is kept where it finds
later windows better. The same seed gives the same weights on one machine type on the CPU, also when a run was
interrupted and resumed.
"""

from __future__ import annotations

import copy
import hashlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from models.calibration import JOINT, Calibration, calibrate, contributions
from models.checkpoint import read_checkpoint
from models.config import SHARED_DIM, BalanceKind, ModelConfig
from models.embedder import Embedder
from models.encoders.pretrained import pinned
from models.encoders.text_hashing import stable_hash
from models.errors import ModelError
from models.evaluation.corpus import Corpus
from models.network import Network
from models.training.fusion_only import FusionOptions, encode_corpus, refine_fusion
from models.training.losses import LossKind
from models.training.optim import optimizer_of, set_rate, update_ema
from models.training.run_state import RunState
from models.training.stream_losses import prepare, step_losses
from models.training.stream_windows import (
    MIN_WINDOWS,
    StreamWindow,
    check_windows,
    evenly_spread,
    guard_of,
    split_training_validation,
)
from models.training.validation import mean_over, validation_retrieval

VALIDATED = 256  # windows, spread over the validation time
CALIBRATED = 512  # windows
DOMINANT = 0.8  # share of all contributions
_FULL_BATCH = 64  # windows; smaller batches get the variance loss against collapse
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How to train. `guard_ms`: windows of a stream closer than this are never negatives of each other, and so long is
    the gap before validation; None: three windows."""

    epochs: int = 30
    rows: int = 64  # windows of a step
    rate: float = 7e-4
    patience: int = 6  # epochs without a better validation
    validation: float = 0.2  # share of the windows, the last ones
    guard_ms: int | None = None
    loss: LossKind = "siglip"
    balance: BalanceKind = "none"
    seed: int = 0
    device: Device = "auto"


@dataclass(frozen=True, slots=True)
class Progress:
    """After a step. `step` counts from 1; `retrieval` is the validation of the last finished epoch."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    retrieval: float | None
    stage: Literal["epoch", "fusion"] = "epoch"  # fusion: `step` of `steps` after the last epoch


@dataclass(slots=True)
class Fitted:
    """A trained network with its calibration, in eval mode on the CPU, and the measurements of its training."""

    network: Network
    training: int  # windows
    validation: int  # windows
    epochs: int
    best_epoch: int
    before: float  # retrieval of the validation windows before the first epoch
    retrieval: float  # mean reciprocal rank over all pairs of modalities, own window against all others
    next_window_before: float  # before the fusion was refined, see models.training.fusion_only.next_window_retrieval
    next_window: float
    directions: dict[str, float] = field(default_factory=dict)  # "audio -> caption" -> mean reciprocal rank
    contributions: dict[str, float] = field(default_factory=dict)  # modality -> 1 - cosine of the joint vector without
    cpu_seconds: float = 0.0

    def dominant(self) -> str | None:
        """A modality that makes up more than DOMINANT of all contributions, if there is one."""
        total = sum(self.contributions.values())
        return next((m for m, c in self.contributions.items() if c > DOMINANT * total), None)


def choose_device(name: Device) -> torch.device:
    """The device by name; auto: a GPU if there is one. Raises ModelError for cuda without a CUDA device."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelError("there is no CUDA device here; train with --device cpu, or --device auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def start(config: ModelConfig, init: Path | None, seed: int) -> Network:
    """A network with weights drawn by `seed`, and those of the model folder `init` wherever name and shape fit.

    Raises ModelError where the folder cannot be read.
    """
    torch.manual_seed(seed)
    network = Network(config)
    if init is not None:
        own = network.state_dict()
        given = read_checkpoint(init)[0].state_dict()
        own.update({k: v for k, v in given.items() if k in own and own[k].shape == v.shape})
        network.load_state_dict(own)
    return network.requires_grad_(True)


def fit(
    windows: Sequence[StreamWindow],
    network: Network,
    options: FitOptions,
    on_progress: Callable[[Progress], None] = lambda _: None,
    keep: Path | None = None,
    resume: bool = False,
) -> Fitted:
    """Train `network` (changed in place) on windows of any order.

    on_progress: called after each step. keep: folder for the state after each epoch; with `resume` a run continues
    from there. Raises ModelError where the windows are too few, the state belongs to another run, or the loss is no
    longer finite.
    """
    began = time.process_time()
    torch.set_num_threads(1)
    device = choose_device(options.device)
    held = check_windows(windows, network.modalities)
    guard_ms = guard_of(held, options.guard_ms)
    training, validation = split_training_validation(held, options.validation, guard_ms)
    latest, validation = validation[-2 * VALIDATED :], evenly_spread(validation, VALIDATED)
    if len(training) < MIN_WINDOWS // 2 or len(validation) < 4:
        raise ModelError(
            f"{len(training)} windows for training and {len(validation)} for validation, {guard_ms / 1000:.0f} s apart,"
            f" are too few: take a longer recording or time range"
        )
    config = network.config = pinned(replace(network.config, balance="none"))
    network.to(device).train()
    prepared = prepare(training, network)
    optimizer = optimizer_of(network)
    run = RunState(network, copy.deepcopy(network), optimizer, _fingerprint(config, options, held, network))
    run.before = mean_over(validation_retrieval(network, validation, guard_ms))
    run.record(run.before)
    if resume and keep is not None:
        run.load(keep)
    batches = max(1, len(training) // options.rows)
    while run.epoch < options.epochs and run.waited < options.patience:
        rng = random.Random(f"{options.seed}:{run.epoch}")  # by epoch: a resumed run draws what the whole one drew
        torch.manual_seed(stable_hash(f"{options.seed}:{run.epoch}") >> 1)
        order = rng.sample(range(len(training)), len(training))
        network.train()
        for b in range(batches):
            chosen = order[b * len(order) // batches : (b + 1) * len(order) // batches]
            step = run.epoch * batches + b
            set_rate(optimizer, step, options.epochs * batches, options.rate)
            with torch.autocast("cuda", dtype=torch.bfloat16, enabled=device.type == "cuda"):
                small = options.rows < _FULL_BATCH
                losses = step_losses(network, prepared, chosen, options.loss, small, guard_ms, rng)
            loss = _descend(network, optimizer, losses)
            update_ema(run.average, network, step)
            on_progress(Progress(run.epoch, options.epochs, b + 1, batches, loss, run.latest))
        run.epoch += 1
        run.record(mean_over(validation_retrieval(run.average, validation, guard_ms)))
        if keep is not None:
            run.save(keep)
    best = run.best_network().cpu().eval().requires_grad_(False)
    best, before, after = _refined(best, training, latest, guard_ms, options.seed, on_progress, run)
    fitted = Fitted(
        best, len(training), len(validation), run.epoch, run.best_epoch, run.before, run.best, before, after
    )
    fitted.directions = validation_retrieval(best, validation, guard_ms)
    model = Embedder(best, "calibration")
    fitted.contributions = contributions(model, [w.window for w in validation])
    best.calibration = _calibration(model, evenly_spread(training, CALIBRATED))
    best.config = replace(best.config, balance=options.balance)
    fitted.cpu_seconds = time.process_time() - began
    return fitted


def _refined(
    network: Network,
    training: list[StreamWindow],
    later: list[StreamWindow],
    guard_ms: int,
    seed: int,
    on_progress: Callable[[Progress], None],
    run: RunState,
) -> tuple[Network, float, float]:
    """See `refine_fusion`; the fusion is trained about 25 times over all windows, 400 steps at most."""
    encoded, held_out = (
        encode_corpus(network, Corpus([w.window for w in some], [w.stream for w in some], [()] * len(some)))
        for some in (training, later)
    )
    options = FusionOptions(near_ms=guard_ms, guard_ms=6 * guard_ms, align=0.1)
    options = replace(options, steps=min(options.steps, max(1, len(training) // 4)))

    def on_step(step: int, loss: float) -> None:
        on_progress(Progress(run.epoch, run.epoch, step, options.steps, loss, run.latest, "fusion"))

    return refine_fusion(network, encoded, held_out, options, seed, on_step)


def _descend(network: Network, optimizer: torch.optim.Optimizer, losses: dict[str, Tensor]) -> float:
    """One step down the sum of the losses; its value. Raises ModelError where that is not finite."""
    if not losses:
        return 0.0
    loss = torch.stack(list(losses.values())).sum()
    value = loss.item()
    if not np.isfinite(value):
        raise ModelError(f"the loss became {value}; train with a lower rate (--rate), or from the shipped weights")
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    return value


def _calibration(model: Embedder, windows: Sequence[StreamWindow]) -> Calibration:
    vectors = model.embed([w.window for w in windows])
    named: dict[str, list[Any]] = {JOINT: [v.joint[:SHARED_DIM] for v in vectors]}
    for v in vectors:
        for name, vector in v.unimodal.items():
            named.setdefault(name, []).append(vector[:SHARED_DIM])
    return calibrate({name: _directions(np.stack(rows)) for name, rows in named.items()})


def _directions(rows: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Shared parts (N, SHARED_DIM) as unit vectors, whatever share of the whole vector they had."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def _fingerprint(config: ModelConfig, options: FitOptions, windows: list[StreamWindow], network: Network) -> str:
    """Identifies a run: its config, options, windows and first weights."""
    digest = hashlib.sha256(f"{config.identity()}{asdict(options)}".encode())
    for w in windows:
        digest.update(f"{w.stream}\0{w.window.start_ms}\0{len(w.window.readings)}\0".encode())
        digest.update(repr((list(w.window.captions), [(t, len(s)) for t, s in w.window.clips])).encode())
    for tensor in network.state_dict().values():
        digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()
