"""Rebuild the shipped weights: `python -m models.training --clips DIR --out models/weights/small`.

DIR holds the ESC-10 folders fold1..fold4/<class>/*.ogg. Fold 5 is never trained on: who kept it back measures with
--check-fold 5 --check-only. The rest, captions and pumps, is written by `synthetic`. First a run without the check
fold is measured on it, then weights are trained on all four folds with the same settings.
With --check-only and --seeds 3 it measures only, three times, and prints mean and spread.
"""

from __future__ import annotations

import argparse
import copy
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.config import ModelConfig, preset
from models.encoders.audio import Sound, vary_mels
from models.encoders.base import Item
from models.encoders.caption import worn
from models.encoders.log_mel import FRAME_COLUMNS, MEL_BANDS, SILENCE, log_mel
from models.errors import ModelError
from models.fusion import FusionInput
from models.interface import SAMPLE_RATE_HZ, WindowInput
from models.network import Network
from models.training import synthetic
from models.training.esc10 import FOLDS, Clip, check_machines, check_sounds, read_clips
from models.training.losses import agreement, siglip
from models.training.optim import follow, optimizer_of, set_rate

FRAMES = 4  # of a clip, drawn anew in every step
ROWS = 64  # windows of a step
DRILLS = 64  # further sensor windows of a step, each with a note on its state: cheap, and states are hard to learn
PEAK_RATE = 1.5e-3


@dataclass(frozen=True, slots=True)
class Step:
    """One batch of made-up windows: a real sound, a drawn pump, a written caption, and a second caption alike."""

    sounds: list[Item]
    sensors: list[Item]
    sensors_again: list[Item]  # the same pumps a little later
    captions: list[Item]  # of 2 * ROWS windows of one caption each
    sound: Tensor  # (ROWS,) class
    condition: Tensor
    said_sound: Tensor  # (2 * ROWS,) -1 where the caption says nothing about it
    said_condition: Tensor
    sensor_condition: Tensor  # (ROWS,)
    mixtures: list[Item]  # each sound together with another one
    mixed_in: Tensor  # (ROWS,) class of the other one
    drill: list[Item]  # of DRILLS sensor windows
    drill_captions: list[Item]
    drill_condition: Tensor  # (DRILLS,)


def clip_mels(clips: Sequence[Clip]) -> Tensor:
    """(N, MEL_BANDS, 5 s of columns) log-mel of every clip, zero-padded or cut to five seconds."""
    length = 5 * SAMPLE_RATE_HZ
    out = []
    for clip in clips:
        samples = np.zeros(length, np.float32)
        samples[: len(clip.samples)] = clip.samples[:length].astype(np.float32) / 32_768
        out.append(log_mel(torch.from_numpy(samples)[None])[0])
    return torch.stack(out)


def _heard(mel: Tensor, every: Tensor, rng: random.Random) -> Sound:
    """A clip's mel (MEL_BANDS, columns) as it might have been heard: varied, and another sound far behind."""
    if rng.random() < 0.5:
        other = every[rng.randrange(len(every))].roll(rng.randrange(every.shape[-1]), -1)
        mel = torch.log10(10**mel + 10 ** (other - rng.uniform(0.8, 2.5))).clamp_min(SILENCE)
    return _varied(mel, rng)


def _varied(mel: Tensor, rng: random.Random) -> Sound:
    """FRAMES frames of a clip's mel (MEL_BANDS, columns), varied."""
    frames = mel.reshape(MEL_BANDS, -1, FRAME_COLUMNS).transpose(0, 1)
    return Sound(vary_mels(frames, rng)[:FRAMES], tuple(rng.random() for _ in range(FRAMES)))


def _mixture(one: Tensor, other: Tensor, rng: random.Random) -> Sound:
    """Two clips' mels at once, about as loud as each other: between two classes a network learns what makes each
    (between-class learning, Tokozume et al. 2018)."""
    louder = rng.uniform(-0.4, 0.4)
    first, second = (10 ** (mel - mel.amax()) for mel in (one, other.roll(rng.randrange(other.shape[-1]), -1)))
    return _varied(torch.log10(first * 10**louder + second * 10**-louder) + rng.uniform(-1.0, 1.0), rng)


def draw(clips: Sequence[Clip], mels: Tensor, chosen: list[int], network: Network, rng: random.Random) -> Step:
    sensors, sensors_again, captions, conditions, sensor_conditions = [], [], [], [], []
    second = []
    for index in chosen:
        sound = clips[index].sound
        condition = rng.randrange(len(synthetic.CONDITION_NAMES)) if rng.random() < 0.75 else 0
        state = condition if condition < synthetic.SENSOR_CONDITIONS else rng.randrange(synthetic.SENSOR_CONDITIONS)
        now, later = _pumps(network, state, rng, 2)
        sensors.append(now)
        sensors_again.append(later)
        captions.append(synthetic.caption(sound, condition, rng))
        second.append(synthetic.caption(sound, condition, rng))
        conditions.append(condition)
        sensor_conditions.append(state)
    said = captions + second
    drilled = [rng.randrange(synthetic.SENSOR_CONDITIONS) for _ in range(DRILLS)]
    others = rng.sample(chosen, len(chosen))
    return Step(
        sounds=[_heard(mels[i], mels, rng) for i in chosen],
        sensors=sensors,
        sensors_again=sensors_again,
        captions=[_note(network, c.text, rng) for c in said],
        sound=torch.tensor([clips[i].sound for i in chosen]),
        condition=torch.tensor(conditions),
        said_sound=torch.tensor([c.sound for c in said]),
        said_condition=torch.tensor([c.condition for c in said]),
        sensor_condition=torch.tensor(sensor_conditions),
        mixtures=[_mixture(mels[i], mels[j], rng) for i, j in zip(chosen, others, strict=True)],
        mixed_in=torch.tensor([clips[j].sound for j in others]),
        drill=[_pumps(network, state, rng, 1)[0] for state in drilled],
        drill_captions=[_note(network, synthetic.condition_phrase(state, rng), rng) for state in drilled],
        drill_condition=torch.tensor(drilled),
    )


def _pumps(network: Network, state: int, rng: random.Random, count: int) -> list[Item]:
    return [network.encoder("sensor").read(window) for window in synthetic.sensor_windows(state, rng, count)]


def _note(network: Network, text: str, rng: random.Random) -> Item:
    at = rng.randrange(1_000)
    return network.encoder("caption").read(WindowInput(0, 1_000, captions=[(at, worn(text, rng))]))


def _both(one: Tensor, two: Tensor) -> Tensor:
    """Together where no label says no and one says yes: -1 beats +1 beats 0."""
    return torch.where((one < 0) | (two < 0), -1.0, torch.where((one > 0) | (two > 0), 1.0, 0.0))


def losses(network: Network, step: Step, rng: random.Random) -> dict[str, Tensor]:
    """Named parts of the loss of one step; scalars."""
    rows = len(step.sound)
    scale, bias = network.scale(), network.logit_bias
    sensors = network.encoder("sensor")(step.sensors, rows)
    sounds = network.encoder("audio")(step.sounds, rows)
    notes = network.encoder("caption")(step.captions, 2 * rows)
    heard = agreement(step.sound, step.said_sound)
    felt = agreement(step.sensor_condition, step.said_condition)
    alike = _both(agreement(step.said_sound, step.said_sound), agreement(step.said_condition, step.said_condition))
    # Two notes that speak of different things are no pair, and neither is a note with itself.
    alike = torch.where(
        ((step.said_sound < 0)[:, None] == (step.said_sound < 0)[None])
        & ((step.said_condition < 0)[:, None] == (step.said_condition < 0)[None]),
        alike,
        torch.where(alike < 0, -1.0, 0.0),
    ).fill_diagonal_(0.0)
    audio, caption, sensor = sounds.shared, notes.shared, sensors.shared
    out = {
        "audio-caption": siglip(audio, caption, heard, scale, bias),
        "sensor-caption": siglip(sensor, caption, felt, scale, bias),
        "caption-caption": siglip(caption, caption, alike, scale, bias),
        "audio-audio": siglip(audio, audio, agreement(step.sound, step.sound).fill_diagonal_(0.0), scale, bias),
    }
    again = network.encoder("sensor")(step.sensors_again, rows).shared
    out["sensor noise"] = (1 - (sensor * again).sum(-1)).mean()  # drift needs calm windows alike
    either = [agreement(sound, step.said_sound) for sound in (step.sound, step.mixed_in)]
    named = torch.where((either[0] > 0) | (either[1] > 0), 1.0, torch.minimum(*either))
    out["mixture-caption"] = siglip(network.encoder("audio")(step.mixtures, rows).shared, caption, named, scale, bias)
    drilled = agreement(step.drill_condition, step.drill_condition)
    drill_sensor = network.encoder("sensor")(step.drill, len(step.drill)).shared
    drill_caption = network.encoder("caption")(step.drill_captions, len(step.drill_captions)).shared
    out["drill"] = siglip(drill_sensor, drill_caption, drilled, scale, bias)
    every = torch.arange(rows)
    whole = network.gather(
        rows, {"sensor": (every, sensors), "audio": (every, sounds), "caption": (every, notes.rows(every))}
    )
    views = [_fused(network, whole, rng) for _ in range(2)]
    same = _both(agreement(step.sound, step.sound), agreement(step.condition, step.condition))
    own = torch.where(torch.eye(rows, dtype=torch.bool), 1.0, torch.where(same < 0, -1.0, 0.0))
    out["fused-fused"] = siglip(views[0], views[1], own, scale, bias)
    out["fused-caption"] = siglip(views[0], caption, _both(heard, felt), scale, bias)
    return out


def random_subsets(present: Tensor, rng: random.Random) -> Tensor:
    """(B, M) bool -> as much: each modality lost with chance 0.4, but never all that a row has."""
    keep = torch.tensor([[rng.random() > 0.4 for _ in row] for row in present.tolist()]).to(present.device) & present
    for row, (kept, there) in enumerate(zip(keep.any(-1).tolist(), present.tolist(), strict=True)):
        if not kept and any(there):
            keep[row, rng.choice([m for m, is_there in enumerate(there) if is_there])] = True
    return keep


def _fused(network: Network, whole: FusionInput, rng: random.Random) -> Tensor:
    """Joint vectors of a random subset of the modalities of each row, never none. (R, SHARED_DIM)"""
    fused, _ = network.fusion(network.fusion.subset(whole, random_subsets(whole.present, rng)))
    return fused  # type: ignore[no-any-return]


def train(clips: Sequence[Clip], config: ModelConfig, steps: int, seed: int) -> Network:
    """A trained network, averaged over the last steps, in eval mode. Deterministic for one seed on one machine type."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng = random.Random(seed)
    network = Network(config).train()
    optimizer = optimizer_of(network)
    mels = clip_mels(clips)
    average = copy.deepcopy(network)
    began = time.process_time()
    waiting: list[int] = []  # clips of this epoch that are still to be heard
    for step in range(steps):
        if len(waiting) < ROWS:
            waiting = rng.sample(range(len(clips)), len(clips))
        chosen, waiting = waiting[:ROWS], waiting[ROWS:]
        set_rate(optimizer, step, steps, PEAK_RATE)
        parts = losses(network, draw(clips, mels, chosen, network, rng), rng)
        optimizer.zero_grad()
        torch.stack(list(parts.values())).sum().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        follow(average, network, step)
        if step % 20 == 19 or step == steps - 1:
            line = "  ".join(f"{name} {value.item():.3f}" for name, value in parts.items())
            print(f"step {step + 1:4d} {time.process_time() - began:5.0f} CPU-s  {line}", file=sys.stderr, flush=True)
    return average.eval().requires_grad_(False)


def check(clips: Sequence[Clip], fold: int, config: ModelConfig, steps: int, seed: int) -> dict[str, float]:
    """What a network that never heard `fold` does with it."""
    network = train([c for c in clips if c.fold != fold], config, steps, seed)
    unheard = [c for c in clips if c.fold == fold]
    return {**check_sounds(network, unheard), **check_machines(network, unheard)}


def card(preset_name: str, runs: list[dict[str, float]], check_fold: int, arguments: str, seconds: float) -> str:
    table = (
        f"\nMeasured on fold {check_fold} by weights trained without it, with the same settings"
        f" ({len(runs)} seed{'s' if len(runs) > 1 else ''}):\n\n{_table(runs)}"
        if runs
        else ""
    )
    return f"""# Sensorium model, preset `{preset_name}`

One 256-d space for sensor readings, sound and captions: 192 shared dimensions, aligned by training, and 64 private ones
that sketch the modality's own features.

Trained on ESC-10 folds 1-4 (real sounds, CC BY, see ATTRIBUTION.txt), on captions and on simulated pumps written by
`models/synthetic.py`. Fold 5 was neither trained nor tuned on. The weights here took
{seconds:.0f} CPU-seconds on one core.

    python -m models.training {arguments}
{table}
Class by caption: nearest of ten sentences of a form that training never saw, with class words that it did; sound ->
text: nearest of forty such sentences. A fold is 80 clips: a few points either way are chance.

Limits: ten kinds of sound are known by name; other sounds get a vector that tells them apart but no good text match.
Sensor states are known by name only as the simulated pumps show them: absolute levels that differ from theirs are
embedded faithfully, yet described by chance. Captions are English as far as meaning goes. A word is known by itself and
by its 3-grams: "chain saw" and "sawing" find the chainsaw, a synonym that shares no letters with a caption of training
("hound" for the dog) does not. An encoder trained by others knows it. With the folder of a sentence-transformers model,

    python -m models.training.align_pretrained --clips DIR --captions DIR --out DIR \\
        --ask "a hound" --ask "storm surge at the coast"

makes a model that differs from this one in its captions only (a minute on one core, nothing is downloaded), and prints
the five nearest clips before and after. With all-MiniLM-L6-v2, all of the first five are of the right kind for each of
"thunderstorm", "a hound", "storm surge at the coast", "toddler weeping", "puppy", "logging in the forest", "aircraft
hovering", "cough and cold", "poultry at dawn" and "pocket watch"; the weights here find two of these ten.
"""


def _table(runs: list[dict[str, float]]) -> str:
    lines = ["| what | mean | of each seed |", "| --- | --- | --- |"]
    for name in runs[0]:
        values = [run[name] for run in runs]
        lines.append(f"| {name} | {np.mean(values):.3f} | {', '.join(f'{v:.3f}' for v in values)} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m models.training", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clips", type=Path, required=True, help="the ESC-10 folder with fold1..fold4")
    parser.add_argument("--out", type=Path, help="where the model folder is written")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--fusion", default="attention", choices=("attention", "concat", "mean"))
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--seeds", type=int, default=1, help="so many check runs: seed, seed + 1, ...")
    parser.add_argument(
        "--check-fold",
        type=int,
        default=4,
        choices=(0, 1, 2, 3, 4, 5),
        help="measured first by weights trained without it; 0: no measuring; 5: those who keep it back measure with it",
    )
    parser.add_argument("--check-only", action="store_true", help="measure, print, write nothing")
    args = parser.parse_args(argv)
    if args.out is None and not args.check_only:
        parser.error("say where the model folder goes with --out DIR, or measure only with --check-only")
    try:
        config = replace(preset(args.preset), fusion=args.fusion)
        clips = read_clips(args.clips)
        runs: list[dict[str, float]] = []
        if args.check_fold:
            heard = clips if args.check_fold in FOLDS else clips + read_clips(args.clips, [args.check_fold])
            for seed in range(args.seed, args.seed + args.seeds):
                runs.append(check(heard, args.check_fold, config, args.steps, seed))
                print(f"fold {args.check_fold}, seed {seed}: " + ", ".join(f"{n} {v:.3f}" for n, v in runs[-1].items()))
            print(_table(runs), end="")
        if args.check_only:
            return 0
        write(args, clips, config, runs)
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def write(args: argparse.Namespace, clips: Sequence[Clip], config: ModelConfig, runs: list[dict[str, float]]) -> None:
    from models.checkpoint import write_checkpoint

    began = time.process_time()
    network = train(clips, config, args.steps, args.seed)
    used = f"--clips DIR --out DIR --preset {args.preset} --fusion {args.fusion}"
    used += f" --steps {args.steps} --seed {args.seed} --seeds {args.seeds}"
    text = card(args.preset, runs, args.check_fold, used, time.process_time() - began)
    print(f"{args.out}: {write_checkpoint(args.out, network, text)}")


if __name__ == "__main__":
    sys.exit(main())
