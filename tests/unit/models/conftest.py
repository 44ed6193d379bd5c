"""Models that several test modules share."""

from __future__ import annotations

import pytest
import torch

import models
from models.config import preset
from models.embedder import Embedder
from models.network import Network


@pytest.fixture(scope="module")
def model() -> Embedder:
    """The weights that ship."""
    return models.load()


@pytest.fixture(scope="module")
def tiny() -> Embedder:
    """Random weights, the same each time."""
    torch.manual_seed(3)
    return Embedder(Network(preset("tiny")).eval(), "tiny-random")
