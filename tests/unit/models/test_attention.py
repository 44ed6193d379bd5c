"""Masks: what is absent or padding changes nothing, and a row of nothing stays finite."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.blocks import Attention, CrossBlock, SelfBlock
from models.config import PRIVATE_DIM, SHARED_DIM, preset
from models.embedder import Embedder
from models.encoders.caption import read_caption
from models.encoders.collate import stack_captions, stack_sensors
from models.encoders.log_mel import FRAMES_MAX
from models.fusion import Fusion, FusionInput
from models.interface import DIM
from models.network import Network
from tests.unit.models.windows import START, rows, tokens, window


@pytest.mark.parametrize("training", [False, True])
def test_a_row_that_is_masked_entirely_is_finite_and_attends_to_nothing(training: bool) -> None:
    torch.manual_seed(0)
    x, mask = torch.randn(2, 5, 32), torch.tensor([[True] * 5, [False] * 5])
    attention = Attention(32, 2).train(training)
    out, weights = attention.weighed(x, x, mask)
    assert (attention(x, x, mask)[1] == 0).all()
    assert (out[1] == 0).all()
    assert (weights[1] == 0).all()
    assert SelfBlock(32, 2).train(training)(x, mask).isfinite().all()
    (CrossBlock(32, 2).train(training)(x, x, mask)[0].sum()).backward()


def test_a_masked_token_changes_nothing_whatever_it_holds() -> None:
    torch.manual_seed(0)
    block = SelfBlock(32, 2).eval()
    x, mask = torch.randn(2, 6, 32), torch.tensor([[True] * 4 + [False] * 2] * 2)
    other = torch.where(mask.unsqueeze(-1), x, 1e6)
    assert torch.equal(block(x, mask)[:, :4], block(other, mask)[:, :4])


@pytest.mark.parametrize("length", [16, 128])
def test_what_stands_in_the_padding_of_a_sensor_batch_changes_nothing(model: Embedder, length: int) -> None:
    held = [tokens(rows(n)) for n in (3, 12, length)]
    batch = stack_sensors(held, 8, length)
    mask = batch[-1]
    filled = [
        torch.where(mask.reshape(8, length, *[1] * (part.dim() - 2)), part, torch.full_like(part, 7))
        for part in batch[:-1]
    ]
    with torch.inference_mode():
        patches = model._network.encoder("sensor").patches
        one, two = patches(*batch), patches(*filled, mask)
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a, b)
        assert a.isfinite().all()  # rows of nothing included


def test_what_stands_in_the_padding_of_sounds_and_captions_changes_nothing(model: Embedder) -> None:
    pool, sentence = (model._network.encoder("audio").pool, model._network.encoder("caption").sentence)
    torch.manual_seed(0)
    frames, levels, mask = (
        torch.randn(8, FRAMES_MAX, 256),
        torch.randn(8, FRAMES_MAX, 128),
        torch.rand(8, FRAMES_MAX) > 0.5,
    )
    mask[0] = False
    pieces, words_mask = stack_captions([read_caption(text, 512) for text in ("rain", "a loud pump", "")], 8, 8)
    with torch.inference_mode():
        for a, b in zip(
            (*pool(frames, levels, mask), sentence(pieces, words_mask)),
            (
                *pool(*(torch.where(mask.unsqueeze(-1), x, 1e5) for x in (frames, levels)), mask),
                sentence(torch.where(words_mask.unsqueeze(-1), pieces, 9), words_mask),
            ),
            strict=True,
        ):
            assert torch.equal(a, b)
            assert a.isfinite().all()


def test_the_two_ways_to_attend_agree() -> None:
    torch.manual_seed(0)
    attention, x = Attention(64, 2), torch.randn(3, 7, 64)
    mask = torch.rand(3, 7) > 0.3
    torch.testing.assert_close(attention(x, x, mask), attention.weighed(x, x, mask)[0])


@pytest.mark.parametrize("kind", ["attention", "attention, whitened", "concat", "mean"])
def test_every_fusion_ignores_what_an_absent_modality_holds(kind: str) -> None:
    torch.manual_seed(0)
    config = replace(preset("tiny"), fusion=kind.partition(",")[0], whitened="whitened" in kind)
    sizes = {"sensor": (4, 32), "audio": (8, 256), "caption": (6, SHARED_DIM)}
    fusion = Fusion(config, sizes).eval()
    rng = np.random.default_rng(0)
    for whitened in fusion.whitened.values():
        whitened.measure(rng.normal(size=(600, DIM)), rng.normal(size=(500, DIM)))
    present = torch.tensor([[True, False, True]] * 8)
    parts = {name: torch.randn(8, *size) for name, size in sizes.items()}
    unimodal, when = torch.nn.functional.normalize(torch.randn(8, 3, SHARED_DIM), dim=-1), torch.rand(8, 18)
    mask, private = present[:, fusion.owner], torch.nn.functional.normalize(torch.randn(8, 3, PRIVATE_DIM), dim=-1)
    one, attention = fusion(FusionInput(parts, when, mask, unimodal, private, present))
    other = {**parts, "audio": parts["audio"] + 100}
    off = torch.tensor([0.0, 5.0, 0.0])[:, None]
    two, _ = fusion(FusionInput(other, when, mask, unimodal + off, private + off, present))
    assert torch.equal(one, two)
    torch.testing.assert_close(attention.sum(-1), torch.ones(8))
    assert (attention[:, 1] == 0).all()
    torch.testing.assert_close(one.norm(dim=-1), torch.ones(8))


@pytest.mark.parametrize("kind", ["attention", "attention, whitened", "concat", "mean"])
@pytest.mark.parametrize("training", [False, True])
def test_a_row_of_which_nothing_is_present_fuses_to_zero_with_finite_gradients(kind: str, training: bool) -> None:
    torch.manual_seed(0)
    fusion = kind.partition(",")[0]
    network = Network(replace(preset("tiny"), fusion=fusion, whitened="whitened" in kind)).train(training)
    note = network.encoder("caption").read(window(captions=[(START, "rain")]))
    encoded = network.encoder("caption")([note, note], 2)
    fused, attention = network.fusion(network.gather(4, {"caption": (torch.tensor([0, 2]), encoded)}))
    assert (fused[[1, 3]] == 0).all()
    assert (attention[[1, 3]] == 0).all()
    torch.testing.assert_close(fused[[0, 2]].norm(dim=-1), torch.ones(2))
    fused.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
