"""Untrained models of the tiny preset: real model folders, quickly made, whose vectors have nothing in common."""

from __future__ import annotations

from pathlib import Path

import torch

import models
from models.checkpoint import write_checkpoint
from models.config import preset
from models.network import Network


def random_model(folder: Path, seed: int) -> str:
    """Write a model folder; returns its version."""
    torch.manual_seed(seed)
    write_checkpoint(folder, Network(preset("tiny")), f"random weights, seed {seed}\n")
    return models.load(folder).version
