"""`sensorium train`: train a model on a stream's own windows, without labels."""

from __future__ import annotations

import shutil
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import progress

from streams.cli.common import (
    CommandError,
    FromOption,
    JsonOption,
    KafkaOption,
    StateOption,
    StreamOption,
    console,
    errors,
    examples,
    parse_time,
    print_json,
    run_async,
    settings_of,
)

if TYPE_CHECKING:
    from models.config import ModelConfig
    from models.training.own_stream import Fitted, Progress
    from streams.settings import Settings
    from streams.sources.dataset import TrainingWindows, WindowSelection

_STATE = "training"  # folder inside the model folder, for the state of an unfinished training


class LossChoice(StrEnum):
    siglip = "siglip"
    infonce = "infonce"
    triplet = "triplet"


class FusionChoice(StrEnum):
    attention = "attention"
    concat = "concat"
    mean = "mean"


class BalanceChoice(StrEnum):
    none = "none"
    centre = "centre"
    whiten = "whiten"


class DeviceChoice(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


def register(app: typer.Typer) -> None:
    app.command(
        short_help="Train a model on a stream's own windows.",
        epilog=examples(
            "sensorium train --recording plant --out my-model",
            "sensorium train --topics --from 2026-01-01T00:00:00Z --out my-model",
            "sensorium train --recording plant --out my-model --resume",
        ),
    )(train)


def train(
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    recording: Annotated[Path | None, typer.Option(metavar="DIR", help="Train on a recording ...")] = None,
    topics: Annotated[bool, typer.Option("--topics", help="... or on all records of the input topics.")] = False,
    since: FromOption = None,
    until: Annotated[str | None, typer.Option("--to", help="Only events before this time.")] = None,
    stream: StreamOption = None,
    windows: Annotated[int, typer.Option(min=40, help="Maximum; the newest windows are kept.")] = 5_000,
    init: Annotated[str, typer.Option(help="First weights: shipped, scratch, or a model folder.")] = "shipped",
    preset: Annotated[str, typer.Option(help="Preset of a model from scratch.")] = "small",
    fusion: Annotated[
        FusionChoice | None, typer.Option(help="Default: that of the first weights.", show_default=False)
    ] = None,
    loss: Annotated[LossChoice, typer.Option(help="Contrastive loss.")] = LossChoice.siglip,
    balance: Annotated[
        BalanceChoice, typer.Option(help="Centre or whiten each modality's vectors.")
    ] = BalanceChoice.none,
    caption_model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A sentence-transformers folder for captions.")
    ] = None,
    clap: Annotated[Path | None, typer.Option(metavar="DIR", help="A CLAP folder for sound and captions.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Maximum; stops earlier when validation gets no better.")] = 30,
    rate: Annotated[float | None, typer.Option(help="Peak learning rate; default: 3e-4, from scratch 1e-3.")] = None,
    rows: Annotated[int, typer.Option(min=4, help="Windows of a batch.")] = 64,
    guard: Annotated[
        float | None, typer.Option(help="Seconds within which windows are neighbours; default: three windows' length.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same weights on the CPU.")] = 0,
    device: Annotated[DeviceChoice, typer.Option(help="auto: a GPU if there is one.")] = DeviceChoice.auto,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted training into --out.")] = False,
    state: StateOption = None,
    kafka: KafkaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a model on a stream's own windows, without labels: modalities of one window are positives of each other.

    The result is a folder; use it with SENSORIUM_MODEL=DIR, or add it beside the one that serves with:
    sensorium model add DIR.
    """
    from models.training.own_stream import FitOptions, fit, start
    from streams.sources.dataset import WindowSelection

    if (recording is None) == (not topics):
        raise CommandError("choose what to train on: --recording DIR, or --topics for the records in Kafka")
    if (out / "model.safetensors").exists():
        raise CommandError(f"{out} already contains a model; remove it or choose another folder")
    if out.exists() and any(out.iterdir()) and not resume:
        hint = (
            "continue its training with --resume, or remove it" if (out / _STATE).exists() else "choose another folder"
        )
        raise CommandError(f"{out} is not empty; {hint}")
    settings = settings_of(state, kafka)
    config, folder = _first_weights(init, preset)
    if fusion is not None:
        config = replace(config, fusion=fusion.value)
    config = _with_pretrained(config, caption_model, clap)
    options = FitOptions(
        epochs=epochs,
        rows=rows,
        seed=seed,
        loss=loss.value,
        balance=balance.value,
        device=device.value,
        rate=(1e-3 if folder is None else 3e-4) if rate is None else rate,
        guard_ms=None if guard is None else int(guard * 1_000),
    )
    network = start(config, folder, seed)
    selection = WindowSelection(parse_time(since), parse_time(until), stream, windows)
    found = _windows(settings, recording, selection)
    try:
        with _ProgressBar() as bar:
            fitted = fit(found.windows, network, options, bar, keep=out / _STATE, resume=resume)
    except KeyboardInterrupt:
        if (out / _STATE).exists():
            errors.print("interrupted; continue with the same command and --resume")
        raise
    _finish(out, fitted, found, _source(recording, selection), f"--init {init} --seed {seed}", as_json)


def _first_weights(init: str, preset: str) -> tuple[ModelConfig, Path | None]:
    import models
    from models.checkpoint import read_checkpoint
    from models.config import preset as preset_of

    if init == "scratch":
        return preset_of(preset), None
    folder = models.SHIPPED if init == "shipped" else Path(init)
    return read_checkpoint(folder)[0].config, folder


def _with_pretrained(config: ModelConfig, captions: Path | None, clap: Path | None) -> ModelConfig:
    encoders: dict[str, Any] = dict(config.encoders)
    if clap is not None:
        encoders["audio"] = encoders["caption"] = {"name": "clap", "path": str(clap.resolve())}
    if captions is not None:
        encoders["caption"] = {"name": "sentence-transformers", "path": str(captions.resolve())}
    return replace(config, encoders=encoders)


def _windows(settings: Settings, recording: Path | None, selection: WindowSelection) -> TrainingWindows:
    from streams.sources.dataset import windows_of_recording, windows_of_topics

    async def read() -> TrainingWindows:
        from streams.kafka.clients import find_bootstrap

        if recording is not None:
            return await windows_of_recording(recording, settings, selection)
        return await windows_of_topics(settings, find_bootstrap(settings), selection)

    found = run_async(read())
    refused = ", ".join(f"{count} {reason}" for reason, count in sorted(found.refused.items()))
    errors.print(
        f"{len(found.windows)} windows of {found.events} events" + (f"; refused: {refused}" if refused else "")
    )
    return found


class _ProgressBar:
    """A progress bar with loss and retrieval; without a terminal, one line for each epoch."""

    def __enter__(self) -> _ProgressBar:
        self._stage = ""
        self._bar = progress.Progress(
            progress.TextColumn("{task.fields[stage]}"),
            progress.BarColumn(),
            progress.TextColumn("loss {task.fields[loss]}  retrieval {task.fields[retrieval]}"),
            progress.TimeElapsedColumn(),
            console=errors,
        )
        self._task = self._bar.add_task("", total=None, stage="", loss="-", retrieval="-")
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, at: Progress) -> None:
        retrieval = "-" if at.retrieval is None else f"{at.retrieval:.3f}"
        if at.stage == "epoch":
            stage = f"epoch {at.epoch + 1}/{at.epochs}"
            total, done = at.epochs * at.steps, at.epoch * at.steps + at.step
        else:
            stage, total, done = at.stage, at.steps, at.step
        loss = f"{at.loss:.3f}"
        self._bar.update(self._task, total=total, completed=done, stage=stage, loss=loss, retrieval=retrieval)
        if stage != self._stage and not errors.is_terminal:
            self._stage = stage
            errors.print(f"{stage}  loss {loss}  retrieval {retrieval}")


def _source(recording: Path | None, selection: WindowSelection) -> str:
    """What the model was trained on, for its card."""
    from streams.events.envelope import format_ms

    what = f"the recording {recording.name}" if recording is not None else "the input topics"
    if selection.from_ms is not None:
        what += f" from {format_ms(selection.from_ms)}"
    if selection.to_ms is not None:
        what += f" to {format_ms(selection.to_ms)}"
    return what + (f", stream {selection.stream}" if selection.stream else "")


def _finish(out: Path, fitted: Fitted, found: TrainingWindows, source: str, arguments: str, as_json: bool) -> None:
    """Write the model folder, remove the state of its training, and print the result."""
    from models.checkpoint import write_checkpoint
    from models.training.card import stream_card

    version = write_checkpoint(out, fitted.network, stream_card(fitted, source, arguments))
    shutil.rmtree(out / _STATE, ignore_errors=True)
    if as_json:
        print_json(
            {
                "version": version,
                "folder": str(out),
                "windows": len(found.windows),
                "training": fitted.training,
                "validation": fitted.validation,
                "epochs": fitted.epochs,
                "best_epoch": fitted.best_epoch,
                "retrieval_before": fitted.before,
                "retrieval": fitted.retrieval,
                "directions": fitted.directions,
                "next_window_before": fitted.next_window_before,
                "next_window": fitted.next_window,
                "contributions": fitted.contributions,
                "cpu_seconds": fitted.cpu_seconds,
            }
        )
        return
    console.print(
        f"{version}: retrieval on {fitted.validation} later windows {fitted.before:.3f} -> {fitted.retrieval:.3f} "
        f"(epoch {fitted.best_epoch} of {fitted.epochs}), {fitted.cpu_seconds:.0f} CPU-s",
        soft_wrap=True,
    )
    console.print(
        f"fusion by time: retrieval of the next window by a part of one {fitted.next_window_before:.3f} -> "
        f"{fitted.next_window:.3f}",
        soft_wrap=True,
    )
    if fitted.best_epoch == 0:
        unchanged = "the encoders" if fitted.next_window > fitted.next_window_before else "encoders and fusion"
        console.print(
            f"no epoch improved the validation: {unchanged} are unchanged; train on more windows", soft_wrap=True
        )
    dominant = fitted.dominant()
    if dominant is not None:
        console.print(f"{dominant} alone makes up more than 80 % of all contributions to the joint vector")
    console.print(f"use it with: SENSORIUM_MODEL={out} sensorium worker")
