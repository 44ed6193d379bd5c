"""Every error that aiokafka can raise is either waited out or ends with one line; which of them pass is pinned."""

from __future__ import annotations

import pytest
from aiokafka import errors

from streams.errors import DependencyError
from streams.kafka.failures import passes, refused

ALL = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type)
    and issubclass(kind, errors.KafkaError)
    and kind not in (errors.KafkaError, errors.BrokerResponseError)
]


@pytest.mark.parametrize("kind", [kind for kind in ALL if getattr(kind, "retriable", False)])
def test_what_aiokafka_calls_retriable_is_waited_out(kind: type[errors.KafkaError]) -> None:
    assert passes(kind())


@pytest.mark.parametrize("kind", [kind for kind in ALL if "Authoriz" in kind.__name__ or "Authentic" in kind.__name__])
def test_what_is_denied_is_not_waited_out(kind: type[errors.KafkaError]) -> None:
    assert not passes(kind())


@pytest.mark.parametrize("kind", ALL)
def test_every_refusal_is_one_line_that_names_the_action_and_a_command(kind: type[errors.KafkaError]) -> None:
    error = refused(kind("first line\nsecond line"), "writing to windows")
    assert isinstance(error, DependencyError)
    assert "writing to windows" in str(error)
    assert "sensorium " in str(error)
    assert "\n" not in str(error)
