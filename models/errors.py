"""What goes wrong with a model, said so that one line is enough to mend it."""

from __future__ import annotations


class ModelError(RuntimeError):
    """A model folder that cannot be used, or a window that cannot be embedded. The message names the way out."""
