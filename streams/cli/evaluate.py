"""`sensorium eval`: measure a model on a recording or on real sounds, and compare the three fusions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from streams.cli.common import (
    CommandError,
    JsonOption,
    console,
    errors,
    examples,
    print_json,
    print_table,
    run_async,
    say,
    settings_of,
)
from streams.settings import Settings

_RATE_FROM_SCRATCH = 2e-3  # random weights train at a higher rate
SeedsOption = Annotated[
    int, typer.Option(min=1, metavar="N", help="Repetitions of what is random, each with its seed.")
]


def register(app: typer.Typer) -> None:
    app.command(
        "eval",
        short_help="Measure a model on a recording, or on real sounds.",
        epilog=examples(
            "sensorium eval --recording plant",
            "sensorium eval --recording plant --model models/mine --json",
            "sensorium eval --recording plant --compare-fusions              # fusions only, over the model's encoders",
            "sensorium eval --recording plant --compare-fusions --epochs 8   # encoders too, much longer",
            "sensorium eval --clips esc10 --fold 4",
        ),
    )(evaluate)


def evaluate(
    recording: Annotated[
        Path | None, typer.Option("--recording", metavar="DIR", help="A recording; see: sensorium simulate --out DIR")
    ] = None,
    clips: Annotated[
        Path | None, typer.Option("--clips", metavar="DIR", help="An ESC-10 folder: fold1..fold5/<class>/*.ogg.")
    ] = None,
    fold: Annotated[list[int] | None, typer.Option(help="With --clips: folds to measure on; default: 4.")] = None,
    model: Annotated[
        Path | None, typer.Option("--model", metavar="DIR", help="A model folder; default: the one of the settings.")
    ] = None,
    compare_fusions: Annotated[
        bool,
        typer.Option(
            "--compare-fusions",
            help="Train attention, concat and mean alike on the earlier part and measure them on the later part.",
        ),
    ] = False,
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="With --compare-fusions: steps of each.")] = 800,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="With --compare-fusions: train the encoders too, for N epochs."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="With --epochs: start from scratch with a preset, not from the model."),
    ] = None,
    share: Annotated[
        float, typer.Option(min=0.1, max=0.9, help="With --compare-fusions: share of the time trained on.")
    ] = 0.6,
    seeds: SeedsOption = 3,
    as_json: JsonOption = False,
) -> None:
    """Measure a model on windows: retrieval, missing modalities, balance of modalities, few shots, CPU time."""
    if (recording is None) == (clips is None):
        raise CommandError("choose what to measure on: --recording DIR, or --clips DIR")
    settings = settings_of(model=model)
    if clips is not None:
        measured = _clips(settings, clips, fold or [4])
        if as_json:
            print_json(measured)
        else:
            say(f"{measured['model']} on {measured['clips']} clips of fold {', '.join(map(str, measured['folds']))}")
            print_table(["what", "value"], [[name, f"{value:.3f}"] for name, value in measured["measured"].items()])
            say(measured["note"])
        return
    assert recording is not None
    if compare_fusions:
        if preset is not None and epochs is None:
            raise CommandError("a preset is untrained: train its encoders as well, with --epochs 10")
        compared = _compare(settings, recording, steps, epochs, preset, share, seeds)
        print_json(compared) if as_json else _print_comparison(compared)
        return
    measured = _recording(settings, recording, seeds)
    print_json(measured) if as_json else _print_evaluation(measured)


def _clips(settings: Settings, folder: Path, folds: list[int]) -> dict[str, Any]:
    import models
    from models.checkpoint import read_checkpoint
    from models.training.esc10 import check_sounds, read_clips

    network, version = read_checkpoint(settings.model or models.SHIPPED)
    clips = read_clips(folder, folds)
    note = (
        "class by caption: nearest of ten sentences of a form that training never had; a fold is 80 clips. The weights "
        "that ship were trained on folds 1-4: only fold 5 is held out."
    )
    measured = check_sounds(network, clips)
    return {"model": version, "clips": len(clips), "folds": folds, "measured": measured, "note": note}


def _corpus(settings: Settings, folder: Path) -> Any:
    from models.evaluation.corpus import Corpus, Sign, fault_signs
    from streams.sources.dataset import LabelledWindow, labelled_windows

    with errors.status("reading the recording"):
        windows = run_async(labelled_windows(folder, settings))
    names_sounds = any(one.sound for one in windows)

    def signs(one: LabelledWindow) -> list[Sign]:
        if names_sounds and not one.sound:
            return []  # no clip: its sound is unknown
        first = Sign(one.sound, frozenset(("audio", "caption"))) if names_sounds else Sign(one.stream)
        return [first, *(sign for kind, shows in one.faults for sign in fault_signs(kind, shows))]

    return Corpus([one.window for one in windows], [one.stream for one in windows], [signs(one) for one in windows])


def _recording(settings: Settings, folder: Path, seeds: int) -> dict[str, Any]:
    import models
    from models.checkpoint import read_checkpoint
    from models.embedder import Embedder
    from models.evaluation.report import evaluate as evaluation
    from models.evaluation.timing import stage_times

    network, version = read_checkpoint(settings.model or models.SHIPPED)
    corpus = _corpus(settings, folder)
    with errors.status("measuring"):
        measured = evaluation(Embedder(network, version), corpus, seeds)
        measured["CPU ms of a window"] = stage_times(network, corpus.windows)
    return measured


def _compare(
    settings: Settings, folder: Path, steps: int, epochs: int | None, preset: str | None, share: float, seeds: int
) -> dict[str, Any]:
    import models
    from models.checkpoint import read_checkpoint
    from models.config import preset as preset_named
    from models.training.compare_fusions import Trial, compare_fusions
    from models.training.fusion_only import FusionOptions
    from models.training.own_stream import FitOptions

    init = None if preset is not None else settings.model or models.SHIPPED
    config = preset_named(preset) if preset is not None else read_checkpoint(init or models.SHIPPED)[0].config
    whole = None
    if epochs is not None:
        whole = FitOptions(epochs=epochs, patience=epochs, device="cpu")
        whole = whole if init is not None else replace(whole, rate=_RATE_FROM_SCRATCH)
    trial = Trial(config, init, FusionOptions(steps=steps), whole, seeds, share)
    return compare_fusions(_corpus(settings, folder), trial, lambda text: errors.print(text, markup=False))


def _print_evaluation(measured: Mapping[str, Any]) -> None:
    from models.evaluation.report import K

    say(f"{measured['model']}: {measured['windows']} windows, {measured['complete']} with all three modalities\n")
    rows = [
        [
            pair,
            *(f"{one[f'recall at {k}']:.3f}" for k in (1, 5, 10)),
            _between(one["recall at 1, low"], one["recall at 1, high"]),
            f"{one['median rank']:.0f}",
            f"{one['of']:.0f}",
        ]
        for pair, one in measured["retrieval"].items()
    ]
    print_table(["retrieval", "R@1", "R@5", "R@10", "R@1, 95 %", "median rank", "of"], rows)
    rows = []
    for name, one in {**measured["masks"], **_alone(measured["single modalities"])}.items():
        cosine = one.get("cosine to full")
        cells = [_precision(one.get(index)) for index in ("same mask", "whole windows")]
        rows.append([name, *cells, "-" if cosine is None else f"{cosine['mean']:.3f} ({cosine['p5']:.3f})"])
    _space()
    print_table([f"precision at {K}", "same mask", "whole windows", "cosine to full, mean (p5)"], rows)
    balance = measured["balance"]
    rows = [[pair, f"{balance['alignment'][pair]:.3f}", f"{gap:.3f}"] for pair, gap in balance["modality gap"].items()]
    _space()
    print_table(["pair", "alignment", "modality gap"], rows)
    rows = [[name, f"{value:.3f}"] for name, value in balance["uniformity"].items()]
    _space()
    print_table(["vectors", "uniformity"], rows)
    shares = balance["share of a mixed index"]
    names = sorted(next(iter(shares.values())))
    _space()
    print_table(
        ["share of a mixed index", *names],
        [[query, *(f"{share[name]:.3f}" for name in names)] for query, share in shares.items()],
    )
    shots = measured["few shots"]
    accuracy = ", ".join(f"{value:.3f}" for value in shots["accuracy"])
    _space()
    say(f"{shots['shots']} shots of {shots['classes']} states, accuracy on the joint vector: {accuracy}\n")
    rows = [[stage, f"{t['p50']:.2f}", f"{t['p95']:.2f}"] for stage, t in measured["CPU ms of a window"].items()]
    print_table(["CPU ms of a window", "p50", "p95"], rows)
    _rules(measured["rules"])


def _alone(single: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name} alone": one for name, one in single.items()}


def _print_comparison(compared: Mapping[str, Any]) -> None:
    trained, measured = compared["trained on"], compared["measured on"]
    say(f"trained on {trained} windows, measured on {measured}, {compared['seeds']} seeds")
    for index in ("same mask", "whole windows"):
        rows = []
        for mask, one in compared[index].items():
            for name, row in one["methods"].items():
                lead = one["lead of attention over"].get(name)
                shown = "" if lead is None else f"{lead['precision']:+.3f} {_between(lead['low'], lead['high'])}"
                each = " ".join(f"{value:.3f}" for value in row["of each seed"])
                rows.append([mask, name, _precision(row), each, shown])
        _space()
        print_table([f"index: {index}", "method", "precision, 95 %", "of each seed", "lead of attention"], rows)
        won = [mask for mask, one in compared[index].items() if one["wins"]]
        surely = [mask for mask, one in compared[index].items() if one["surely"]]
        say(f"attention leads on {', '.join(won) or 'no mask'}; beyond its intervals on {', '.join(surely) or 'none'}")
    _rules(compared["rules"])


def _precision(row: Mapping[str, float] | None) -> str:
    return "-" if row is None else f"{row['precision']:.3f} {_between(row['low'], row['high'])}"


def _between(low: float, high: float) -> str:
    return f"[{low:.3f}, {high:.3f}]"


def _rules(rules: list[str]) -> None:
    _space()
    for rule in rules:
        say(f"- {rule}")


def _space() -> None:
    console.print()
