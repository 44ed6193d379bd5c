"""`sensorium train`: a model of one's own, from what a stream itself shows together."""

from __future__ import annotations

import shutil
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

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
    from models.training.own_stream import Fitted
    from streams.settings import Settings
    from streams.sources.dataset import Chosen, Lessons

_STATE = "training"  # folder inside the model folder, while it is being trained


class Loss(StrEnum):
    siglip = "siglip"
    infonce = "infonce"
    triplet = "triplet"


class Fusion(StrEnum):
    attention = "attention"
    concat = "concat"
    mean = "mean"


class Balance(StrEnum):
    none = "none"
    centre = "centre"
    whiten = "whiten"


class Device(StrEnum):
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
    topics: Annotated[bool, typer.Option("--topics", help="... or on what the input topics hold now.")] = False,
    since: FromOption = None,
    until: Annotated[str | None, typer.Option("--to", help="Only moments before then.")] = None,
    stream: StreamOption = None,
    windows: Annotated[int, typer.Option(min=40, help="At most the newest so many windows.")] = 5_000,
    init: Annotated[str, typer.Option(help="Begin with: shipped, scratch, or a model folder.")] = "shipped",
    preset: Annotated[str, typer.Option(help="Size of a model from scratch.")] = "small",
    fusion: Annotated[Fusion | None, typer.Option(help="Default: as it begins.", show_default=False)] = None,
    loss: Annotated[Loss, typer.Option(help="Contrastive loss.")] = Loss.siglip,
    balance: Annotated[Balance, typer.Option(help="Centre or whiten each modality's vectors.")] = Balance.none,
    caption_model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A sentence-transformers folder for captions.")
    ] = None,
    clap: Annotated[Path | None, typer.Option(metavar="DIR", help="A CLAP folder for sound and captions.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="At most; stops earlier when nothing improves.")] = 30,
    rate: Annotated[float | None, typer.Option(help="Peak learning rate; default: 3e-4, from scratch 1e-3.")] = None,
    rows: Annotated[int, typer.Option(min=4, help="Windows of a step.")] = 64,
    guard: Annotated[
        float | None, typer.Option(help="Seconds within which windows are neighbours; default: three windows' length.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same weights on the CPU.")] = 0,
    device: Annotated[Device, typer.Option(help="auto: a GPU if there is one.")] = Device.auto,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a training into --out that was cut short.")] = (
        False
    ),
    state: StateOption = None,
    kafka: KafkaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a model on a stream's own windows, without labels: what happens together belongs together.

    The result is a folder; use it with SENSORIUM_MODEL=DIR, or bring it in beside the one that serves with:
    sensorium model add DIR.
    """
    from models.training.own_stream import FitOptions, fit, start
    from streams.sources.dataset import Chosen

    if (recording is None) == (not topics):
        raise CommandError("say what to train on: --recording DIR, or --topics for what Kafka holds now")
    if (out / "model.safetensors").exists():
        raise CommandError(f"{out} holds a model already; remove it or choose another folder")
    if out.exists() and any(out.iterdir()) and not resume:
        hint = "go on with it with --resume, or remove it" if (out / _STATE).exists() else "choose another folder"
        raise CommandError(f"{out} is not empty; {hint}")
    settings = settings_of(state, kafka)
    config, folder = _beginning(init, preset)
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
    chosen = Chosen(parse_time(since), parse_time(until), stream, windows)
    lessons = _lessons(settings, recording, chosen)
    try:
        with _Bar() as told:
            fitted = fit(lessons.windows, network, options, told, keep=out / _STATE, resume=resume)
    except KeyboardInterrupt:
        if (out / _STATE).exists():
            errors.print("cut short; go on with the same command and --resume")
        raise
    _finish(out, fitted, lessons, _source(recording, chosen), f"--init {init} --seed {seed}", as_json)


def _beginning(init: str, preset: str) -> tuple[ModelConfig, Path | None]:
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


def _lessons(settings: Settings, recording: Path | None, chosen: Chosen) -> Lessons:
    from streams.sources.dataset import lessons_of_recording, lessons_of_topics

    async def read() -> Lessons:
        from streams.kafka.clients import find_bootstrap

        if recording is not None:
            return await lessons_of_recording(recording, settings, chosen)
        return await lessons_of_topics(settings, find_bootstrap(settings), chosen)

    lessons = run_async(read())
    said = ", ".join(f"{count} {reason}" for reason, count in sorted(lessons.refused.items()))
    errors.print(f"{len(lessons.windows)} windows of {lessons.events} events" + (f"; refused: {said}" if said else ""))
    return lessons


class _Bar:
    """A progress bar with loss and retrieval; on what is no terminal, a line an epoch."""

    def __enter__(self) -> _Bar:
        self._stage = ""
        self._bar = Progress(
            TextColumn("{task.fields[stage]}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]}  retrieval {task.fields[retrieval]}"),
            TimeElapsedColumn(),
            console=errors,
        )
        self._task = self._bar.add_task("", total=None, stage="", loss="-", retrieval="-")
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, at: Any) -> None:
        found = "-" if at.retrieval is None else f"{at.retrieval:.3f}"
        if at.stage == "epoch":
            stage = f"epoch {at.epoch + 1}/{at.epochs}"
            total, done = at.epochs * at.steps, at.epoch * at.steps + at.step
        else:
            stage, total, done = at.stage, at.steps, at.step
        self._bar.update(self._task, total=total, completed=done, stage=stage, loss=f"{at.loss:.3f}", retrieval=found)
        if stage != self._stage and not errors.is_terminal:
            self._stage = stage
            errors.print(f"{stage}  loss {at.loss:.3f}  retrieval {found}")


def _source(recording: Path | None, chosen: Chosen) -> str:
    from streams.events.envelope import format_ms

    what = f"the recording {recording.name}" if recording is not None else "the input topics"
    if chosen.from_ms is not None:
        what += f" from {format_ms(chosen.from_ms)}"
    if chosen.to_ms is not None:
        what += f" to {format_ms(chosen.to_ms)}"
    return what + (f", stream {chosen.stream}" if chosen.stream else "")


def _finish(out: Path, fitted: Fitted, lessons: Lessons, source: str, used: str, as_json: bool) -> None:
    from models.checkpoint import write_checkpoint
    from models.training.own_stream import card_of

    version = write_checkpoint(out, fitted.network, card_of(fitted, source, used))
    shutil.rmtree(out / _STATE, ignore_errors=True)
    if as_json:
        print_json(
            {
                "version": version,
                "folder": str(out),
                "windows": len(lessons.windows),
                "training": fitted.training,
                "validation": fitted.validation,
                "epochs": fitted.epochs,
                "best_epoch": fitted.best_epoch,
                "retrieval_before": fitted.before,
                "retrieval": fitted.retrieval,
                "directions": fitted.directions,
                "found_before": fitted.found_before,
                "found": fitted.found,
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
        f"fusion by time: a window cut down finds the next one of its stream {fitted.found_before:.3f} -> "
        f"{fitted.found:.3f}",
        soft_wrap=True,
    )
    if fitted.best_epoch == 0:
        said = "no epoch made the encoders better, so they are what they were"
        if fitted.found == fitted.found_before:
            said += ", and so is the fusion"
        console.print(f"{said}; give it more windows", soft_wrap=True)
    share = fitted.dominant()
    if share is not None:
        console.print(f"{share} alone moves the joint vector: more than 80 % of all contributions")
    console.print(f"use it with: SENSORIUM_MODEL={out} sensorium worker")
