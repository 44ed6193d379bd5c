"""Which settings are in force, where each comes from, and whether they can be used together."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, SecretStr

from streams.settings import Settings, SettingsError, origin_of

_OUTSIDE = ("SENSORIUM_CONFIG", "SENSORIUM_CACHE", "SENSORIUM_MAVEN", "SENSORIUM_TRACEBACK", "SENSORIUM_SOAK")


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One setting: dotted name, value as text (secrets as stars), origin, meaning, value."""

    name: str
    value: str
    origin: str
    meaning: str
    raw: Any


def settings_in_force(settings: Settings, flags: frozenset[str] = frozenset()) -> list[SettingRow]:
    """Every setting. Secrets are shown as stars. `flags`: names that were given on the command line."""
    return [
        SettingRow(name, _shown(value), f"--{name}" if name in flags else origin_of(name), meaning, value)
        for name, value, meaning in _flat(settings, "")
    ]


def as_toml(row: SettingRow) -> str:
    """Lines of a settings file: what it means, then what it is; what is unset or secret stands in a comment."""
    meaning = f"# {row.meaning}\n" if row.meaning else ""
    origin = "" if row.origin == "default" else f"  # {row.origin}"
    if row.raw is None or isinstance(row.raw, SecretStr):
        return f"{meaning}# {row.name} = {'(unset)' if row.raw is None else row.value}{origin}"
    raw = [str(one) for one in row.raw] if isinstance(row.raw, tuple) else row.raw
    plain = raw if isinstance(raw, (bool, int, float, list)) else str(raw)
    return f"{meaning}{row.name} = {json.dumps(plain, ensure_ascii=False)}{origin}"


def _flat(section: BaseModel, prefix: str) -> Iterator[tuple[str, Any, str]]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value, field.description or ""


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return ", ".join(str(v) for v in value) or "-"
    return str(value)


def check(settings: Settings) -> None:
    """Raises `SettingsError` with all problems, one a line."""
    found = problems(settings)
    if found:
        raise SettingsError("\n".join(found))


def check_names(settings: Settings) -> None:
    """Raises `SettingsError` where a variable looks like a misspelt setting."""
    found = list(_misspelt(settings))
    if found:
        raise SettingsError("\n".join(found))


def problems(settings: Settings) -> list[str]:
    """What cannot work although each setting by itself is allowed; one line each."""
    found = []
    security = settings.security
    if security.protocol.startswith("SASL") and (security.username is None or security.password is None):
        found.append(f"security.protocol={security.protocol} needs security.username and security.password")
    for name in ("ca_file", "cert_file", "key_file"):
        path = getattr(security, name)
        if path is not None and not path.is_file():
            found.append(f"security.{name}: {path} does not exist")
    for root in settings.audio.claim_roots:
        if not root.is_dir():
            found.append(f"audio.claim_roots: {root} is not a folder; claim checks into it would all be refused")
    if settings.model is not None and not settings.model.is_dir():
        found.append(f"model: {settings.model} is not a folder; unset it to use the weights that ship with the package")
    if settings.replication > 1 and not settings.kafka:
        found.append("replication > 1 needs a cluster: name one with SENSORIUM_KAFKA (the embedded Kafka is one node)")
    if security.protocol != "PLAINTEXT" and not settings.kafka:
        found.append(
            f"security.protocol={security.protocol} needs a cluster: name one with SENSORIUM_KAFKA (the embedded Kafka "
            "listens on loopback, without TLS)"
        )
    return found


def _misspelt(settings: Settings) -> Iterator[str]:
    """Variables that name no setting and look as if they were meant to; others may well be somebody else's."""
    names = {"SENSORIUM_" + name.upper().replace(".", "__"): name for name, _, _ in _flat(settings, "")}
    tables = {"SENSORIUM_" + name.upper() for name in type(settings).model_fields}
    for variable in sorted(os.environ):
        if variable.upper().startswith("SENSORIUM_") and variable.upper() not in {*names, *tables, *_OUTSIDE}:
            close = difflib.get_close_matches(variable.upper(), names, 1, cutoff=0.85)
            if close:
                yield f"{variable} is no setting; {close[0]} is one"
