"""Encoders by modality and name: the built-in ones, and third-party ones that register themselves.

    from models.encoders.base import Encoder
    from models.encoders.registry import register_encoder

    @register_encoder("image", "patches")
    class PatchEncoder(Encoder): ...

A config then names it (`"encoders": {"image": {"name": "patches"}, ...}`) and windows carry its content in
`WindowInput.extra["image"]`. A package makes its encoders known by an entry point of the group `sensorium.encoders`
that names the module (or the class) to import.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TypeVar

from models.encoders.base import Encoder
from models.errors import ModelError

GROUP = "sensorium.encoders"
_BUILT_IN = ("sensor", "audio", "caption", "pretrained")
_known: dict[tuple[str, str], type[Encoder]] = {}
E = TypeVar("E", bound=type[Encoder])


def register_encoder(modality: str, name: str) -> Callable[[E], E]:
    """Class decorator. Raises ModelError where the name is taken by another class: versions would be ambiguous."""

    def register(encoder: E) -> E:
        before = _known.get((modality, name), encoder)
        if (before.__module__, before.__qualname__) != (encoder.__module__, encoder.__qualname__):
            raise ModelError(f"an encoder {name!r} for {modality} already exists in {before.__module__}; rename one")
        _known[modality, name] = encoder
        return encoder

    return register


def encoder_class(modality: str, name: str) -> type[Encoder]:
    """The registered class. Raises ModelError with the known names for this modality."""
    for module in _BUILT_IN:
        import_module(f"models.encoders.{module}")
    if (modality, name) not in _known:
        _load_entry_points()
    try:
        return _known[modality, name]
    except KeyError:
        known = ", ".join(n for m, n in list_encoders() if m == modality) or "none"
        raise ModelError(
            f"no encoder {name!r} for {modality} (known: {known}); install the package that has it, "
            f"or import the module that registers it first"
        ) from None


def list_encoders() -> list[tuple[str, str]]:
    """(modality, name) of all encoders, sorted."""
    for module in _BUILT_IN:
        import_module(f"models.encoders.{module}")
    _load_entry_points()
    return sorted(_known)


@lru_cache(maxsize=1)
def _load_entry_points() -> None:
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:  # a third-party module may raise anything
            raise ModelError(f"the encoder {point.name} ({point.value}) cannot be loaded: {error!r}") from error
