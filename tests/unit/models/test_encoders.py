"""Encoders brought by others: a modality registered from outside, and pretrained models from a folder."""

from __future__ import annotations

import importlib
import json
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import models
from models.blocks import masked_mean, unit
from models.checkpoint import write_checkpoint
from models.config import PRIVATE_DIM, SHARED_DIM, ModelConfig, preset
from models.embedder import Embedder
from models.encoders import registry
from models.encoders.base import Encoded, Encoder, relative_time
from models.encoders.pretrained import pinned
from models.encoders.registry import encoder_class, list_encoders, register_encoder
from models.interface import WindowInput
from models.network import Network

SIDE = 4


@register_encoder("image", "toy")
class ToyImages(Encoder):
    """Grey pictures of SIDE x SIDE: as much as a third party has to write."""

    tokens = 3
    width = 12

    def __init__(self, config, modality, options) -> None:
        super().__init__(config, modality, options)
        self.patch = nn.Linear(SIDE * SIDE, self.width)
        self.out = nn.Linear(self.width, SHARED_DIM)
        self.sketch = nn.Linear(SIDE * SIDE, PRIVATE_DIM)

    def read(self, window):
        kept = list(self.content(window))[: self.tokens]
        return np.stack([p for _, p in kept]).reshape(-1, SIDE * SIDE), [relative_time(window, t) for t, _ in kept]

    def bucket(self, item):
        return len(item[0])

    def augment(self, item, rng):
        return item[0] * np.float32(rng.uniform(0.9, 1.1)), item[1]

    def forward(self, items, rows):
        most = max(len(pictures) for pictures, _ in items)
        held, when = torch.zeros(rows, most, SIDE * SIDE), torch.zeros(rows, most)
        mask = torch.zeros(rows, most, dtype=torch.bool)
        for row, (pictures, times) in enumerate(items):
            held[row, : len(pictures)] = torch.from_numpy(pictures)
            when[row, : len(times)] = torch.tensor(times)
            mask[row, : len(times)] = True
        tokens = self.patch(held)
        private = unit(self.sketch(masked_mean(held, mask)))
        return Encoded(unit(self.out(masked_mean(tokens, mask))), private, tokens, mask, when)


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((SIDE, SIDE), np.float32)


def seen(*pictures: np.ndarray, text: str = "rain") -> WindowInput:
    return WindowInput(
        0, 10_000, [(5, {"a": 1.0})], captions=[(7, text)], extra={"image": [(i, p) for i, p in enumerate(pictures)]}
    )


def with_images(**options) -> ModelConfig:
    config = preset("tiny")
    return replace(config, encoders={**config.encoders, "image": {"name": "toy", **options}})


def fresh(config: ModelConfig) -> Embedder:
    torch.manual_seed(4)
    return Embedder(Network(config).eval(), "fresh")


def test_a_modality_from_outside_has_its_vector_its_share_of_attention_and_moves_the_joint_one() -> None:
    one, two = fresh(with_images()).embed([seen(picture(1)), seen(picture(2))])
    assert set(one.unimodal) == set(one.attention) == {"sensor", "caption", "image"}
    assert sum(one.attention.values()) == pytest.approx(1)
    assert one.attention["image"] > 0.01
    assert not np.array_equal(one.joint, two.joint)
    assert np.array_equal(one.unimodal["caption"], two.unimodal["caption"])


def test_a_window_of_the_new_modality_alone_is_valid_and_the_same_in_any_batch() -> None:
    model = fresh(with_images())
    alone = WindowInput(0, 10_000, extra={"image": [(3, picture(1)), (4, picture(5))]})
    (one,) = model.embed([alone])
    assert set(one.attention) == {"image"}
    others = [seen(picture(i), picture(i + 1)) for i in range(10)]
    assert np.array_equal(model.embed([*others, alone, *others])[10].joint, one.joint)


def test_its_private_share_is_an_option_of_the_config() -> None:
    (vectors,) = fresh(with_images(private=0.4)).embed([seen(picture(1))])
    assert float(np.square(vectors.unimodal["image"][SHARED_DIM:]).sum()) == pytest.approx(0.4, abs=1e-5)


def test_a_model_without_that_encoder_does_not_see_the_content() -> None:
    model = fresh(preset("tiny"))
    one, two = model.embed([seen(picture(1)), seen()])
    assert np.array_equal(one.joint, two.joint)
    with pytest.raises(models.ModelError, match="empty"):
        model.embed([WindowInput(0, 1, extra={"image": [(0, picture(1))]})])


def test_it_is_saved_and_loaded_like_the_rest(tmp_path: Path) -> None:
    torch.manual_seed(1)
    version = write_checkpoint(tmp_path, Network(with_images()), "")
    assert models.load(tmp_path).version == version
    assert set(models.load(tmp_path).embed([seen(picture(1))])[0].unimodal) == {"sensor", "caption", "image"}


def test_two_encoders_of_one_name_are_refused() -> None:
    with pytest.raises(models.ModelError, match="already exists"):

        @register_encoder("image", "toy")
        class Other(ToyImages):
            pass


def test_an_unknown_encoder_is_an_error_that_lists_those_there_are() -> None:
    with pytest.raises(models.ModelError, match="hash"):
        encoder_class("caption", "nonesuch")
    assert {("sensor", "set"), ("audio", "cnn"), ("audio", "clap"), ("caption", "hash")} <= set(list_encoders())


def test_an_installed_package_brings_its_encoders_without_being_imported(tmp_path: Path) -> None:
    (tmp_path / "odour_pack.py").write_text(
        "from models.encoders.registry import register_encoder\nfrom tests.unit.models.test_encoders import ToyImages\n"
        "@register_encoder('odour', 'nose')\nclass Nose(ToyImages): ...\n"
    )
    info = tmp_path / "odour_pack-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odour-pack\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sensorium.encoders]\nnose = odour_pack\n")
    code = "from models.encoders.registry import encoder_class; print(encoder_class('odour', 'nose').__name__)"
    root = Path(__file__).resolve().parents[3]
    ran = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(root)!r}]; {code}"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=root,
    )
    assert ran.stdout.strip() == "Nose", ran.stderr


def test_a_package_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    broken = EntryPoint("nose", "no_such_module_anywhere", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [broken])
    registry._load_entry_points.cache_clear()
    with pytest.raises(models.ModelError, match="no_such_module_anywhere"):
        encoder_class("image", "not there")
    registry._load_entry_points.cache_clear()


# -- from a folder -------------------------------------------------------------------------------------------------


def _tokenizer(folder: Path, marks: dict[str, str]) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    vocabulary = {mark: i for i, mark in enumerate([*marks.values(), "rain", "dog", "a", "-"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=marks["unk_token"]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **marks).save_pretrained(
        folder
    )


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers folder as anybody's: one layer, drawn at random."""
    transformers = pytest.importorskip("transformers")
    library = pytest.importorskip("sentence_transformers")
    parts = importlib.import_module("sentence_transformers.sentence_transformer.modules")
    folder = tmp_path_factory.mktemp("sentences")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
    )
    transformers.BertModel(config).save_pretrained(folder / "bert")
    _tokenizer(folder / "bert", {"pad_token": "[PAD]", "unk_token": "[UNK]"})
    model = library.SentenceTransformer(modules=[parts.Transformer(str(folder / "bert")), parts.Pooling(16)])
    model.save(str(folder / "st"))
    return folder / "st"


@pytest.fixture(scope="module")
def clap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLAP folder of the smallest size that its classes allow."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clap")
    text = {
        "vocab_size": 64,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 90,
        "projection_dim": 24,
        "pad_token_id": 1,
    }
    sound = {
        "hidden_size": 16,
        "patch_embeds_hidden_size": 8,
        "depths": [1, 1],
        "num_attention_heads": [1, 2],
        "window_size": 4,
        "num_mel_bins": 64,
        "spec_size": 256,
        "projection_dim": 24,
        "num_classes": 4,
        "enable_fusion": False,
        "mlp_ratio": 2.0,
        "num_hidden_layers": 2,
    }
    torch.manual_seed(0)
    config = transformers.ClapConfig(text_config=text, audio_config=sound, projection_dim=24)
    transformers.ClapModel(config).save_pretrained(folder)
    transformers.ClapFeatureExtractor().save_pretrained(folder)
    _tokenizer(folder, {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"})
    return folder


def from_folder(**encoders: dict[str, object]) -> ModelConfig:
    config = preset("tiny")
    return replace(config, encoders={**config.encoders, **encoders})


def spoken(text: str) -> WindowInput:
    return WindowInput(0, 10_000, [(5, {"a": 1.0})], captions=[(7, text), (8, "a dog")])


def heard(seconds: float, seed: int = 0) -> WindowInput:
    noise = np.random.default_rng(seed).integers(-9_000, 9_000, int(seconds * 16_000)).astype(np.int16)
    return WindowInput(0, 10_000, clips=[(100, noise)], captions=[(7, "rain")])


def test_a_sentence_folder_encodes_captions_the_same_in_any_batch(sentences: Path) -> None:
    model = fresh(from_folder(caption={"name": "sentence-transformers", "path": str(sentences)}))
    texts = ["rain", "a dog", "", "🔥", "\ud800", "rain " * 400]
    together = model.embed([spoken(text) for text in texts])
    alone = [model.embed([spoken(text)])[0] for text in texts]
    assert all(np.array_equal(a.joint, b.joint) for a, b in zip(together, alone, strict=True))
    assert all(np.isfinite(v.joint).all() for v in together)
    assert not np.array_equal(together[0].unimodal["caption"], together[1].unimodal["caption"])
    assert float(np.linalg.norm(model.embed_text("rain"))) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("seconds", [0, 0.3, 5, 23])
def test_a_clap_folder_encodes_sounds_and_captions(clap: Path, seconds: float) -> None:
    config = from_folder(audio={"name": "clap", "path": str(clap)}, caption={"name": "clap", "path": str(clap)})
    model = fresh(config)
    one, again = model.embed([heard(seconds), heard(seconds)])
    assert set(one.attention) == {"audio", "caption"}
    assert np.array_equal(one.joint, again.joint)
    assert np.isfinite(one.joint).all()
    if seconds:
        assert not np.array_equal(one.joint, model.embed([heard(seconds, 1)])[0].joint)


def test_the_frozen_weights_are_not_copied_and_not_trained(clap: Path, tmp_path: Path) -> None:
    network = Network(from_folder(audio={"name": "clap", "path": str(clap)}))
    names = [name for name in network.state_dict() if name.startswith("encoders.audio")]
    assert {name.split(".")[2] for name in names} == {"norm", "project", "projection"}


def test_a_saved_model_is_bound_to_the_files_it_was_trained_with_wherever_they_lie(
    sentences: Path, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    shutil.copytree(sentences, here)
    config = pinned(from_folder(caption={"name": "sentence-transformers", "path": str(here)}))
    torch.manual_seed(0)
    version = write_checkpoint(tmp_path / "m", Network(config), "")
    there = tmp_path / "there"
    here.rename(there)
    with pytest.raises(models.ModelError, match="here"):
        models.load(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    path.write_text(path.read_text().replace(str(here), str(there)))
    assert models.load(tmp_path / "m").version == version
    settings = there / "config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "note": 1}))
    from models.encoders.pretrained import checksum

    checksum.cache_clear()
    with pytest.raises(models.ModelError, match="another model"):
        models.load(tmp_path / "m")


def test_a_folder_that_is_no_such_model_is_one_clear_error(tmp_path: Path) -> None:
    for name, modality in (("sentence-transformers", "caption"), ("clap", "audio")):
        with pytest.raises(models.ModelError, match=str(tmp_path)):
            Network(from_folder(**{modality: {"name": name, "path": str(tmp_path)}}))
    with pytest.raises(models.ModelError, match="path"):
        Network(from_folder(audio={"name": "clap"}))


@pytest.mark.parametrize(
    ("library", "name", "modality", "extra"),
    [
        ("sentence_transformers", "sentence-transformers", "caption", "minilm"),
        ("transformers", "clap", "audio", "clap"),
    ],
)
def test_a_missing_library_is_named_with_the_command_that_installs_it(
    library: str, name: str, modality: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(models.ModelError, match=rf"pip install 'sensorium\[{extra}\]'"):
        Network(from_folder(**{modality: {"name": name, "path": str(tmp_path)}}))


def test_variation_is_the_same_for_the_same_seed(sentences: Path) -> None:
    encoder = Network(from_folder(caption={"name": "sentence-transformers", "path": str(sentences)})).encoder("caption")
    item = encoder.read(spoken("rain"))
    one, two = (encoder.augment(item, random.Random(3)) for _ in range(2))
    assert np.array_equal(one.vectors, two.vectors)
    assert not np.array_equal(one.vectors, item.vectors)


def test_aligning_a_pretrained_caption_encoder_changes_nothing_else(
    sentences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from models.training import align_pretrained
    from models.training.esc10 import Esc10Clip

    monkeypatch.setattr(align_pretrained, "SENTENCES", 24)
    monkeypatch.setattr(align_pretrained, "PUMPS", 12)
    monkeypatch.setattr(align_pretrained, "STEPS", 3)
    monkeypatch.setattr(align_pretrained, "ROWS", 16)
    torch.manual_seed(0)
    base = Network(preset("tiny"))
    write_checkpoint(tmp_path / "base", base, "# base\n")
    clips = [Esc10Clip(str(i), 1, i, np.full(16_000, 900 * i, np.int16)) for i in range(10)]
    network = align_pretrained.align_captions(clips, sentences, tmp_path / "base")
    write_checkpoint(tmp_path / "out", network, "")
    before = models.load(tmp_path / "base")._network.state_dict()
    after = models.load(tmp_path / "out")._network.state_dict()
    kept = [name for name in before if not name.startswith("encoders.caption")]
    assert len(kept) > 50
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert network.config.encoders["caption"]["name"] == "sentence-transformers"
    fresh_weight = fitting_start(network.config, tmp_path / "base").state_dict()["encoders.caption.project.weight"]
    assert not torch.equal(after["encoders.caption.project.weight"], fresh_weight)


def fitting_start(config: ModelConfig, base: Path) -> Network:
    from models.training.own_stream import start

    return start(config, base, 0)
