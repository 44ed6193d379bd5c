"""Encoders, fusion and training of the models. Needs torch, no Kafka and no HTTP; imports nothing of `streams`.

import models
model = models.load()                      # the weights that ship with the package
vectors = model.embed([window])            # models.interface.WindowInput -> WindowVectors
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import ModelError
from models.interface import DIM, WindowInput, WindowModel, WindowVectors

if TYPE_CHECKING:
    from models.embedder import Embedder

__all__ = ["DIM", "SHIPPED", "ModelError", "WindowInput", "WindowModel", "WindowVectors", "load"]

SHIPPED = Path(__file__).parent / "weights" / "small"


def load(path: Path | None = None) -> Embedder:
    """The model in the folder `path` (model.safetensors, config.json); None: the weights that ship with the package.

    Sets torch to one thread for the whole process: several threads cost more than they give on the small
    batches used here, and one thread keeps every vector the same to the last bit.
    Raises ModelError where the folder is missing, incomplete or does not fit its config.
    """
    from models.checkpoint import read_checkpoint  # here, since torch takes seconds to import
    from models.embedder import Embedder

    return Embedder(*read_checkpoint(Path(path) if path is not None else SHIPPED))
