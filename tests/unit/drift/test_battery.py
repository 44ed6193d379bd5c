"""Our detector, held to every invariant on every stream."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.drift.battery import CHECKS, STREAMS, Make, Stream
from tests.unit.drift.support import Watched


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("check", CHECKS)
def test_the_detector_keeps(check: Callable[[Make, Stream], None], stream: Stream) -> None:
    check(Watched, stream)
