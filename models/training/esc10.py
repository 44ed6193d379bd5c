"""ESC-10: real sounds for training and measuring. A folder of fold1..fold5/<class>/*.ogg.

Fold 5 is never trained on; it is read only with --check-fold 5. Measured are vectors of the
service's own path, of clips and sentences that training never had.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.embedder import Embedder
from models.encoders.log_mel import resample
from models.errors import ModelError
from models.evaluation.metrics import roc_auc
from models.interface import WindowInput
from models.network import Network
from models.training import synthetic

FOLDS = (1, 2, 3, 4)
CLASS_OF_SOUND = "class of a sound by caption (10 classes)"
TEXT_TO_SOUND = "text -> sound, precision at 1"
SOUND_TO_TEXT = "sound -> text, precision at 1 (40 sentences)"


@dataclass(frozen=True, slots=True)
class Esc10Clip:
    """One clip of the data set, resampled."""

    name: str
    fold: int
    sound: int  # index into synthetic.SOUND_NAMES
    samples: NDArray[np.int16]  # (n,) at 16 kHz


def read_clips(folder: Path, folds: Sequence[int] = FOLDS) -> list[Esc10Clip]:
    """All clips of `folds` at 16 kHz, by fold, then path. Raises ModelError where there are none."""
    import soundfile

    clips = []
    for fold in folds:
        for path in sorted((folder / f"fold{fold}").glob("*/*.ogg")):
            if path.parent.name not in synthetic.SOUND_NAMES:
                raise ModelError(f"{path.parent} is no ESC-10 class; there are: {', '.join(synthetic.SOUND_NAMES)}")
            samples, rate = soundfile.read(path, dtype="float32")
            audio = resample(torch.from_numpy(samples), rate)
            scaled = (audio.clamp(-1, 32_767 / 32_768) * 32_768).round().to(torch.int16)
            clips.append(Esc10Clip(path.stem, fold, synthetic.SOUND_NAMES.index(path.parent.name), scaled.numpy()))
    if not clips:
        raise ModelError(f"no clips under {folder}/fold1..fold4/<class>/*.ogg; name the ESC-10 folder with --clips DIR")
    return clips


def check_sounds(network: Network, clips: Sequence[Esc10Clip]) -> dict[str, float]:
    """Sounds against sentences of a form that training never has (synthetic.UNSEEN_PROMPTS, UNSEEN_FORMS): measurements
    by name, each 0..1."""
    model = Embedder(network, "check")
    truth = np.array([clip.sound for clip in clips])
    embedded = model.embed([WindowInput(0, 5_000, clips=[(0, clip.samples)]) for clip in clips])
    audio = np.stack([vectors.unimodal["audio"] for vectors in embedded])  # (N, DIM)
    prompts = np.stack([model.embed_text(synthetic.UNSEEN_PROMPTS[name]) for name in synthetic.SOUND_NAMES])
    scores = audio @ prompts.T  # (N, 10)
    classes = sorted(set(truth.tolist()))
    ranked = np.argsort(-scores, axis=0, kind="stable")
    sentences = [
        (c, model.embed_text(form.format(sound=sound)))
        for c, name in enumerate(synthetic.SOUND_NAMES)
        for sound, form in zip(synthetic.UNSEEN_WORDS[name], synthetic.UNSEEN_FORMS, strict=True)
    ]
    sentence_class = np.array([c for c, _ in sentences])
    nearest = sentence_class[(audio @ np.stack([vector for _, vector in sentences]).T).argmax(1)]
    out = {
        CLASS_OF_SOUND: float((scores.argmax(1) == truth).mean()),
        TEXT_TO_SOUND: float(np.mean([truth[ranked[0, c]] == c for c in classes])),
        "text -> sound, precision at 5": float(np.mean([truth[ranked[:5, c]] == c for c in classes])),
        SOUND_TO_TEXT: float((nearest == truth).mean()),
    }
    alike = audio @ audio.T - 2 * np.eye(len(audio))
    out["sound -> sound, precision at 1"] = float((truth[alike.argmax(1)] == truth).mean())
    aucs = []
    for sound in classes:  # half of a class is normal; the other half and all other classes are scored
        places = np.flatnonzero(truth == sound)
        bank, rest = places[::2], places[1::2]
        far = 1 - (audio @ audio[bank].T).max(1)
        aucs.append(roc_auc(far[rest], far[truth != sound]))
    out["new sound against one normal sound, AUC"] = float(np.mean(aucs))
    return out


def check_machines(network: Network, clips: Sequence[Esc10Clip], seed: int = 0) -> dict[str, float]:
    """Simulated pumps retrieved by text, alone and fused with a sound and a caption; 200 windows. Measurements by name,
    each 0..1."""
    model = Embedder(network, "check")
    rng = random.Random(seed)
    states = [i % synthetic.SENSOR_CONDITIONS for i in range(200)]
    windows, fused = [], []
    for i, state in enumerate(states):
        window = synthetic.sensor_window(state, rng)
        windows.append(window)
        clip = clips[i % len(clips)]
        text = synthetic.condition_phrase(state, rng)
        fused.append(replace(window, clips=[(0, clip.samples[:32_000])], captions=[(0, text)]))
    sensors = np.stack([vectors.unimodal["sensor"] for vectors in model.embed(windows)])
    queries = np.stack([model.embed_text(text) for text in synthetic.UNSEEN_STATES])
    prompts = np.stack([model.embed_text(synthetic.UNSEEN_PROMPTS[name]) for name in synthetic.SOUND_NAMES])
    joint = np.stack([vectors.joint for vectors in model.embed(fused)])
    found = [[states[j] == s for j in np.argsort(-(joint @ queries[s]), kind="stable")[:10]] for s in range(4)]
    sounds = np.array([clips[i % len(clips)].sound for i in range(len(states))])
    top = np.argsort(-(joint @ prompts.T), axis=0, kind="stable")[:5]  # (5, 10)
    return {
        "state of a simulated pump by caption (4 states)": float(((sensors @ queries.T).argmax(1) == states).mean()),
        "text -> joint vector, pump state at 1..10": float(np.mean(found)),
        "text -> joint vector, sound at 1..5": float(np.mean([sounds[top[:, c]] == c for c in set(sounds.tolist())])),
    }
