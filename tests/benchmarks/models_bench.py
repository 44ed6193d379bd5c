"""What a window costs: the shipped model in its fixed batches, one window alone, and an AST-sized encoder beside it.

python -m tests.benchmarks.models_bench
CPU-seconds of this process on one thread, all in one run, best of three rounds.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

import models
from models.encoders.log_mel import log_mel
from models.interface import WindowInput

WINDOWS = 64
SPAN_MS = 10_000


def windows(channels: int, steps: int, seconds: int, seed: int = 0) -> list[WindowInput]:
    """Windows of `channels` x `steps` readings, one clip of `seconds`, one caption of nine words."""
    rng, noise = random.Random(seed), np.random.default_rng(seed)
    out = []
    for i in range(WINDOWS):
        readings = [
            (SPAN_MS * s // steps, {f"pump{c}.vib": rng.gauss(10, 1) for c in range(channels)}) for s in range(steps)
        ]
        clip = noise.integers(-9_000, 9_000, seconds * 16_000).astype(np.int16)
        note = f"round {i}: pump fine, rain on the metal roof"
        out.append(WindowInput(0, SPAN_MS, readings, [(0, clip)], [(5, note)]))
    return out


class AstSized(nn.Module):
    """The shape of an Audio Spectrogram Transformer: 16x16 patches every 10, 12 layers of 768, 86 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 768, 16, stride=10)
        self.marks = nn.Parameter(torch.zeros(1, 2, 768))  # class and distillation
        layer = nn.TransformerEncoderLayer(768, 12, 3_072, batch_first=True, norm_first=True, activation="gelu")
        self.layers = nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        """(B, bands, columns) -> (B, 768)."""
        tokens = self.patch(mel.unsqueeze(1)).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.marks.expand(len(tokens), -1, -1), tokens], 1)  # 47 of one second and 64 bands
        out: torch.Tensor = self.layers(tokens)[:, :2].mean(1)
        return out


def cpu_seconds(work: Callable[[], object], rounds: int = 3) -> float:
    work()  # the first time pays for set-up
    took = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        took.append(time.process_time() - began)
    return min(took)


def main() -> dict[str, float]:
    """Prints a table, gives back its numbers."""
    model = models.load()
    figures: dict[str, float] = {}
    for label, load in {
        "1 s of sound, 64 sensor tokens, a caption": windows(64, 10, 1),
        "1 s of sound, 8 sensor tokens, a caption": windows(8, 10, 1),
        "5 s of sound, 8 sensor tokens, a caption": windows(8, 10, 5),
        "1 s of sound, 3 channels at 100 Hz, a caption": windows(3, 1_000, 1),
        "1 s of sound, 300 channels, a caption": windows(300, 10, 1),
    }.items():
        figures[f"windows/CPU-s: {label}"] = WINDOWS / cpu_seconds(lambda load=load: model.embed(load))
    alone = windows(64, 10, 1)[:8]
    figures["CPU-ms of a window alone (64 tokens, 1 s)"] = (
        1e3 / len(alone) * cpu_seconds(lambda: [model.embed([w]) for w in alone])
    )
    ast, rng = AstSized().eval(), np.random.default_rng(1)
    with torch.inference_mode():
        sound = torch.from_numpy(rng.standard_normal((8, 16_000)).astype(np.float32))
        ast_seconds = cpu_seconds(lambda: ast(log_mel(sound))) / len(sound)
    figures["1-s clips/CPU-s: encoder of AST's size, sound only"] = 1 / ast_seconds
    figures["ratio: our whole window to AST's one clip"] = (
        figures["windows/CPU-s: 1 s of sound, 64 sensor tokens, a caption"] * ast_seconds
    )
    print(f"{model.version}, torch {torch.__version__}, one thread")
    for name, value in figures.items():
        print(f"{name:62s} {value:9.1f}")
    return figures


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
