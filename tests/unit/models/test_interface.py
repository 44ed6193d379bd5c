"""Windows cut down to some modalities, and vectors that must not leave a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.config import PRIVATE_DIM, SHARED_DIM, ModelConfig, Options, preset
from models.embedder import Embedder
from models.encoders import registry
from models.encoders.base import Encoded, Encoder
from models.interface import DIM, WindowInput, WindowVectors, check_vector, check_vectors
from models.network import Network
from tests.standin import StandInModel

WINDOW = WindowInput(0, 10_000, [(0, {"a": 1.0})], [(1, np.zeros(16_000, np.int16))], [(2, "rain")])


def unit(seed: int = 0) -> np.ndarray:
    vector = np.random.default_rng(seed).standard_normal(DIM)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def sound_vectors() -> WindowVectors:
    return WindowVectors(unit(0), {"sensor": unit(1), "caption": unit(2)}, {"sensor": 0.25, "caption": 0.75})


def test_sound_vectors_have_no_reason_against_them() -> None:
    assert check_vectors(sound_vectors()) is None
    assert check_vectors(sound_vectors(), WINDOW.only(("sensor", "caption"))) is None


BAD = {
    "nan": (np.where(np.arange(DIM) == 7, np.nan, unit(3)), "NaN or infinite"),
    "infinite": (np.where(np.arange(DIM) == 7, -np.inf, unit(3)), "NaN or infinite"),
    "zero": (np.zeros(DIM, np.float32), "length 0, not 1"),
    "too long": (unit(3) * np.float32(1.01), "length 1.01, not 1"),
    "huge": (np.full(DIM, 3e38, np.float32), "length"),
    "short": (unit(3)[:-1], r"float32 \(255,\)"),
    "a matrix": (unit(3)[None], r"\(1, 256\)"),
    "integers": (np.eye(1, DIM, dtype=np.int64)[0], "int64"),
    "a list": (unit(3).tolist(), "list"),
}


@pytest.mark.parametrize("place", ["joint", "sensor", "caption"])
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_vector_is_named_with_its_reason_wherever_it_is(kind: str, place: str) -> None:
    vector, expected = BAD[kind]
    good = sound_vectors()
    bad = replace(good, joint=vector) if place == "joint" else replace(good, unimodal={**good.unimodal, place: vector})
    reason = check_vectors(bad)
    assert reason is not None
    assert reason.startswith(f"the {place} vector")
    assert re.search(expected, reason)
    assert reason == f"the {place} vector {check_vector(vector)}"


def test_a_sound_vector_of_any_float_type_has_no_reason_against_it() -> None:
    assert check_vector(unit()) is None
    assert check_vector(unit().astype(np.float64)) is None
    assert check_vector((unit() * 1.0005).astype(np.float32)) is None


@pytest.mark.parametrize(
    ("attention", "expected"),
    [
        ({"sensor": 1.0}, "attention is over sensor, the vectors are of caption, sensor"),
        ({"sensor": 0.5, "caption": 0.5, "audio": 0.0}, "attention is over audio, caption, sensor"),
        ({"sensor": float("nan"), "caption": 0.5}, "sum to 1"),
        ({"sensor": 1.5, "caption": -0.5}, "sum to 1"),
        ({"sensor": 0.5, "caption": 0.4}, "sum to 1"),
    ],
)
def test_attention_that_is_no_set_of_shares_is_named(attention: dict[str, float], expected: str) -> None:
    assert expected in (check_vectors(replace(sound_vectors(), attention=attention)) or "")


def test_a_window_without_any_unimodal_vector_is_refused() -> None:
    assert check_vectors(WindowVectors(unit(), {}, {})) == "there is no unimodal vector"


def test_with_the_window_the_names_must_be_those_that_it_holds() -> None:
    assert check_vectors(sound_vectors(), WINDOW) == (
        "the vectors are of caption, sensor, the window holds audio, caption, sensor"
    )
    assert check_vectors(sound_vectors(), WINDOW.only(("sensor",))) is not None
    more = replace(WINDOW.only(("sensor", "caption")), extra={"image": [(0, 1)]})
    assert check_vectors(sound_vectors(), more) is None  # a model may lack an encoder for a third-party modality


def test_a_window_cut_down_holds_the_named_modalities_and_no_other() -> None:
    window = replace(WINDOW, extra={"image": [(0, 1)], "odour": [(0, 2)]}, units={"a": "bar"})
    assert window.present == ("sensor", "audio", "caption", "image", "odour")
    assert window.only(("caption", "odour")).present == ("caption", "odour")
    assert window.only(window.present) == window
    assert window.only(()).present == ()
    assert window.content("odour") == [(0, 2)]
    assert window.content("unknown") == ()


class _Broken(Encoder):
    """A third-party encoder that fails on some of its items without raising."""

    tokens, width = 1, SHARED_DIM

    def __init__(self, config: ModelConfig, modality: str, options: Options) -> None:
        super().__init__(config, modality, options)
        self.weight = torch.nn.Parameter(torch.ones(1))

    def read(self, window: WindowInput) -> float:
        return float(window.content(self.modality)[0][1])

    def forward(self, items: Sequence[float], rows: int) -> Encoded:
        fill = torch.zeros(rows)
        fill[: len(items)] = torch.tensor(list(items))
        shared = torch.zeros(rows, SHARED_DIM)
        shared[:, 0] = fill
        private = torch.zeros(rows, PRIVATE_DIM)
        there = torch.arange(rows)[:, None] < len(items)
        return Encoded(shared, private, shared[:, None], there, torch.zeros(rows, 1))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_a_third_party_encoder_that_fails_spoils_its_own_window_alone_and_is_named(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry._known, ("image", "broken"), _Broken)
    config = preset("tiny")
    torch.manual_seed(0)
    network = Network(replace(config, encoders={**config.encoders, "image": {"name": "broken"}})).eval()
    model = Embedder(network, "third-party")
    good = [replace(WINDOW, extra={"image": [(0, 1.0)]}, captions=[(2, f"note {i}")]) for i in range(3)]
    bad = replace(WINDOW, extra={"image": [(0, value)]})
    alone = model.embed(good)
    found = model.embed([good[0], bad, *good[1:]])
    assert [check_vectors(v, w) for v, w in zip(alone, good, strict=True)] == [None] * 3
    reason = check_vectors(found[1], bad)
    assert reason is not None
    assert "image" in reason or "joint" in reason
    for one, other in zip(alone, [found[0], *found[2:]], strict=True):
        assert one.joint.tobytes() == other.joint.tobytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_the_stand_in_can_break_without_an_error_as_a_third_party_encoder_does(value: float) -> None:
    windows = [replace(WINDOW, captions=[(2, text)]) for text in ("rain", "broken")]
    found = StandInModel(broken="broken", broken_value=value).embed(windows)
    reasons = [check_vectors(v, w) for v, w in zip(found, windows, strict=True)]
    assert reasons[0] is None
    assert reasons[1] is not None
