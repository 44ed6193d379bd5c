"""The error of this package."""

from __future__ import annotations


class ModelError(RuntimeError):
    """A model folder that cannot be used, a window that cannot be embedded, or data that cannot be trained on.

    The message is one line that names what mends it.
    """
