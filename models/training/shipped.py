"""Rebuild the shipped weights: `python -m models.training --clips DIR --out models/weights/small`.

DIR holds the ESC-10 folders fold1..fold4/<class>/*.ogg. Fold 5 is never trained on: where it is there, measure with
--check-fold 5 --check-only. Captions and pumps come from `synthetic`. First a run without the check fold is measured
on it, then weights are trained on all four folds with the same settings. With --check-only and --seeds 3 it measures
only, three times, and prints mean and values.
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
from models.encoders.audio import AudioItem
from models.encoders.augment import drop_words, vary_mels
from models.encoders.base import Item
from models.encoders.log_mel import FRAME_COLUMNS, MEL_BANDS, SILENCE, log_mel
from models.errors import ModelError
from models.fusion import FusionInput
from models.interface import SAMPLE_RATE_HZ, WindowInput
from models.network import Network
from models.training import synthetic
from models.training.augment import random_subsets
from models.training.card import measurements_table, shipped_card
from models.training.esc10 import FOLDS, Esc10Clip, check_machines, check_sounds, read_clips
from models.training.losses import agreement, siglip
from models.training.optim import optimizer_of, set_rate, update_ema

FRAMES = 4  # of a clip, drawn for each step
ROWS = 64  # windows of a step
EXTRA_SENSORS = 64  # further sensor windows of a step, each with a caption on its state: states are hard to learn
PEAK_RATE = 1.5e-3


@dataclass(frozen=True, slots=True)
class Step:
    """One batch of synthetic windows: a real sound, a simulated pump, a caption, and a second caption on the same."""

    sounds: list[Item]
    sensors: list[Item]
    sensors_again: list[Item]  # the same pumps with other noise
    captions: list[Item]  # of 2 * ROWS windows of one caption each
    sound: Tensor  # (ROWS,) class
    condition: Tensor  # (ROWS,)
    caption_sound: Tensor  # (2 * ROWS,) class that the caption names, -1 for none
    caption_condition: Tensor  # (2 * ROWS,)
    sensor_condition: Tensor  # (ROWS,)
    mixtures: list[Item]  # each sound together with another one
    mixed_in: Tensor  # (ROWS,) class of the other one
    extra_sensors: list[Item]  # of EXTRA_SENSORS windows
    extra_captions: list[Item]  # one on each of them
    extra_condition: Tensor  # (EXTRA_SENSORS,)


def clip_mels(clips: Sequence[Esc10Clip]) -> Tensor:
    """(N, MEL_BANDS, 5 s of columns) log-mel of every clip, zero-padded or cut to five seconds."""
    length = 5 * SAMPLE_RATE_HZ
    out = []
    for clip in clips:
        samples = np.zeros(length, np.float32)
        samples[: len(clip.samples)] = clip.samples[:length].astype(np.float32) / 32_768
        out.append(log_mel(torch.from_numpy(samples)[None])[0])
    return torch.stack(out)


def _with_background(mel: Tensor, every: Tensor, rng: random.Random) -> AudioItem:
    """A clip's mel (MEL_BANDS, columns), varied, half the time with another, much softer sound in the background."""
    if rng.random() < 0.5:
        other = every[rng.randrange(len(every))].roll(rng.randrange(every.shape[-1]), -1)
        mel = torch.log10(10**mel + 10 ** (other - rng.uniform(0.8, 2.5))).clamp_min(SILENCE)
    return _varied(mel, rng)


def _varied(mel: Tensor, rng: random.Random) -> AudioItem:
    """FRAMES frames of a clip's mel (MEL_BANDS, columns), varied."""
    frames = mel.reshape(MEL_BANDS, -1, FRAME_COLUMNS).transpose(0, 1)
    return AudioItem(vary_mels(frames, rng)[:FRAMES], tuple(rng.random() for _ in range(FRAMES)))


def _mixture(one: Tensor, other: Tensor, rng: random.Random) -> AudioItem:
    """Two clips' mels (MEL_BANDS, columns) mixed at about the same loudness (between-class learning, Tokozume et al.
    2018)."""
    louder = rng.uniform(-0.4, 0.4)
    first, second = (10 ** (mel - mel.amax()) for mel in (one, other.roll(rng.randrange(other.shape[-1]), -1)))
    return _varied(torch.log10(first * 10**louder + second * 10**-louder) + rng.uniform(-1.0, 1.0), rng)


def draw(clips: Sequence[Esc10Clip], mels: Tensor, chosen: list[int], network: Network, rng: random.Random) -> Step:
    """A batch with the clips `chosen` (indices), everything else drawn by `rng`."""
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
    both = captions + second
    extra_states = [rng.randrange(synthetic.SENSOR_CONDITIONS) for _ in range(EXTRA_SENSORS)]
    others = rng.sample(chosen, len(chosen))
    return Step(
        sounds=[_with_background(mels[i], mels, rng) for i in chosen],
        sensors=sensors,
        sensors_again=sensors_again,
        captions=[_caption_item(network, c.text, rng) for c in both],
        sound=torch.tensor([clips[i].sound for i in chosen]),
        condition=torch.tensor(conditions),
        caption_sound=torch.tensor([c.sound for c in both]),
        caption_condition=torch.tensor([c.condition for c in both]),
        sensor_condition=torch.tensor(sensor_conditions),
        mixtures=[_mixture(mels[i], mels[j], rng) for i, j in zip(chosen, others, strict=True)],
        mixed_in=torch.tensor([clips[j].sound for j in others]),
        extra_sensors=[_pumps(network, state, rng, 1)[0] for state in extra_states],
        extra_captions=[_caption_item(network, synthetic.condition_phrase(state, rng), rng) for state in extra_states],
        extra_condition=torch.tensor(extra_states),
    )


def _pumps(network: Network, state: int, rng: random.Random, count: int) -> list[Item]:
    return [network.encoder("sensor").read(window) for window in synthetic.sensor_windows(state, rng, count)]


def _caption_item(network: Network, text: str, rng: random.Random) -> Item:
    at = rng.randrange(1_000)
    return network.encoder("caption").read(WindowInput(0, 1_000, captions=[(at, drop_words(text, rng))]))


def _both(one: Tensor, two: Tensor) -> Tensor:
    """Two sets of labels combined: a negative in either is a negative, else a positive in either is a positive."""
    return torch.where((one < 0) | (two < 0), -1.0, torch.where((one > 0) | (two > 0), 1.0, 0.0))


def losses(network: Network, step: Step, rng: random.Random) -> dict[str, Tensor]:
    """Named parts of the loss of one step; scalars."""
    rows = len(step.sound)
    scale, bias = network.scale(), network.logit_bias
    sensors = network.encoder("sensor")(step.sensors, rows)
    sounds = network.encoder("audio")(step.sounds, rows)
    captions = network.encoder("caption")(step.captions, 2 * rows)
    by_sound = agreement(step.sound, step.caption_sound)
    by_condition = agreement(step.sensor_condition, step.caption_condition)
    named, state = step.caption_sound, step.caption_condition  # (2 * ROWS,)
    alike = _both(agreement(named, named), agreement(state, state))
    # Captions on different subjects (the sound, the machine) are no positives of each other, nor is one of itself.
    alike = torch.where(
        ((named < 0)[:, None] == (named < 0)[None]) & ((state < 0)[:, None] == (state < 0)[None]),
        alike,
        torch.where(alike < 0, -1.0, 0.0),
    ).fill_diagonal_(0.0)
    audio, caption, sensor = sounds.shared, captions.shared, sensors.shared
    out = {
        "audio-caption": siglip(audio, caption, by_sound, scale, bias),
        "sensor-caption": siglip(sensor, caption, by_condition, scale, bias),
        "caption-caption": siglip(caption, caption, alike, scale, bias),
        "audio-audio": siglip(audio, audio, agreement(step.sound, step.sound).fill_diagonal_(0.0), scale, bias),
    }
    again = network.encoder("sensor")(step.sensors_again, rows).shared
    out["sensor noise"] = (1 - (sensor * again).sum(-1)).mean()  # drift detection needs calm windows close together
    either = [agreement(sound, step.caption_sound) for sound in (step.sound, step.mixed_in)]
    mixed = torch.where((either[0] > 0) | (either[1] > 0), 1.0, torch.minimum(*either))
    out["mixture-caption"] = siglip(network.encoder("audio")(step.mixtures, rows).shared, caption, mixed, scale, bias)
    extra_sensor = network.encoder("sensor")(step.extra_sensors, len(step.extra_sensors)).shared
    extra_caption = network.encoder("caption")(step.extra_captions, len(step.extra_captions)).shared
    extra_labels = agreement(step.extra_condition, step.extra_condition)
    out["extra sensors"] = siglip(extra_sensor, extra_caption, extra_labels, scale, bias)
    every = torch.arange(rows)
    whole = network.gather(
        rows, {"sensor": (every, sensors), "audio": (every, sounds), "caption": (every, captions.rows(every))}
    )
    views = [_fused(network, whole, rng) for _ in range(2)]
    same = _both(agreement(step.sound, step.sound), agreement(step.condition, step.condition))
    own = torch.where(torch.eye(rows, dtype=torch.bool), 1.0, torch.where(same < 0, -1.0, 0.0))
    out["fused-fused"] = siglip(views[0], views[1], own, scale, bias)
    out["fused-caption"] = siglip(views[0], caption, _both(by_sound, by_condition), scale, bias)
    return out


def _fused(network: Network, whole: FusionInput, rng: random.Random) -> Tensor:
    """Joint vectors (R, SHARED_DIM) of a random subset of the modalities of each row, never an empty one."""
    fused, _ = network.fusion(network.fusion.subset(whole, random_subsets(whole.present, rng)))
    return fused  # type: ignore[no-any-return]


def train(clips: Sequence[Esc10Clip], config: ModelConfig, steps: int, seed: int) -> Network:
    """A trained network, averaged over the last steps, in eval mode. Deterministic for one seed on one machine type."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng = random.Random(seed)
    network = Network(config).train()
    optimizer = optimizer_of(network)
    mels = clip_mels(clips)
    average = copy.deepcopy(network)
    began = time.process_time()
    waiting: list[int] = []  # clips of this epoch that are still to be drawn
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
        update_ema(average, network, step)
        if step % 20 == 19 or step == steps - 1:
            line = "  ".join(f"{name} {value.item():.3f}" for name, value in parts.items())
            print(f"step {step + 1:4d} {time.process_time() - began:5.0f} CPU-s  {line}", file=sys.stderr, flush=True)
    return average.eval().requires_grad_(False)


def check(clips: Sequence[Esc10Clip], fold: int, config: ModelConfig, steps: int, seed: int) -> dict[str, float]:
    """Measurements on `fold` of a network trained without it."""
    network = train([c for c in clips if c.fold != fold], config, steps, seed)
    held_out = [c for c in clips if c.fold == fold]
    return {**check_sounds(network, held_out), **check_machines(network, held_out)}


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status: 0, or 2 for data that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m models.training", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clips", type=Path, required=True, help="the ESC-10 folder with fold1..fold4")
    parser.add_argument("--out", type=Path, help="the model folder to write")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--fusion", default="attention", choices=("attention", "concat", "mean"))
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--seeds", type=int, default=1, help="number of check runs, with seed, seed + 1, ...")
    parser.add_argument(
        "--check-fold",
        type=int,
        default=4,
        choices=(0, 1, 2, 3, 4, 5),
        help="fold to measure on, with weights trained without it; 0: none; 5: the fold that is never trained on",
    )
    parser.add_argument("--check-only", action="store_true", help="measure, print, write nothing")
    args = parser.parse_args(argv)
    if args.out is None and not args.check_only:
        parser.error("give the model folder to write with --out DIR, or measure only with --check-only")
    try:
        config = replace(preset(args.preset), fusion=args.fusion)
        clips = read_clips(args.clips)
        runs: list[dict[str, float]] = []
        if args.check_fold:
            measured = clips if args.check_fold in FOLDS else clips + read_clips(args.clips, [args.check_fold])
            for seed in range(args.seed, args.seed + args.seeds):
                runs.append(check(measured, args.check_fold, config, args.steps, seed))
                print(f"fold {args.check_fold}, seed {seed}: " + ", ".join(f"{n} {v:.3f}" for n, v in runs[-1].items()))
            print(measurements_table(runs), end="")
        if args.check_only:
            return 0
        write(args, clips, config, runs)
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def write(
    args: argparse.Namespace, clips: Sequence[Esc10Clip], config: ModelConfig, runs: list[dict[str, float]]
) -> None:
    """Train on all clips and write the model folder."""
    from models.checkpoint import write_checkpoint

    began = time.process_time()
    network = train(clips, config, args.steps, args.seed)
    arguments = f"--clips DIR --out DIR --preset {args.preset} --fusion {args.fusion}"
    arguments += f" --steps {args.steps} --seed {args.seed} --seeds {args.seeds}"
    text = shipped_card(args.preset, runs, args.check_fold, arguments, time.process_time() - began)
    print(f"{args.out}: {write_checkpoint(args.out, network, text)}")


if __name__ == "__main__":
    sys.exit(main())
