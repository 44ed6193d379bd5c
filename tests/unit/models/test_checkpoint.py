"""Model folders: written, read, versioned, and how damaged ones end."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import models
from models.checkpoint import write_checkpoint
from models.config import ModelConfig, preset
from models.embedder import Embedder
from models.network import Network
from tests.unit.models.windows import digest, rows, window


def saved(folder: Path) -> Path:
    torch.manual_seed(1)
    write_checkpoint(folder, Network(preset("tiny")), "# a test\n")
    return folder


def test_a_saved_model_comes_back_with_the_same_version_and_vectors(tmp_path: Path) -> None:
    one, two = models.load(saved(tmp_path / "a")), models.load(saved(tmp_path / "b"))
    assert one.version == two.version
    assert one.version.startswith("tiny-")
    assert digest(one.embed([window(rows())])[0]) == digest(two.embed([window(rows())])[0])


def test_a_field_that_came_later_changes_neither_folder_nor_version_where_it_is_as_it_was(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    assert "whitened" not in json.loads((folder / "config.json").read_text())
    config, other = preset("tiny"), replace(preset("tiny"), whitened=True)
    assert config.identity() != other.identity()
    for one in (config, other):
        assert ModelConfig.from_json(one.to_json(), "here") == one


def test_other_weights_are_another_version(tmp_path: Path, model: Embedder) -> None:
    torch.manual_seed(2)
    write_checkpoint(tmp_path, Network(preset("tiny")), "")
    assert len({models.load(tmp_path).version, models.load(saved(tmp_path / "a")).version, model.version}) == 3


@pytest.mark.parametrize(
    "harm", ["missing folder", "no weights", "truncated", "other shapes", "not json", "unknown field", "nan"]
)
def test_a_wrong_folder_is_one_clear_error_that_names_the_way_out(tmp_path: Path, harm: str) -> None:
    folder = saved(tmp_path / "m")
    weights, config = folder / "model.safetensors", folder / "config.json"
    if harm == "missing folder":
        shutil.rmtree(folder)
    elif harm == "no weights":
        weights.unlink()
    elif harm == "truncated":
        weights.write_bytes(weights.read_bytes()[:1_000])
    elif harm == "other shapes":
        config.write_text(config.read_text().replace('"sensor_dim": 32', '"sensor_dim": 64'))
    elif harm == "not json":
        config.write_text("{")
    elif harm == "unknown field":
        config.write_text(json.dumps({**json.loads(config.read_text()), "colour": 1}))
    else:
        network = Network(preset("tiny"))
        network.logit_bias.data.fill_(math.nan)
        write_checkpoint(folder, network, "")
    with pytest.raises(models.ModelError, match=r"python -m models\.training") as caught:
        models.load(folder)
    assert "m" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_the_shipped_folder_names_its_sources() -> None:
    card = (models.SHIPPED / "card.md").read_text()
    assert "python -m models.training" in card
    assert "Fold 5" in card
    assert "CC BY" in (models.SHIPPED.parent / "ATTRIBUTION.txt").read_text()


def test_importing_models_does_not_pay_for_torch() -> None:
    code = "import sys, models; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == "False"
