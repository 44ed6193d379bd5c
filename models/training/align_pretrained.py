"""Give a trained model a pretrained caption encoder, aligned with its sounds and sensors.

    python -m models.training.align_pretrained --clips DIR --captions DIR --out DIR

The hashed encoder that ships knows words and their parts, not synonyms ("hound" for the dog). A sentence-transformers
model (all-MiniLM-L6-v2, say) does. Here only the projection of that frozen encoder is trained, towards the model's own
vectors of sounds and of simulated pumps; all other weights stay. A minute on one core.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import models
from models.checkpoint import read_checkpoint, write_checkpoint
from models.config import SHARED_DIM
from models.embedder import Embedder
from models.encoders.pretrained import pinned
from models.errors import ModelError
from models.interface import WindowInput
from models.network import Network
from models.training import synthetic
from models.training.esc10 import Esc10Clip, read_clips
from models.training.losses import agreement, siglip
from models.training.optim import optimizer_of, set_rate
from models.training.own_stream import start

SENTENCES = 1_200
PUMPS = 600
STEPS, ROWS, PEAK_RATE = 600, 128, 2e-3


def _shared(model: Embedder, windows: Sequence[WindowInput], modality: str) -> Tensor:
    """The modality's shared part of each window's vector, (N, SHARED_DIM) of length 1."""
    rows = np.stack([v.unimodal[modality][:SHARED_DIM] for v in model.embed(windows)])
    return torch.nn.functional.normalize(torch.from_numpy(rows), dim=-1)


def align_captions(clips: Sequence[Esc10Clip], folder: Path, base: Path, seed: int = 0) -> Network:
    """The model in the folder `base` with captions by the sentence-transformers model in `folder`, in eval mode.

    Raises ModelError where either folder cannot be used.
    """
    rng = random.Random(seed)
    old = read_checkpoint(base)[0]
    captions = {"name": "sentence-transformers", "path": str(folder.resolve())}
    config = pinned(replace(old.config, encoders={**old.config.encoders, "caption": captions}, balance="none"))
    network = start(config, base, seed).requires_grad_(False)
    encoder = network.encoder("caption").requires_grad_(True)
    model = Embedder(old, "base")
    sounds = _shared(model, [WindowInput(0, 5_000, clips=[(0, c.samples)]) for c in clips], "audio")
    states = [i % synthetic.SENSOR_CONDITIONS for i in range(PUMPS)]
    sensors = _shared(model, [synthetic.sensor_window(state, rng) for state in states], "sensor")
    # Classes: the sounds first, then the states of a pump.
    targets = torch.cat([sounds, sensors])  # (N, SHARED_DIM)
    target_class = torch.tensor([c.sound for c in clips] + [len(synthetic.SOUND_NAMES) + s for s in states])
    texts, classes = [], []
    for i in range(SENTENCES):
        sound, state = rng.randrange(len(synthetic.SOUND_NAMES)), rng.randrange(synthetic.SENSOR_CONDITIONS)
        of_sound = i % 2 == 0
        texts.append(synthetic.sound_phrase(sound, rng) if of_sound else synthetic.condition_phrase(state, rng))
        classes.append(sound if of_sound else len(synthetic.SOUND_NAMES) + state)
    items = [encoder.read(WindowInput(0, 1_000, captions=[(0, text)])) for text in texts]
    text_class = torch.tensor(classes)
    optimizer = optimizer_of(network)
    encoder.train()
    for step in range(STEPS):
        set_rate(optimizer, step, STEPS, PEAK_RATE)
        left = torch.tensor(rng.sample(range(len(targets)), min(ROWS, len(targets))))
        right = rng.sample(range(SENTENCES), ROWS)
        vectors = encoder([encoder.augment(items[k], rng) for k in right], ROWS).shared
        labels = agreement(target_class[left], text_class[right])
        loss = siglip(targets[left], vectors, labels, old.scale(), old.logit_bias)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return network.eval().requires_grad_(False)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status: 0, or 2 for data or folders that cannot be used."""
    described = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m models.training.align_pretrained", description=described)
    parser.add_argument("--clips", type=Path, required=True, help="the ESC-10 folder with fold1..fold4")
    parser.add_argument("--captions", type=Path, required=True, help="a sentence-transformers folder")
    parser.add_argument("--base", type=Path, default=models.SHIPPED, help="model folder; default: the one that ships")
    parser.add_argument("--out", type=Path, help="the model folder to write")
    parser.add_argument("--ask", action="append", default=[], metavar="TEXT", help="print nearest clips; repeatable")
    args = parser.parse_args(argv)
    try:
        clips = read_clips(args.clips)
        network = align_captions(clips, args.captions, args.base)
        if args.out is not None:
            card = (args.base / "card.md").read_text()
            card += f"\nCaptions: {args.captions.name}, by `python -m models.training.align_pretrained`.\n"
            print(f"{args.out}: {write_checkpoint(args.out, network, card)}")
        if args.ask:
            before = Embedder(read_checkpoint(args.base)[0], "base")
            _print_nearest(args.ask, clips, before, Embedder(network, "aligned"))
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _print_nearest(texts: Sequence[str], clips: Sequence[Esc10Clip], before: Embedder, after: Embedder) -> None:
    sounds = _shared(before, [WindowInput(0, 5_000, clips=[(0, c.samples)]) for c in clips], "audio").numpy()
    for text in texts:
        for name, model in (("before", before), ("after", after)):
            order = np.argsort(-(sounds @ model.embed_text(text)[:SHARED_DIM]), kind="stable")[:5]
            print(f"{text!r:34} {name:6} {', '.join(synthetic.SOUND_NAMES[clips[i].sound] for i in order)}")


if __name__ == "__main__":
    sys.exit(main())
