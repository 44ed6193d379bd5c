"""A fusion alone, trained over encoders that stay as they are: minutes become seconds, and nothing else differs.

What is encoded once serves every step of every fusion, and every mask of the evaluation: a window that is cut down is
the same encodings with some left out. What training learns from is time: a window that has lost some modalities, any
subset as likely as any other, is like its neighbour, whole and cut down alike, and unlike windows of other streams or
of another time. What differs between neighbours is noise, and is learnt to be overlooked; its directions are measured
first, and attention's own values see each vector with these evened out.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from models.calibration import JOINT, Balancer
from models.config import FusionKind
from models.embedder import join
from models.encoders.base import Encoded, Item, content
from models.encoders.text_hashing import stable_hash
from models.evaluation.report import MASKS, Corpus, Space
from models.fusion import Fusion, FusionInput, Whitened
from models.interface import MODALITY_NAMES
from models.network import Network
from models.training.losses import infonce
from models.training.optim import set_rate

_CHUNK = 32
_SHARPEST = math.log(60.0)


@dataclass(frozen=True, slots=True)
class FusionOptions:
    """Times in ms. `near_ms`: neighbours that count as alike; `guard_ms`: how far off a window of the same stream must
    be to count as unlike, since a state lasts. `align`: weight of what keeps a joint vector near its modalities' own,
    so that words and sounds still find it."""

    steps: int = 400
    rows: int = 96
    rate: float = 2e-3
    near_ms: int = 30_000
    guard_ms: int = 180_000
    align: float = 0.0


@dataclass(frozen=True, slots=True)
class EncodedCorpus:
    """All windows as fusion gets them."""

    corpus: Corpus
    given: FusionInput


def encode(network: Network, corpus: Corpus) -> EncodedCorpus:
    """Every window through the encoders, once."""
    count = len(corpus.windows)
    parts: dict[str, tuple[Tensor, Encoded]] = {}
    with torch.no_grad():
        for name in network.modalities:
            encoder = network.encoder(name)
            by_bucket: dict[Hashable, list[tuple[int, Item]]] = {}
            for i, window in enumerate(corpus.windows):
                if content(window, name):
                    item = encoder.read(window)
                    by_bucket.setdefault(encoder.bucket(item), []).append((i, item))
            order, done = [], []
            for items in by_bucket.values():
                for at in range(0, len(items), _CHUNK):
                    chunk = items[at : at + _CHUNK]
                    done.append(_padded(encoder([item for _, item in chunk], len(chunk)), encoder.tokens))
                    order += [i for i, _ in chunk]
            if done:
                index = torch.tensor(order)
                whole = Encoded(*(torch.cat([getattr(one, name) for one in done]) for name in Encoded.__slots__))
                parts[name] = index, whole
        return EncodedCorpus(corpus, network.gather(count, parts))


def _padded(encoded: Encoded, tokens: int) -> Encoded:
    more = tokens - encoded.tokens.shape[1]
    return Encoded(
        encoded.shared,
        encoded.private,
        F.pad(encoded.tokens, (0, 0, 0, more)),
        F.pad(encoded.mask, (0, more)),
        F.pad(encoded.when, (0, more)),
    )


def fit_fusion(
    network: Network,
    lessons: EncodedCorpus,
    kind: FusionKind,
    options: FusionOptions,
    seed: int,
    anew: bool = True,
    told: Callable[[int, float], None] = lambda step, loss: None,
) -> Network:
    """A copy of `network` with a fusion of this kind, trained on `lessons`; `mean` has nothing to train.

    anew: from fresh weights; else from those of the network's own fusion. told: after each step (from 1), its loss.
    Deterministic for a seed on one machine type on the CPU.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng = random.Random(seed)
    trained = copy.deepcopy(network)
    trained.config = replace(network.config, fusion=kind, whitened=kind == "attention")
    if anew or trained.config != network.config:
        encoders = ((name, network.encoder(name)) for name in network.modalities)
        trained.fusion = Fusion(trained.config, {name: (one.tokens, one.width) for name, one in encoders})
        if not anew and kind == network.config.fusion:
            trained.fusion.go_on_from(network.fusion)
        if kind == "attention":  # one that is not built anew keeps what its weights know
            _measure(trained.fusion, lessons, options.near_ms)
    weights = list(trained.fusion.requires_grad_(True).parameters())
    if weights:
        scale = torch.nn.Parameter(torch.tensor(math.log(10.0)))
        optimizer = torch.optim.AdamW([*weights, scale], weight_decay=0.05)
        trained.fusion.train()
        batches = _Batches(lessons.corpus, options, rng)
        for step in range(options.steps):
            set_rate(optimizer, step, options.steps, options.rate)
            one, other, labels = batches.draw()
            some, near, sharp = lessons.given.rows(one), lessons.given.rows(other), scale.clamp(0.0, _SHARPEST).exp()
            lost = trained.fusion(trained.fusion.subset(some, any_subsets(some.present, rng)))[0]
            whole = trained.fusion(near)[0]
            loss = infonce(lost, whole, labels, sharp) + _cut_alike(trained.fusion, some, near, labels, sharp, rng)
            if options.align:
                loss = loss + options.align * _findable(whole, near, labels, sharp)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            told(step + 1, loss.item())
    return trained.eval().requires_grad_(False)


def go_on_by_time(
    network: Network,
    lessons: EncodedCorpus,
    questions: EncodedCorpus,
    options: FusionOptions,
    seed: int,
    told: Callable[[int, float], None] = lambda step, loss: None,
) -> tuple[Network, float, float]:
    """The network with its own fusion trained further on `lessons`, or as it is where that finds the windows of
    `questions` again no better; how well it found them before, and how well what is returned does."""
    trained = fit_fusion(network, lessons, network.config.fusion, options, seed, anew=False, told=told)
    before, after = (found_again(some, questions, options.near_ms, options.guard_ms) for some in (network, trained))
    return (trained, before, after) if after > before else (network, before, before)


def found_again(network: Network, encoded: EncodedCorpus, near_ms: int, guard_ms: int) -> float:
    """Mean reciprocal rank of the next window of the stream, whole, asked for by each window cut down to each part of
    what it holds, among all that are not near it in time. 0 where no window has a next one within `near_ms`."""
    corpus, given = encoded.corpus, encoded.given
    one, other = neighbours(corpus, np.ones(len(corpus.windows), bool), near_ms)
    if not len(one):
        return 0.0
    apart, balance = corpus.apart(guard_ms - 1)[one], Balancer("none", None)  # guard_ms away is not near any more
    whole, asked, ranks = joint_vectors(network, balance, given), given.rows(torch.from_numpy(one)), []
    for part in range(1, 1 << given.present.shape[1]):
        cut = network.fusion.subset(asked, _kept(part, asked.present))
        rows = np.flatnonzero(cut.present.any(1).numpy())
        scores = joint_vectors(network, balance, cut)[rows] @ whole.T
        own = scores[np.arange(len(rows)), other[rows]]
        ranks.append(1 + (~(scores < own[:, None]) & apart[rows]).sum(1))  # ties and NaN count against it
    return float(np.mean(1 / np.concatenate(ranks)))


def _kept(part: int, present: Tensor) -> Tensor:
    """(B, M) bool: the modalities whose bits are set in `part`, in every row."""
    return torch.tensor([bool(part >> m & 1) for m in range(present.shape[1])]).expand_as(present)


def _measure(fusion: Fusion, lessons: EncodedCorpus, near_ms: int) -> None:
    """In which directions neighbours in time differ, modality by modality."""
    vectors, present = lessons.given.vectors().numpy().astype(np.float64), lessons.given.present.numpy()
    for m, name in enumerate(fusion.modalities):
        one, other = neighbours(lessons.corpus, present[:, m], near_ms)
        whitened = cast(Whitened, fusion.whitened[name])
        whitened.measure(vectors[present[:, m], m], vectors[one, m] - vectors[other, m])


def neighbours(corpus: Corpus, held: NDArray[np.bool_], near_ms: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of the windows `held` (N,): each and the next one of its stream, where that starts at most `near_ms` later."""
    streams, starts = np.unique(corpus.streams, return_inverse=True)[1], corpus.starts
    rows = np.flatnonzero(held)
    rows = rows[np.lexsort((starts[rows], streams[rows]))]
    one, other = rows[:-1], rows[1:]
    near = (streams[one] == streams[other]) & (starts[other] - starts[one] <= near_ms)
    return one[near], other[near]


def _cut_alike(
    fusion: Fusion, some: FusionInput, near: FusionInput, labels: Tensor, scale: Tensor, rng: random.Random
) -> Tensor:
    """The loss of a step in which all windows have lost the same modalities: they are found among their likes too."""
    keep = _kept(rng.randrange(1, 1 << some.present.shape[1]), some.present)
    cut = [fusion.subset(windows, keep) for windows in (some, near)]
    rows = torch.nonzero(cut[0].present.any(1) & cut[1].present.any(1))[:, 0]
    one, other = (fusion(windows)[0][rows] for windows in cut)
    return infonce(one, other, labels[rows][:, rows], scale)


def _findable(joint: Tensor, windows: FusionInput, labels: Tensor, scale: Tensor) -> Tensor:
    """The loss of finding a window's joint vector by the aligned part of each of its modalities, summed over them."""
    losses = []
    for m in range(windows.present.shape[1]):
        rows = torch.nonzero(windows.present[:, m])[:, 0]
        losses.append(infonce(joint[rows], windows.unimodal[rows, m], labels[rows][:, rows], scale))
    return torch.stack(losses).sum()


def any_subsets(present: Tensor, rng: random.Random) -> Tensor:
    """(B, M) bool -> as much: of what each row has, any part that is not nothing, each as likely as the others."""
    rows = []
    for row in present.tolist():
        held = [m for m, there in enumerate(row) if there]
        chosen = rng.randrange(1, 1 << len(held)) if held else 0
        kept = {m for bit, m in enumerate(held) if chosen >> bit & 1}
        rows.append([m in kept for m in range(len(row))])
    return torch.tensor(rows, dtype=torch.bool)


class _Batches:
    """Windows with a neighbour each, and which of them are unlike."""

    def __init__(self, corpus: Corpus, options: FusionOptions, rng: random.Random) -> None:
        self._options = options
        self._rng = rng
        self._starts = corpus.starts
        names = {name: number for number, name in enumerate(dict.fromkeys(corpus.streams))}
        self._streams = np.array([names[name] for name in corpus.streams])
        self._said = np.array(
            [
                stable_hash("\0".join(sorted({t for _, t in w.captions}))) >> 1 if w.captions else -1
                for w in corpus.windows
            ],
            np.int64,
        )
        order = np.lexsort((self._starts, self._streams)).tolist()
        self._order, self._place = order, {i: k for k, i in enumerate(order)}

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Windows (R,), a neighbour of each (R,), labels (R, R) as `models.training.losses` takes them."""
        count = len(self._order)
        one = np.array(self._rng.sample(range(count), min(self._options.rows, count)))
        other = np.array([self._neighbour(int(i)) for i in one])
        near = self._streams[one][:, None] == self._streams[other][None]
        near &= np.abs(self._starts[one][:, None] - self._starts[other][None]) < self._options.guard_ms
        echo = (self._said[one][:, None] == self._said[other][None]) & (self._said[one][:, None] >= 0)
        labels = torch.from_numpy(np.where(near | echo, 0.0, -1.0).astype(np.float32))
        return torch.from_numpy(one), torch.from_numpy(other), labels.fill_diagonal_(1.0)

    def _neighbour(self, i: int) -> int:
        """A window of the same stream at most `near_ms` away, perhaps itself."""
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
    """What `evaluation.embed_corpus` makes of a model and a corpus, without encoding each mask anew."""
    index = encoded.corpus.complete()
    rows = torch.from_numpy(index)
    balance = Balancer(network.config.balance, network.calibration)
    whole = joint_vectors(network, balance, encoded.given)
    masked: dict[str, NDArray[np.float32]] = {}
    for name, mask in MASKS.items():
        keep = torch.tensor([m in mask for m in network.modalities]).expand(len(rows), -1)
        masked[name] = joint_vectors(network, balance, network.fusion.subset(encoded.given.rows(rows), keep))
    unimodal = {}
    for m, name in enumerate(network.modalities):
        if name in MODALITY_NAMES:
            shared, private = (part[rows, m].numpy() for part in (encoded.given.unimodal, encoded.given.private))
            unimodal[name] = join(balance(name, shared), private, network.encoder(name).private_share)
    return Space(whole, index, unimodal, masked)


def joint_vectors(network: Network, balance: Balancer, given: FusionInput) -> NDArray[np.float32]:
    """(N, DIM), as the embedder joins them: fused shared part, and a sketch of what is present."""
    with torch.inference_mode():
        count = len(given.present)
        fused = [network.fusion(given.rows(slice(at, at + _CHUNK)))[0] for at in range(0, count, _CHUNK)]
    there = (given.private * given.present.unsqueeze(-1)).sum(1).numpy().astype(np.float64)
    lengths = np.linalg.norm(there, axis=1, keepdims=True)
    sketches = there / np.where(lengths > 0, lengths, 1)
    shared: NDArray[Any] = torch.cat(fused).numpy()
    return join(balance(JOINT, shared), sketches, network.config.joint_private)
