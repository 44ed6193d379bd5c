"""Training on a stream's own windows, without labels: what one window shows together belongs together.

The last part of the time is kept for validation, with a gap before it, and training stops when retrieval there stops
getting better. Then the fusion goes on alone over encoders that stay (`fusion_only`), and is kept where it finds
later windows better. The same seed gives the same weights on one machine type on the CPU, also when a run was
interrupted and resumed in between.
"""

from __future__ import annotations

import copy
import hashlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from models.calibration import JOINT, calibrate, contributions
from models.checkpoint import read_checkpoint
from models.config import SHARED_DIM, BalanceKind, ModelConfig
from models.embedder import Embedder
from models.encoders.base import Encoded, Item, content
from models.encoders.pretrained import pinned
from models.encoders.text_hashing import stable_hash, words
from models.errors import ModelError
from models.evaluation.report import Corpus
from models.interface import WindowInput
from models.network import Network
from models.training.fusion_only import FusionOptions, encode, go_on_by_time
from models.training.losses import LossKind, co_occurrence, contrast, variance
from models.training.optim import follow, optimizer_of, set_rate
from models.training.run_state import RunState
from models.training.shipped import random_subsets

MIN_WINDOWS = 40  # below it nothing can be learnt that is worth keeping
VALIDATED = 256  # windows, spread over the validation time
CALIBRATED = 512
DOMINANT = 0.8
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class StreamWindow:
    stream: str
    window: WindowInput


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How to train; times in ms. `guard_ms`: windows of a stream closer than this are never negatives of each other,
    and so long is the gap before validation; None: three windows."""

    epochs: int = 30
    rows: int = 64  # windows of a step
    rate: float = 7e-4
    patience: int = 6  # epochs without a better validation
    validation: float = 0.2  # of the time
    guard_ms: int | None = None
    loss: LossKind = "siglip"
    balance: BalanceKind = "none"
    seed: int = 0
    device: Device = "auto"


@dataclass(frozen=True, slots=True)
class Progress:
    """After a step: where we are. `retrieval` is the validation of the last finished epoch."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    retrieval: float | None
    stage: Literal["epoch", "fusion"] = "epoch"  # fusion: `step` of `steps` after the last epoch


@dataclass(slots=True)
class Fitted:
    """A trained network with its calibration, in eval mode on the CPU, and what is to be said about it."""

    network: Network
    training: int  # windows
    validation: int
    epochs: int
    best_epoch: int
    before: float  # retrieval of the validation windows before the first epoch
    retrieval: float  # mean reciprocal rank over all pairs of modalities, own window against all others
    found_before: float  # by the fusion as it was after the epochs, see models.training.fusion_only.found_again
    found: float
    directions: dict[str, float] = field(default_factory=dict)
    contributions: dict[str, float] = field(default_factory=dict)
    cpu_seconds: float = 0.0

    def dominant(self) -> str | None:
        """A modality that makes up more than DOMINANT of all contributions, if there is one."""
        total = sum(self.contributions.values())
        return next((m for m, c in self.contributions.items() if c > DOMINANT * total), None)


def choose_device(name: Device) -> torch.device:
    """Raises ModelError where cuda is asked for and not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelError("there is no CUDA device here; train with --device cpu, or --device auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def start(config: ModelConfig, init: Path | None, seed: int) -> Network:
    """A fresh network, with all weights of the folder `init` that fit it."""
    torch.manual_seed(seed)
    network = Network(config)
    if init is not None:
        own = network.state_dict()
        given = read_checkpoint(init)[0].state_dict()
        own.update({k: v for k, v in given.items() if k in own and own[k].shape == v.shape})
        network.load_state_dict(own)
    return network.requires_grad_(True)


def check_windows(windows: Sequence[StreamWindow], modalities: Sequence[str]) -> list[StreamWindow]:
    """The windows that hold anything, by time. Raises ModelError where they cannot teach, with what would mend it."""
    held = [w for w in windows if any(content(w.window, m) for m in modalities)]
    held.sort(key=lambda w: (w.window.start_ms, w.stream))
    shared = sum(sum(bool(content(w.window, m)) for m in modalities) > 1 for w in held)
    if held and not shared:
        only = sorted({m for w in held for m in modalities if content(w.window, m)})
        raise ModelError(
            f"no window holds two modalities (there is {', '.join(only)}): training aligns what occurs together; "
            f"record clips or captions along with the readings, or keep the weights that ship (SENSORIUM_MODEL unset)"
        )
    if shared < MIN_WINDOWS:
        raise ModelError(
            f"{shared} windows with two modalities or more, at least {MIN_WINDOWS} are needed: take a longer recording "
            f"or time range, or shorter windows (SENSORIUM_WINDOW__SIZE_MS and SENSORIUM_WINDOW__HOP_MS)"
        )
    return held


def split_by_time(
    windows: Sequence[StreamWindow], validation: float, guard_ms: int
) -> tuple[list[StreamWindow], list[StreamWindow]]:
    """Sorted windows -> those for training and, after a gap of guard_ms, those of the last part of the windows."""
    cut = windows[min(len(windows) - 1, round(len(windows) * (1 - validation)))].window.start_ms
    before = [w for w in windows if w.window.end_ms <= cut - guard_ms]
    return before, [w for w in windows if w.window.start_ms >= cut]


@dataclass(slots=True)
class _Lessons:
    """Windows with what does not change from epoch to epoch."""

    windows: list[StreamWindow]
    stream: Tensor  # (N,) int
    time_ms: Tensor  # (N,) int64
    said: Tensor  # (N,) int64, -1 where nothing was said
    items: dict[str, dict[int, Item]]  # modality -> window -> what its encoder reads of it

    def labels(self, chosen: Tensor, guard_ms: int) -> Tensor:
        return co_occurrence(self.stream[chosen], self.time_ms[chosen], self.said[chosen], guard_ms)


def _lessons(windows: list[StreamWindow], network: Network) -> _Lessons:
    names = {name: i for i, name in enumerate(sorted({w.stream for w in windows}))}

    def said(window: WindowInput) -> int:
        spoken = sorted({word for _, text in window.captions for word in words(text)})
        return stable_hash(" ".join(spoken)) >> 1 if window.captions else -1

    return _Lessons(
        windows,
        torch.tensor([names[w.stream] for w in windows]),
        torch.tensor([w.window.start_ms for w in windows]),
        torch.tensor([said(w.window) for w in windows]),
        {
            m: {i: network.encoder(m).read(w.window) for i, w in enumerate(windows) if content(w.window, m)}
            for m in network.modalities
        },
    )


def step_losses(
    network: Network, lessons: _Lessons, chosen: list[int], options: FitOptions, guard_ms: int, rng: random.Random
) -> dict[str, Tensor]:
    """Named parts of the loss of one batch of windows; scalars. Empty where the batch shows nothing together."""
    device = network.logit_bias.device
    labels = lessons.labels(torch.tensor(chosen), guard_ms).to(device)
    scale, bias = network.scale(), network.logit_bias
    parts: dict[str, tuple[Tensor, Encoded]] = {}
    for modality in network.modalities:
        held, encoder = lessons.items[modality], network.encoder(modality)
        rows = [row for row, i in enumerate(chosen) if i in held]
        if rows:
            items = [encoder.vary(held[chosen[row]], rng) for row in rows]
            parts[modality] = torch.tensor(rows, device=device), encoder(items, len(items))
    where = {m: {int(row): k for k, row in enumerate(index.tolist())} for m, (index, _) in parts.items()}
    out: dict[str, Tensor] = {}
    for one, two in combinations(parts, 2):
        both = [row for row in where[one] if row in where[two]]
        if len(both) > 1:
            left = parts[one][1].shared[[where[one][row] for row in both]].float()
            right = parts[two][1].shared[[where[two][row] for row in both]].float()
            out[f"{one}-{two}"] = contrast(options.loss, left, right, labels[both][:, both], scale, bias)
    if not out:
        return out
    whole = network.gather(len(chosen), parts)
    views = [
        network.fusion(network.fusion.subset(whole, random_subsets(whole.present, rng)))[0].float() for _ in range(2)
    ]
    out["fused-fused"] = contrast(options.loss, views[0], views[1], labels, scale, bias)
    for modality, (index, encoded) in parts.items():
        if len(index) > 1:
            against = labels[index][:, index]
            out[f"fused-{modality}"] = 0.5 * contrast(
                options.loss, views[0][index], encoded.shared.float(), against, scale, bias
            )
    if options.rows < 64:
        spread = [variance(encoded.shared.float()) for _, encoded in parts.values()]
        out["variance"] = 0.1 * torch.stack(spread).mean()
    return out


def retrieval(network: Network, windows: Sequence[StreamWindow], guard_ms: int) -> dict[str, float]:
    """Mean reciprocal rank of a window's own vector, "audio -> caption" and so on: the own window against those that
    are neither its neighbours in time nor say the same words. Directions with fewer than two windows are left out."""
    network = copy.deepcopy(network).cpu().eval()
    network.config = replace(network.config, balance="none")
    vectors = Embedder(network, "validation").embed([w.window for w in windows])
    lessons = _lessons_of(windows)
    out: dict[str, float] = {}
    for one in network.modalities:
        for two in network.modalities:
            rows = [i for i, v in enumerate(vectors) if one in v.unimodal and two in v.unimodal]
            if one == two or len(rows) < 2:
                continue
            left, right = (np.stack([vectors[i].unimodal[m][:SHARED_DIM] for i in rows]) for m in (one, two))
            scores = left @ right.T
            against = lessons.labels(torch.tensor(rows), guard_ms).numpy() < 0
            ranks = 1 + ((scores >= np.diag(scores)[:, None]) & against).sum(1)
            out[f"{one} -> {two}"] = float(np.mean(1 / ranks))
    return out


def _lessons_of(windows: Sequence[StreamWindow]) -> _Lessons:
    """Labels only."""

    class _Nothing:
        modalities: tuple[str, ...] = ()

    return _lessons(list(windows), _Nothing())  # type: ignore[arg-type]


def _spread(windows: list[StreamWindow], most: int) -> list[StreamWindow]:
    if len(windows) <= most:
        return windows
    return [windows[i * len(windows) // most] for i in range(most)]


def fit(
    windows: Sequence[StreamWindow],
    network: Network,
    options: FitOptions,
    told: Callable[[Progress], None] = lambda _: None,
    keep: Path | None = None,
    resume: bool = False,
) -> Fitted:
    """Train `network` (changed in place) on windows of any order.

    keep: folder for the state after each epoch; with `resume` a run goes on from there. Raises ModelError where the
    windows cannot teach, or the state belongs to another run.
    """
    began = time.process_time()
    torch.set_num_threads(1)
    device = choose_device(options.device)
    held = check_windows(windows, network.modalities)
    lengths = [w.window.end_ms - w.window.start_ms for w in held]
    guard_ms = 3 * max(lengths) if options.guard_ms is None else options.guard_ms
    training, validation = split_by_time(held, options.validation, guard_ms)
    latest, validation = validation[-2 * VALIDATED :], _spread(validation, VALIDATED)
    if len(training) < MIN_WINDOWS // 2 or len(validation) < 4:
        raise ModelError(
            f"{len(training)} windows for training and {len(validation)} for validation, {guard_ms / 1000:.0f} s apart,"
            f" are too few: take a longer recording or time range"
        )
    config = network.config = pinned(replace(network.config, balance="none"))
    network.to(device).train()
    lessons = _lessons(training, network)
    optimizer = optimizer_of(network)
    run = RunState(network, copy.deepcopy(network), optimizer, _fingerprint(config, options, held, network))
    run.before = _mean(retrieval(network, validation, guard_ms))
    run.note(run.before)
    if resume and keep is not None:
        run.load(keep)
    batches = max(1, len(training) // options.rows)
    while run.epoch < options.epochs and run.waited < options.patience:
        rng = random.Random(f"{options.seed}:{run.epoch}")
        torch.manual_seed(stable_hash(f"{options.seed}:{run.epoch}") >> 1)
        order = rng.sample(range(len(training)), len(training))
        network.train()
        for b in range(batches):
            chosen = order[b * len(order) // batches : (b + 1) * len(order) // batches]
            step = run.epoch * batches + b
            set_rate(optimizer, step, options.epochs * batches, options.rate)
            with torch.autocast("cuda", dtype=torch.bfloat16, enabled=device.type == "cuda"):
                losses = step_losses(network, lessons, chosen, options, guard_ms, rng)
            loss = _descend(network, optimizer, losses)
            follow(run.average, network, step)
            told(Progress(run.epoch, options.epochs, b + 1, batches, loss, run.latest))
        run.epoch += 1
        run.note(_mean(retrieval(run.average, validation, guard_ms)))
        if keep is not None:
            run.save(keep)
    best = run.best_network().cpu().eval().requires_grad_(False)
    best, found_before, found = _fused_by_time(best, training, latest, guard_ms, options.seed, told, run)
    fitted = Fitted(
        best, len(training), len(validation), run.epoch, run.best_epoch, run.before, run.best, found_before, found
    )
    fitted.directions = retrieval(best, validation, guard_ms)
    model = Embedder(best, "calibration")
    fitted.contributions = contributions(model, [w.window for w in validation])
    vectors = model.embed([w.window for w in _spread(training, CALIBRATED)])
    named: dict[str, list[Any]] = {JOINT: [v.joint[:SHARED_DIM] for v in vectors]}
    for v in vectors:
        for name, vector in v.unimodal.items():
            named.setdefault(name, []).append(vector[:SHARED_DIM])
    best.calibration = calibrate({name: _directions(np.stack(rows)) for name, rows in named.items()})
    best.config = replace(best.config, balance=options.balance)
    fitted.cpu_seconds = time.process_time() - began
    return fitted


def _fused_by_time(
    network: Network,
    training: list[StreamWindow],
    later: list[StreamWindow],
    guard_ms: int,
    seed: int,
    told: Callable[[Progress], None],
    run: RunState,
) -> tuple[Network, float, float]:
    """See `go_on_by_time`; the fusion is trained about 25 times over all windows, 400 steps at most."""
    lessons, questions = (
        encode(network, Corpus([w.window for w in some], [w.stream for w in some], [()] * len(some)))
        for some in (training, later)
    )
    options = FusionOptions(near_ms=guard_ms, guard_ms=6 * guard_ms, align=0.1)
    options = replace(options, steps=min(options.steps, max(1, len(training) // 4)))

    def say(step: int, loss: float) -> None:
        told(Progress(run.epoch, run.epoch, step, options.steps, loss, run.latest, "fusion"))

    return go_on_by_time(network, lessons, questions, options, seed, say)


def _descend(network: Network, optimizer: torch.optim.Optimizer, losses: dict[str, Tensor]) -> float:
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


def _mean(directions: dict[str, float]) -> float:
    return float(np.mean(list(directions.values()))) if directions else 0.0


def _directions(rows: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Shared parts as unit vectors, whatever share of the whole vector they had."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def _fingerprint(config: ModelConfig, options: FitOptions, windows: list[StreamWindow], network: Network) -> str:
    """What a run is: its config, its options, its windows, its first weights."""
    digest = hashlib.sha256(f"{config.identity()}{asdict(options)}".encode())
    for w in windows:
        digest.update(f"{w.stream}\0{w.window.start_ms}\0{len(w.window.readings)}\0".encode())
        digest.update(repr((list(w.window.captions), [(t, len(s)) for t, s in w.window.clips])).encode())
    for tensor in network.state_dict().values():
        digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()


def card_of(fitted: Fitted, source: str, used: str) -> str:
    """The card.md of a model trained on a stream."""
    network = fitted.network
    rows = "\n".join(f"| {name} | {value:.3f} |" for name, value in fitted.directions.items())
    parts = ", ".join(f"{name} {value:.3f}" for name, value in fitted.contributions.items())
    encoders = ", ".join(f"{m}: {network.config.encoders[m]['name']}" for m in network.modalities)
    return f"""# Sensorium model, preset `{network.config.preset}`, trained on a stream

Trained without labels on {fitted.training} windows of {source}; {fitted.validation} later windows, after a gap, were
kept for validation. Encoders: {encoders}. Fusion: {network.config.fusion}. Balance: {network.config.balance}.

    sensorium train {used}

Retrieval on the validation windows (mean reciprocal rank of the window's own vector, neighbours in time and equal words
left out), best after epoch {fitted.best_epoch} of {fitted.epochs}: {fitted.before:.3f} before, now
{fitted.retrieval:.3f}.

| direction | mean reciprocal rank |
| --- | --- |
{rows}

Fusion by time (mean reciprocal rank of the next window, asked for by a window cut down to any part of what it holds):
{fitted.found_before:.3f} before, now {fitted.found:.3f}.

How far the joint vector moves without a modality (1 - cosine): {parts}.
"""
