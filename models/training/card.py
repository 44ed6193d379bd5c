"""The card.md of a trained model: how it was trained, what was measured, its limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from models.training.own_stream import Fitted


def stream_card(fitted: Fitted, source: str, arguments: str) -> str:
    """The card of a model trained on a stream. source: what it was trained on; arguments: of `sensorium train`."""
    network = fitted.network
    rows = "\n".join(f"| {name} | {value:.3f} |" for name, value in fitted.directions.items())
    parts = ", ".join(f"{name} {value:.3f}" for name, value in fitted.contributions.items())
    encoders = ", ".join(f"{m}: {network.config.encoders[m]['name']}" for m in network.modalities)
    return f"""# Sensorium model, preset `{network.config.preset}`, trained on a stream

Trained without labels on {fitted.training} windows of {source}; {fitted.validation} later windows, after a gap, are
for validation. Encoders: {encoders}. Fusion: {network.config.fusion}. Balance: {network.config.balance}.

    sensorium train {arguments}

Retrieval on the validation windows (mean reciprocal rank of the window's own vector, neighbours in time and equal words
left out), best after epoch {fitted.best_epoch} of {fitted.epochs}: {fitted.before:.3f} before, now
{fitted.retrieval:.3f}.

| direction | mean reciprocal rank |
| --- | --- |
{rows}

Fusion by time (mean reciprocal rank of the next window of the stream, queried by a window cut down to each subset of
its modalities): {fitted.next_window_before:.3f} before, now {fitted.next_window:.3f}.

How far the joint vector moves without a modality (1 - cosine): {parts}.
"""


def shipped_card(
    preset_name: str, runs: Sequence[dict[str, float]], check_fold: int, arguments: str, seconds: float
) -> str:
    """The card of the weights that ship. runs: measurements by name, one dict a seed; seconds: CPU time of training."""
    table = (
        f"\nMeasured on fold {check_fold} by weights trained without it, with the same settings"
        f" ({len(runs)} seed{'s' if len(runs) > 1 else ''}):\n\n{measurements_table(runs)}"
        if runs
        else ""
    )
    return f"""# Sensorium model, preset `{preset_name}`

One 256-d space for sensor readings, sound and captions: 192 shared dimensions, aligned by training, and 64 private ones
that sketch the modality's own features.

Trained on ESC-10 folds 1-4 (real sounds, CC BY, see ATTRIBUTION.txt), on captions and on simulated pumps written by
`models/training/synthetic.py`. Fold 5 was neither trained nor tuned on. The weights here took
{seconds:.0f} CPU-seconds on one core.

    python -m models.training {arguments}
{table}
Class by caption: nearest of ten sentences of a form that training never had, with class words that it did have;
sound -> text: nearest of forty such sentences. A fold is 80 clips: differences of a few points are not significant.

Limits: ten kinds of sound can be found by name; vectors of other sounds differ from each other, but texts do not match
them. Sensor states can be found by name only where they look like those of the simulated pumps: other absolute levels
are embedded faithfully, but their text matches are random. The meaning of captions is learnt for English only. The
caption encoder knows words and their 3-grams: "chain saw" and "sawing" find the chainsaw, a synonym without common
letters ("hound" for the dog) does not. A pretrained encoder finds synonyms. With a sentence-transformers folder,

    python -m models.training.align_pretrained --clips DIR --captions DIR --out DIR \\
        --ask "a hound" --ask "storm surge at the coast"

writes a model that differs from this one in its captions only (a minute on one core, nothing is downloaded), and prints
the five nearest clips before and after. With all-MiniLM-L6-v2, all five nearest are of the right class for each of
"thunderstorm", "a hound", "storm surge at the coast", "toddler weeping", "puppy", "logging in the forest", "aircraft
hovering", "cough and cold", "poultry at dawn" and "pocket watch"; the weights here find two of these ten.
"""


def measurements_table(runs: Sequence[dict[str, float]]) -> str:
    """Markdown: mean and values of each measurement over the seeds."""
    lines = ["| what | mean | of each seed |", "| --- | --- | --- |"]
    for name in runs[0]:
        values = [run[name] for run in runs]
        lines.append(f"| {name} | {np.mean(values):.3f} | {', '.join(f'{v:.3f}' for v in values)} |")
    return "\n".join(lines) + "\n"
