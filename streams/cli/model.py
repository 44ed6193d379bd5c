"""`sensorium model`: list, show, add, promote, roll back and remove model versions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from streams.cli.common import (
    CommandError,
    JsonOption,
    KafkaOption,
    StateOption,
    StoreOption,
    console,
    errors,
    examples,
    print_json,
    print_table,
    run_async,
    settings_of,
)
from streams.settings import Settings

VersionArgument = Annotated[str, typer.Argument(metavar="VERSION", help="As `sensorium model list` shows it.")]


def register(app: typer.Typer) -> None:
    model = typer.Typer(help="Model versions: which one serves, and how to change it.", no_args_is_help=True)
    model.command("list", short_help="List versions and which serves.", epilog=examples("sensorium model list"))(list_)
    model.command(short_help="Show a version's card.", epilog=examples("sensorium model show"))(show)
    model.command(short_help="Add a copy of a model folder.", epilog=examples("sensorium model add models/mine"))(add)
    model.command(
        short_help="Switch serving to another model.",
        epilog=examples(
            "sensorium model promote models/mine --no-switch   # backfill its collection and compare",
            "sensorium model promote models/mine               # and switch serving to it",
        ),
    )(promote)
    model.command(short_help="Switch back to the previous one.", epilog=examples("sensorium model rollback"))(rollback)
    model.command(short_help="Delete a version.", epilog=examples("sensorium model remove small-0a1b2c3d4e"))(remove)
    app.add_typer(model, name="model")


def list_(state: StateOption = None, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List versions: the one that serves, the previous one, their model folders and collections, their windows."""
    settings = settings_of(state, None, store)

    async def ask() -> list[dict[str, Any]]:
        from functools import partial

        from streams.serving.client import open_queries, worker_url
        from streams.serving.pages import MAX_ROWS, every
        from streams.serving.versions import describe

        rows = await describe(settings)
        for row in rows:  # the embedded store can be open in one process only: the worker is queried instead
            if row["role"] == "serving" and row["windows"] is None and worker_url(settings.state) is not None:
                async with open_queries(settings) as queries:
                    row["windows"] = sum(
                        [stream["windows"] async for stream in every(partial(queries.streams, MAX_ROWS))]
                    )
        return rows

    rows = run_async(ask())
    if as_json:
        print_json(rows)
        return
    names = ["version", "role", "windows", "model folder", "collection"]
    cells = [
        [
            row["version"],
            row["role"] or "-",
            "-" if row["windows"] is None else str(row["windows"]),
            row["folder"] or "-",
            row["collection"] or "-",
        ]
        for row in rows
    ]
    print_table(names, cells, folded=3)


def show(
    version: Annotated[str | None, typer.Argument(help="A version; default: the one that serves.")] = None,
    state: StateOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one version: its card and its configuration."""
    import json

    settings = settings_of(state, None, store)
    folder, name = run_async(_folder(settings, version))
    texts = {file: (folder / file).read_text() for file in ("config.json", "card.md") if (folder / file).is_file()}
    config = json.loads(texts.get("config.json", "{}"))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if as_json:
        print_json(
            {"version": name, "folder": str(folder), "bytes": size, "config": config, "card": texts.get("card.md")}
        )
        return
    console.print(f"version  {name}\nfolder   {folder}\nsize     {size / 1e6:.1f} MB\n", soft_wrap=True)
    console.print(texts.get("card.md", "no card"), markup=False)


async def _folder(settings: Settings, version: str | None) -> tuple[Path, str]:
    from streams.serving.versions import Registry
    from streams.store import open_collections

    if version is None:
        async with open_collections(settings) as collections:
            version = (await collections.read()).serving
        if version is None:
            raise CommandError("nothing serves yet: the first worker that starts sets the version; see: sensorium up")
    folder = Registry(settings.state).path(version)
    if folder is None:
        raise CommandError(f"no model folder of version {version} on this machine; see: sensorium model list")
    return folder, version


def add(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A model folder.")],
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a model folder and add a copy of it; every machine that runs a worker needs one."""
    settings = settings_of(state)
    from streams.serving.versions import Registry

    registry = Registry(settings.state)
    version = registry.add(folder).version
    if as_json:
        print_json({"version": version, "folder": str(registry.path(version))})
    else:
        console.print(f"{version} is in {registry.path(version)}", soft_wrap=True)


def promote(
    what: Annotated[str, typer.Argument(metavar="DIR|VERSION", help="A model folder, or a version that was added.")],
    no_switch: Annotated[
        bool, typer.Option("--no-switch", help="Backfill and compare only; a later promote continues from there.")
    ] = False,
    state: StateOption = None,
    kafka: KafkaOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Switch serving to another model: backfill its collection from the inputs, catch up with live, compare, switch.

    The current version serves until the last step, and is kept unchanged for a rollback.
    """
    settings = settings_of(state, kafka, store)

    async def work() -> Any:
        from streams.serving.promotion import promote as promotion

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=errors, transient=not errors.is_terminal) as progress:
            bar = progress.add_task("load", total=None)

            def on_progress(step: str, done: int, of: int) -> None:
                progress.update(bar, description=step, completed=done, total=of)

            return await promotion(settings, what, switch=not no_switch, tell=on_progress)

    done = run_async(work())
    if as_json:
        print_json(done.to_json())
        return
    _print_report(done.report)
    console.print(f"{done.records} records read, {done.windows} windows, {done.seconds:.1f} s")
    if not done.switched:
        console.print(
            f"{done.was} still serves; switch to {done.version} with: sensorium model promote {done.version}",
            soft_wrap=True,
        )
        return
    console.print(f"{done.version} serves; switch back to {done.was} with: sensorium model rollback", soft_wrap=True)
    _print_workers(done.workers)


def rollback(state: StateOption = None, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Switch serving back to the previous version, at once; it catches up with newer records from Kafka."""
    settings = settings_of(state, None, store)

    async def work() -> tuple[str, str, str]:
        from streams.serving.promotion import changed_over
        from streams.serving.versions import roll_back

        was, now = await roll_back(settings)
        return was, now, await changed_over(settings, now)

    was, now, workers = run_async(work())
    if as_json:
        print_json({"version": now, "was": was, "workers": workers})
        return
    console.print(f"{now} serves again; {was} is kept, to switch to it: sensorium model promote {was}", soft_wrap=True)
    _print_workers(workers)


def remove(version: VersionArgument, state: StateOption = None, store: StoreOption = None) -> None:
    """Delete a version's model folder and windows for good; the version that serves cannot be removed."""
    settings = settings_of(state, None, store)
    from streams.serving.versions import remove as removal

    run_async(removal(settings, version))
    console.print(f"{version} is gone", soft_wrap=True)


def _print_workers(workers: str) -> None:
    states = {
        "followed": "the running worker has switched to it",
        "none": "no worker runs on this state folder: the next one that starts serves it",
        "pending": "the running worker has not switched yet; it retries every second, see: sensorium doctor",
    }
    console.print(states[workers])


def _print_report(report: Any) -> None:
    old, new = report.serving, report.candidate
    rows = [
        ["windows", str(old.windows), str(new.windows)],
        ["streams", str(old.streams), str(new.streams)],
        ["text search finds the caption's own window", _share(old.text_precision), _share(new.text_precision)],
        ["incidents", str(old.incidents), str(new.incidents)],
        ["windows in alarm", _share(old.in_alarm), _share(new.in_alarm)],
        ["mean drift score", _number(old.mean_score), _number(new.mean_score)],
    ]
    print_table(["", f"serving {old.version}", f"candidate {new.version}"], rows)
    console.print(f"same 10 nearest neighbours  {_share(report.neighbours)}  ({report.asked_windows} windows queried)")
    console.print(f"same status                 {_share(report.same_status)}  ({report.compared_windows} windows)")
    console.print(f"incidents in common         {report.shared_incidents} of {old.incidents}")
    for note in report.notes:
        console.print(note, soft_wrap=True)
    short = [f"{s} {n}/{o}" for s, (o, n) in report.by_stream.items() if n < o]
    if short:
        shown = ", ".join(short[:8]) + (", ..." if len(short) > 8 else "")
        console.print(f"fewer windows than the serving version has (candidate/serving): {shown}", soft_wrap=True)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
