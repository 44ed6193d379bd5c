"""What a trained network can do on clips it has not heard and sentences it has not read."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models import synthetic
from models.embedder import Embedder
from models.interface import WindowInput
from models.network import Network


@dataclass(frozen=True, slots=True)
class Clip:
    name: str
    fold: int
    sound: int  # index into synthetic.SOUND_NAMES
    samples: NDArray[np.int16]  # (n,) at 16 kHz


def roc_auc(normal: NDArray[np.floating], odd: NDArray[np.floating]) -> float:
    """Chance that an odd score is above a normal one, ties counted half."""
    above = (odd[:, None] > normal[None, :]).mean()
    equal = (odd[:, None] == normal[None, :]).mean()
    return float(above + equal / 2)


def evaluate(network: Network, clips: list[Clip], seed: int = 0) -> dict[str, float]:
    """Zero-shot accuracy, retrieval, clustering of sounds, and sensor states found by text; all on the shipped path."""
    model = Embedder(network, "evaluation")
    rng = random.Random(seed)
    truth = np.array([clip.sound for clip in clips])
    heard = model.embed([WindowInput(0, 5_000, clips=[(0, clip.samples)]) for clip in clips])
    audio = np.stack([vectors.unimodal["audio"] for vectors in heard])
    prompts = np.stack([model.embed_text(synthetic.UNSEEN_PROMPTS[name]) for name in synthetic.SOUND_NAMES])
    scores = audio @ prompts.T  # (N, 10)
    ranked = np.argsort(-scores, axis=0, kind="stable")
    out = {
        "zero-shot class of a sound (10 classes)": float((scores.argmax(1) == truth).mean()),
        "text -> sound, precision at 1": float(np.mean([truth[ranked[0, c]] == c for c in set(truth.tolist())])),
        "text -> sound, precision at 5": float(np.mean([truth[ranked[:5, c]] == c for c in set(truth.tolist())])),
    }
    alike = audio @ audio.T - 2 * np.eye(len(audio))
    out["sound -> sound, precision at 1"] = float((truth[alike.argmax(1)] == truth).mean())
    aucs = []
    for sound in set(truth.tolist()):  # half of a class is the normal, the other half and all other classes are scored
        places = np.flatnonzero(truth == sound)
        bank, rest = places[::2], places[1::2]
        far = 1 - (audio @ audio[bank].T).max(1)
        aucs.append(roc_auc(far[rest], far[truth != sound]))
    out["new sound against one normal sound, AUC"] = float(np.mean(aucs))

    states = [i % synthetic.SENSOR_CONDITIONS for i in range(200)]
    windows, fused = [], []
    for i, state in enumerate(states):
        readings, units, span_ms = synthetic.sensor_window(state, rng)
        windows.append(WindowInput(0, span_ms, readings=readings, units=units))
        clip = clips[i % len(clips)]
        text = synthetic.condition_phrase(state, rng)
        fused.append(WindowInput(0, span_ms, readings, [(0, clip.samples[:32_000])], [(0, text)], units))
    sensed = np.stack([vectors.unimodal["sensor"] for vectors in model.embed(windows)])
    asked = np.stack([model.embed_text(text) for text in synthetic.UNSEEN_STATES])
    out["zero-shot state of a simulated pump (4 states)"] = float(((sensed @ asked.T).argmax(1) == states).mean())
    joint = np.stack([vectors.joint for vectors in model.embed(fused)])
    out["text -> joint vector, pump state at 1..10"] = float(
        np.mean([[states[j] == s for j in np.argsort(-(joint @ asked[s]), kind="stable")[:10]] for s in range(4)])
    )
    heard_in_joint = joint @ prompts.T
    sounds = np.array([clips[i % len(clips)].sound for i in range(len(states))])
    top = np.argsort(-heard_in_joint, axis=0, kind="stable")[:5]  # (5, 10)
    out["text -> joint vector, sound at 1..5"] = float(np.mean([sounds[top[:, c]] == c for c in set(sounds.tolist())]))
    return out
