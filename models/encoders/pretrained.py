"""Pretrained encoders from a local folder: any sentence-transformers model, and CLAP for sound and captions.

They are frozen: their vector of a text or a sound is an input, and a projection of it to the shared space is trained.
Their weights are not copied into the model folder; its config has the path of their folder and the checksum of its
files, and a folder with another checksum is refused. Nothing is downloaded: no hub is contacted, only files in the
folder are read.
"""

from __future__ import annotations

import hashlib
import random
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.blocks import masked_mean, unit
from models.config import PRIVATE_DIM, SHARED_DIM, ModelConfig, Options
from models.encoders.audio import band_levels
from models.encoders.base import Encoded, Encoder, relative_time
from models.encoders.caption import CAPTIONS_MAX, read_caption, sketch_of, window_captions
from models.encoders.log_mel import FRAMES_MAX, MEL_BANDS, log_mel, resample_array, spread, window_frames
from models.encoders.registry import register_encoder
from models.errors import ModelError
from models.interface import SAMPLE_RATE_HZ, WindowInput

Array = NDArray[np.float32]
_FILES = {".safetensors", ".json", ".txt", ".model"}
_CLAP_RATE_HZ = 48_000
_CLAP_SECONDS = 10  # a longer clip is split into segments: CLAP itself would crop it at random
_TEXT_TOKENS = 77


@dataclass(frozen=True, slots=True)
class PretrainedItem:
    """The frozen encoder's vectors of one window."""

    vectors: Array  # (P, D) of length 1, one for each caption or segment of sound
    when: tuple[float, ...]  # time of each, relative to the window, 0..1
    sketch: Array  # (PRIVATE_DIM,) or (2 * MEL_BANDS,): the source of the private part


class Pretrained(Encoder):
    """A frozen encoder behind a trained projection."""

    width = SHARED_DIM

    def __init__(self, config: ModelConfig, modality: str, options: Options) -> None:
        super().__init__(config, modality, options)
        if "path" not in options:
            raise ModelError(f'the {options["name"]} encoder for {modality} needs a folder: "path" in config.json')
        self.folder = Path(str(options["path"]))
        if not self.folder.is_dir():
            raise ModelError(
                f"{self.folder} does not exist: the folder of the {options['name']} encoder for {modality}; put it "
                f'back, or set "path" in config.json to its new location'
            )
        if "sha256" in options and checksum(self.folder) != options["sha256"]:
            raise ModelError(
                f"{self.folder} is another model than the one this was trained with; put that one back, or train again "
                f"with: sensorium train"
            )
        dim = self.measure()
        self.norm = nn.LayerNorm(dim)
        self.project = nn.Linear(dim, SHARED_DIM)

    @abstractmethod
    def measure(self) -> int:
        """Width of the frozen encoder's vectors. Raises ModelError where it cannot be loaded."""

    def bucket(self, item: PretrainedItem) -> int:
        return len(item.vectors)

    def augment(self, item: PretrainedItem, rng: random.Random) -> PretrainedItem:
        """A little noise on the vectors: running the frozen encoder on every variation would cost too much."""
        noise = np.random.default_rng(rng.getrandbits(63)).standard_normal(item.vectors.shape)
        moved = item.vectors + (0.3 * noise / item.vectors.shape[1] ** 0.5).astype(np.float32)
        return replace(item, vectors=moved)

    def sketches(self, sketches: Tensor) -> Tensor:
        """(B, size of an item's `sketch`) -> (B, PRIVATE_DIM) of length 1."""
        return unit(sketches)

    def forward(self, items: Sequence[PretrainedItem], rows: int) -> Encoded:
        most = max(len(item.vectors) for item in items)
        vectors = torch.zeros(rows, most, items[0].vectors.shape[1])
        when = torch.zeros(rows, most)
        mask = torch.zeros(rows, most, dtype=torch.bool)
        sketches = torch.zeros(rows, len(items[0].sketch))
        for row, item in enumerate(items):
            count = len(item.vectors)
            vectors[row, :count] = torch.from_numpy(item.vectors)
            when[row, :count] = torch.tensor(item.when)
            mask[row, :count] = True
            sketches[row] = torch.from_numpy(item.sketch)
        mask = mask.to(self.device)
        tokens = unit(self.project(self.norm(vectors.to(self.device)))) * mask.unsqueeze(-1)
        shared = unit(masked_mean(tokens, mask))
        return Encoded(shared, self.sketches(sketches.to(self.device)), tokens, mask, when.to(self.device))


class _Captions(Pretrained):
    tokens = CAPTIONS_MAX

    @abstractmethod
    def vector(self, text: str) -> Array:
        """(D,) of length 1, each text in a batch of its own: no batch mate changes a bit."""

    def measure(self) -> int:
        return len(self.vector("rain"))

    def read(self, window: WindowInput) -> PretrainedItem:
        kept = window_captions(window.captions)
        vectors = np.stack([self.vector(_tokenizable(text)) for _, text in kept])
        sketch = sketch_of([read_caption(text, 2) for _, text in kept]).numpy()
        return PretrainedItem(vectors, tuple(relative_time(window, time_ms) for time_ms, _ in kept), sketch)


@register_encoder("caption", "sentence-transformers")
class SentenceTransformers(_Captions):
    """Any sentence-transformers folder, all-MiniLM-L6-v2 for one."""

    def vector(self, text: str) -> Array:
        return _sentence_vector(self.folder, text)


@register_encoder("caption", "clap")
class ClapCaptions(_Captions):
    """The text tower of a CLAP folder."""

    def vector(self, text: str) -> Array:
        return _clap_text(self.folder, text)


@register_encoder("audio", "clap")
class ClapSounds(Pretrained):
    """The sound tower of a CLAP folder: clips at 48 kHz, at most ten seconds at a time."""

    tokens = FRAMES_MAX
    projection: Tensor  # (2 * MEL_BANDS, PRIVATE_DIM), drawn once, never trained

    def __init__(self, config: ModelConfig, modality: str, options: Options) -> None:
        super().__init__(config, modality, options)
        self.register_buffer("projection", torch.randn(2 * MEL_BANDS, PRIVATE_DIM) / (2 * MEL_BANDS) ** 0.5)

    def measure(self) -> int:
        return len(_clap_sound(self.folder, np.zeros(SAMPLE_RATE_HZ, np.int16)))

    def read(self, window: WindowInput) -> PretrainedItem:
        step = _CLAP_SECONDS * SAMPLE_RATE_HZ
        segments = [
            (time_ms + start * 1_000 // SAMPLE_RATE_HZ, samples[start : start + step])
            for time_ms, samples in window.clips
            for start in range(0, max(len(samples), 1), step)
        ]
        kept = [segments[i] for i in spread(len(segments), FRAMES_MAX)]
        vectors = np.stack([_clap_sound(self.folder, samples) for _, samples in kept])
        frames = [torch.from_numpy(frame) for _, frame in window_frames(list(window.clips))]
        levels = band_levels(log_mel(torch.stack(frames))).mean(0).numpy()
        return PretrainedItem(vectors, tuple(relative_time(window, time_ms) for time_ms, _ in kept), levels)

    def sketches(self, sketches: Tensor) -> Tensor:
        return unit(sketches @ self.projection)


def pinned(config: ModelConfig) -> ModelConfig:
    """The config with the checksum of every pretrained encoder's folder, so that a trained model accepts no other one.

    Raises OSError where a folder cannot be read.
    """
    encoders = {
        modality: {**options, "sha256": checksum(Path(str(options["path"])))} if "path" in options else options
        for modality, options in config.encoders.items()
    }
    return replace(config, encoders=encoders)


@lru_cache(maxsize=8)
def checksum(folder: Path) -> str:
    """sha256 over the names and contents of a folder's model files."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in _FILES and p.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _tokenizable(text: str) -> str:
    """The text, cut to 2,000 characters, or "-" where nothing is left that a tokenizer could use."""
    return text.encode("utf-8", "replace").decode().strip()[:2_000] or "-"


def _unit(vector: Any) -> Array:
    flat = np.asarray(vector, np.float32).reshape(-1)
    length = float(np.linalg.norm(flat))
    return flat / np.float32(length) if length > 0 else flat


@lru_cache(maxsize=2)
def _sentence_model(folder: Path) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ModelError(
            f"{folder} needs sentence-transformers ({error}); install it with: pip install 'sensorium[minilm]'"
        ) from error
    try:
        return SentenceTransformer(
            str(folder), device="cpu", local_files_only=True, model_kwargs={"use_safetensors": True}
        ).eval()
    except Exception as error:  # of many types, none of which names the folder
        raise ModelError(f"{folder} is no sentence-transformers model ({_first_line(error)})") from error


@lru_cache(maxsize=4_096)
def _sentence_vector(folder: Path, text: str) -> Array:
    with torch.inference_mode():
        return _unit(_sentence_model(folder).encode([text], batch_size=1, show_progress_bar=False))


@lru_cache(maxsize=2)
def _clap_model(folder: Path) -> tuple[Any, Any, Any]:
    try:
        from transformers import AutoFeatureExtractor, AutoTokenizer, ClapModel
    except ImportError as error:
        raise ModelError(
            f"{folder} needs transformers ({error}); install it with: pip install 'sensorium[clap]'"
        ) from error
    try:
        model = ClapModel.from_pretrained(str(folder), local_files_only=True, use_safetensors=True).eval()
        return (
            model,
            AutoTokenizer.from_pretrained(str(folder), local_files_only=True),
            AutoFeatureExtractor.from_pretrained(str(folder), local_files_only=True),
        )
    except Exception as error:  # of many types, none of which names the folder
        raise ModelError(f"{folder} is no CLAP model of transformers ({_first_line(error)})") from error


@lru_cache(maxsize=4_096)
def _clap_text(folder: Path, text: str) -> Array:
    model, tokenizer, _ = _clap_model(folder)
    tokens = tokenizer([text], return_tensors="pt", truncation=True, max_length=_TEXT_TOKENS)
    with torch.inference_mode():
        found = model.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    return _unit(getattr(found, "pooler_output", found))


def _clap_sound(folder: Path, samples: NDArray[np.int16]) -> Array:
    """(n,) at 16 kHz, at most ten seconds -> (D,)."""
    model, _, extractor = _clap_model(folder)
    resampled = resample_array(samples if len(samples) else np.zeros(160, np.int16), SAMPLE_RATE_HZ, _CLAP_RATE_HZ)
    # At ten seconds or less neither way of cropping applies, but each gives the shape that its kind of model takes.
    cut = "fusion" if model.config.audio_config.enable_fusion else "rand_trunc"
    features = extractor(
        [resampled], sampling_rate=_CLAP_RATE_HZ, return_tensors="pt", padding="repeatpad", truncation=cut
    )
    with torch.inference_mode():
        found = model.get_audio_features(input_features=features["input_features"], is_longer=features["is_longer"])
    return _unit(getattr(found, "pooler_output", found))


def _first_line(error: Exception) -> str:
    return (str(error) or repr(error)).strip().splitlines()[0][:200]
