"""Errors that end a command with one clear line, and the exit status of each.

    SensoriumError
    ├── UsageError         2   a command was used wrongly
    ├── ConfigError        3   settings (or a model) that cannot be used
    ├── DependencyError    4   something the command needs is away or taken: Kafka, store, port
    └── DataError          5   data that is not there or not usable

A message says what failed, where, why, and the command that mends it.
"""

from __future__ import annotations

from typing import ClassVar


class SensoriumError(Exception):
    """Any error of ours that a user is meant to read."""

    exit_code: ClassVar[int] = 1


class UsageError(SensoriumError):
    """A command was used wrongly."""

    exit_code = 2


class ConfigError(SensoriumError):
    """Settings that cannot be used."""

    exit_code = 3


class DependencyError(SensoriumError):
    """Something that is needed is away or taken."""

    exit_code = 4


class DataError(SensoriumError):
    """Data that is not there or not usable."""

    exit_code = 5
