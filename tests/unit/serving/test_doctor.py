"""The doctor names what is missing with the command that mends it."""

from __future__ import annotations

import aiokafka.codec
import pytest

from streams.serving import doctor
from streams.settings import load_settings


async def test_a_codec_that_is_missing_is_an_error_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await doctor._codecs(load_settings())).text == "gzip, snappy, lz4, zstd"
    monkeypatch.setattr(aiokafka.codec, "cramjam", None)
    found = await doctor._codecs(load_settings())
    assert found.level == "error"
    assert found.text.startswith("batches compressed with snappy, lz4, zstd cannot be read")
    assert "make setup" in found.text
