"""Training of a fusion alone over fixed encoders: seconds instead of minutes, and nothing else differs.

Every window is encoded once for all steps of all fusions and for every mask of the evaluation: a window cut down is the
same encodings with some left out. The supervision is time: a window with a random subset of its modalities is a
positive of its neighbour in time, both whole and cut down, and a negative of windows of other streams or of another
time. What differs between neighbours is noise and is learnt to be ignored; its directions are measured first, and
attention's own values see each vector whitened by them too.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.calibration import JOINT, Balancer
from models.config import FusionKind
from models.embedder import join
from models.encoders.base import Encoded
from models.encoders.batching import encode_windows
from models.encoders.text_hashing import stable_hash
from models.evaluation.corpus import MASKS, Corpus
from models.evaluation.report import Space
from models.fusion import Fusion, FusionInput, Whitened
from models.interface import MODALITY_NAMES
from models.network import Network
from models.training.augment import subset_of_bits, uniform_subsets
from models.training.losses import infonce
from models.training.optim import set_rate

_CHUNK = 32  # windows of a batch
_LOG_SCALE_MAX = math.log(60.0)  # of the softmax's temperature


@dataclass(frozen=True, slots=True)
class FusionOptions:
    """`near_ms`: windows of a stream this close are positives; `guard_ms`: windows of a stream closer than this are no
    negatives, since a state lasts. `align`: weight of the loss that keeps a joint vector near those of its modalities,
    so that a search by text or sound still finds it."""

    steps: int = 400
    rows: int = 96  # windows of a step
    rate: float = 2e-3
    near_ms: int = 30_000
    guard_ms: int = 180_000
    align: float = 0.0


@dataclass(frozen=True, slots=True)
class EncodedCorpus:
    """A corpus with the inputs of fusion for all its windows."""

    corpus: Corpus
    inputs: FusionInput


def encode_corpus(network: Network, corpus: Corpus) -> EncodedCorpus:
    """Every window through the encoders, once."""
    parts: dict[str, tuple[Tensor, Encoded]] = {}
    with torch.no_grad():
        for name in network.modalities:
            rows, encoded = encode_windows(network.encoder(name), corpus.windows, _CHUNK, fixed=False)
            if encoded is not None:
                parts[name] = torch.tensor(rows), encoded
        return EncodedCorpus(corpus, network.gather(len(corpus.windows), parts))


def fit_fusion(
    network: Network,
    encoded: EncodedCorpus,
    kind: FusionKind,
    options: FusionOptions,
    seed: int,
    fresh: bool = True,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> Network:
    """A copy of `network` with a fusion of this kind, trained on `encoded`; `mean` has nothing to train.

    fresh: from new weights; else from those of the network's own fusion. on_step: called after each step with its
    number (from 1) and its loss. Deterministic for a seed on one machine type on the CPU.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng = random.Random(seed)
    trained = copy.deepcopy(network)
    trained.config = replace(network.config, fusion=kind, whitened=kind == "attention")
    if fresh or trained.config != network.config:
        encoders = ((name, network.encoder(name)) for name in network.modalities)
        trained.fusion = Fusion(trained.config, {name: (one.tokens, one.width) for name, one in encoders})
        if not fresh and kind == network.config.fusion:
            trained.fusion.load_from(network.fusion)
        if kind == "attention":  # a fusion that is whitened already keeps the noise that its weights were trained with
            _measure_noise(trained.fusion, encoded, options.near_ms)
    weights = list(trained.fusion.requires_grad_(True).parameters())
    if weights:
        scale = torch.nn.Parameter(torch.tensor(math.log(10.0)))
        optimizer = torch.optim.AdamW([*weights, scale], weight_decay=0.05)
        trained.fusion.train()
        batches = _NeighbourBatches(encoded.corpus, options, rng)
        for step in range(options.steps):
            set_rate(optimizer, step, options.steps, options.rate)
            one, other, labels = batches.draw()
            some, near = encoded.inputs.rows(one), encoded.inputs.rows(other)
            logit_scale = scale.clamp(0.0, _LOG_SCALE_MAX).exp()
            part = trained.fusion(trained.fusion.subset(some, uniform_subsets(some.present, rng)))[0]
            whole = trained.fusion(near)[0]  # (R, SHARED_DIM)
            loss = infonce(part, whole, labels, logit_scale)
            loss = loss + _same_mask_loss(trained.fusion, some, near, labels, logit_scale, rng)
            if options.align:
                loss = loss + options.align * _alignment_loss(whole, near, labels, logit_scale)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            on_step(step + 1, loss.item())
    return trained.eval().requires_grad_(False)


def refine_fusion(
    network: Network,
    encoded: EncodedCorpus,
    held_out: EncodedCorpus,
    options: FusionOptions,
    seed: int,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> tuple[Network, float, float]:
    """The network with its own fusion trained further on `encoded`, or as it is where that has no better
    `next_window_retrieval` on `held_out`; that measure of the network as it came, and of the one returned."""
    trained = fit_fusion(network, encoded, network.config.fusion, options, seed, fresh=False, on_step=on_step)
    before, after = (
        next_window_retrieval(some, held_out, options.near_ms, options.guard_ms) for some in (network, trained)
    )
    return (trained, before, after) if after > before else (network, before, before)


def next_window_retrieval(network: Network, encoded: EncodedCorpus, near_ms: int, guard_ms: int) -> float:
    """Mean reciprocal rank of the next window of the stream, whole. Queries are each window cut down to each subset of
    its modalities; the candidates are that next window and all that are at least guard_ms away or of other streams. 0
    where no window has a next one within `near_ms`."""
    corpus, inputs = encoded.corpus, encoded.inputs
    one, other = neighbours(corpus, np.ones(len(corpus.windows), bool), near_ms)
    if not len(one):
        return 0.0
    apart, balance = corpus.apart(guard_ms - 1)[one], Balancer("none", None)  # guard_ms away counts as far
    whole, queries, ranks = joint_vectors(network, balance, inputs), inputs.rows(torch.from_numpy(one)), []
    for bits in range(1, 1 << inputs.present.shape[1]):
        cut = network.fusion.subset(queries, subset_of_bits(bits, queries.present))
        rows = np.flatnonzero(cut.present.any(1).numpy())
        scores = joint_vectors(network, balance, cut)[rows] @ whole.T
        own = scores[np.arange(len(rows)), other[rows]]
        ranks.append(1 + (~(scores < own[:, None]) & apart[rows]).sum(1))  # ties and NaN count against it
    return float(np.mean(1 / np.concatenate(ranks)))


def _measure_noise(fusion: Fusion, encoded: EncodedCorpus, near_ms: int) -> None:
    """Measure in which directions neighbours in time differ, for each modality's `Whitened`."""
    vectors, present = encoded.inputs.vectors().numpy().astype(np.float64), encoded.inputs.present.numpy()
    for m, name in enumerate(fusion.modalities):
        one, other = neighbours(encoded.corpus, present[:, m], near_ms)
        whitened = cast(Whitened, fusion.whitened[name])
        whitened.measure(vectors[present[:, m], m], vectors[one, m] - vectors[other, m])


def neighbours(corpus: Corpus, held: NDArray[np.bool_], near_ms: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices (P,) and (P,): each of the windows `held` (N,) and the next such window of its stream, where that starts
    at most `near_ms` later."""
    streams, starts = np.unique(corpus.streams, return_inverse=True)[1], corpus.starts
    rows = np.flatnonzero(held)
    rows = rows[np.lexsort((starts[rows], streams[rows]))]
    one, other = rows[:-1], rows[1:]
    near = (streams[one] == streams[other]) & (starts[other] - starts[one] <= near_ms)
    return one[near], other[near]


def _same_mask_loss(
    fusion: Fusion, some: FusionInput, near: FusionInput, labels: Tensor, scale: Tensor, rng: random.Random
) -> Tensor:
    """The loss of a step in which all windows are cut down to the same modalities, queries and candidates."""
    keep = subset_of_bits(rng.randrange(1, 1 << some.present.shape[1]), some.present)
    cut = [fusion.subset(windows, keep) for windows in (some, near)]
    rows = torch.nonzero(cut[0].present.any(1) & cut[1].present.any(1))[:, 0]
    one, other = (fusion(windows)[0][rows] for windows in cut)
    return infonce(one, other, labels[rows][:, rows], scale)


def _alignment_loss(joint: Tensor, windows: FusionInput, labels: Tensor, scale: Tensor) -> Tensor:
    """The loss of retrieving a window's joint vector (R, SHARED_DIM) by the shared part of each of its modalities,
    summed over them."""
    losses = []
    for m in range(windows.present.shape[1]):
        rows = torch.nonzero(windows.present[:, m])[:, 0]
        losses.append(infonce(joint[rows], windows.unimodal[rows, m], labels[rows][:, rows], scale))
    return torch.stack(losses).sum()


class _NeighbourBatches:
    """Draws windows, a neighbour in time of each, and the labels between them."""

    def __init__(self, corpus: Corpus, options: FusionOptions, rng: random.Random) -> None:
        self._options = options
        self._rng = rng
        self._starts = corpus.starts
        names = {name: number for number, name in enumerate(dict.fromkeys(corpus.streams))}
        self._streams = np.array([names[name] for name in corpus.streams])
        self._captions = np.array(  # a hash of the captions, -1 without any
            [
                stable_hash("\0".join(sorted({t for _, t in w.captions}))) >> 1 if w.captions else -1
                for w in corpus.windows
            ],
            np.int64,
        )
        order = np.lexsort((self._starts, self._streams)).tolist()
        self._order = order  # indices by stream, then start
        self._place = {i: k for k, i in enumerate(order)}

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Indices of windows (R,), of a neighbour of each (R,), and labels (R, R), see `co_occurrence`."""
        count = len(self._order)
        one = np.array(self._rng.sample(range(count), min(self._options.rows, count)))
        other = np.array([self._neighbour(int(i)) for i in one])
        near = self._streams[one][:, None] == self._streams[other][None]
        near &= np.abs(self._starts[one][:, None] - self._starts[other][None]) < self._options.guard_ms
        same_text = (self._captions[one][:, None] == self._captions[other][None]) & (self._captions[one][:, None] >= 0)
        labels = torch.from_numpy(np.where(near | same_text, 0.0, -1.0).astype(np.float32))
        return torch.from_numpy(one), torch.from_numpy(other), labels.fill_diagonal_(1.0)

    def _neighbour(self, i: int) -> int:
        """A random window of the same stream at most `near_ms` away, itself among them."""
        at, near = self._place[i], []
        for step in (-1, 1):
            k = at
            while 0 <= k < len(self._order):
                j = self._order[k]
                apart = abs(int(self._starts[j]) - int(self._starts[i]))
                if self._streams[j] != self._streams[i] or apart > self._options.near_ms:
                    break
                near.append(j)
                k += step
        return int(self._rng.choice(sorted(set(near))))


def space_of(network: Network, encoded: EncodedCorpus) -> Space:
    """What `evaluation.report.embed_corpus` gives for a model and a corpus, without encoding the windows of each mask
    again."""
    index = encoded.corpus.complete()
    rows = torch.from_numpy(index)
    balance = Balancer(network.config.balance, network.calibration)
    whole = joint_vectors(network, balance, encoded.inputs)
    masked: dict[str, NDArray[np.float32]] = {}
    for name, mask in MASKS.items():
        keep = torch.tensor([m in mask for m in network.modalities]).expand(len(rows), -1)
        masked[name] = joint_vectors(network, balance, network.fusion.subset(encoded.inputs.rows(rows), keep))
    unimodal = {}
    for m, name in enumerate(network.modalities):
        if name in MODALITY_NAMES:
            shared, private = (part[rows, m].numpy() for part in (encoded.inputs.unimodal, encoded.inputs.private))
            unimodal[name] = join(balance(name, shared), private, network.encoder(name).private_share)
    return Space(whole, index, unimodal, masked)


def joint_vectors(network: Network, balance: Balancer, inputs: FusionInput) -> NDArray[np.float32]:
    """(N, DIM), composed as the embedder does: the fused shared part, and the sketches of what is present."""
    with torch.inference_mode():
        count = len(inputs.present)
        fused = [network.fusion(inputs.rows(slice(at, at + _CHUNK)))[0] for at in range(0, count, _CHUNK)]
    there = (inputs.private * inputs.present.unsqueeze(-1)).sum(1).numpy().astype(np.float64)
    lengths = np.linalg.norm(there, axis=1, keepdims=True)
    sketches = there / np.where(lengths > 0, lengths, 1)
    shared: NDArray[Any] = torch.cat(fused).numpy()
    return join(balance(JOINT, shared), sketches, network.config.joint_private)
