"""Commands that ask what is stored: search, streams, incidents, export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.table import Table

from streams.cli.common import (
    CommandError,
    FromOption,
    JsonOption,
    StateOption,
    StoreOption,
    StreamOption,
    ToOption,
    clock,
    console,
    parse_time,
    print_json,
    run_async,
    settings_of,
)
from streams.store.base import Filter


def register(app: typer.Typer) -> None:
    app.command()(search)
    app.command()(streams)
    app.command()(incidents)
    app.command()(export)


def search(
    text: Annotated[str | None, typer.Option("--text", help="Words: 'grinding noise at the pump'.")] = None,
    audio: Annotated[Path | None, typer.Option("--audio", help="A sound file (WAV, FLAC, OGG).")] = None,
    window: Annotated[str | None, typer.Option("--window", help="The id of a stored moment.")] = None,
    stream: StreamOption = None,
    from_: FromOption = None,
    to: ToOption = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 10,
    state: StateOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find moments like a text, a sound, or another moment."""
    if sum(given is not None for given in (text, audio, window)) != 1:
        raise CommandError("give one of --text, --audio or --window, as in: sensorium search --text 'grinding noise'")
    settings = settings_of(state, None, store)
    where = Filter(stream=stream, from_ms=parse_time(from_), to_ms=parse_time(to))

    async def ask() -> list[dict[str, Any]]:
        from streams.client import open_queries

        async with open_queries(settings) as queries:
            if text is not None:
                return await queries.search_text(text, where, limit)
            if audio is not None:
                return await queries.search_audio(audio.read_bytes(), where, limit)
            return await queries.search_window(window or "", where, limit)

    rows = run_async(ask())
    if as_json:
        print_json(rows)
        return
    table = Table("time", "stream", "similar", "status", "said", "window", box=None)
    for row in rows:
        said = "; ".join(row["captions"]) or "-"
        table.add_row(clock(row["start"]), row["stream"], f"{row['similarity']:.3f}", row["status"], said, row["id"])
    console.print(table)


def streams(state: StateOption = None, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List every stream: how many windows, when it was last heard, how it is."""
    settings = settings_of(state, None, store)

    async def ask() -> list[dict[str, Any]]:
        from streams.client import open_queries

        async with open_queries(settings) as queries:
            return await queries.streams()

    rows = run_async(ask())
    if as_json:
        print_json(rows)
        return
    table = Table("stream", "windows", "last window ends", "holds", "status", "score", "incident", box=None)
    for row in rows:
        score = "-" if row["score"] is None else f"{row['score']:.2f}"
        holds = " ".join(row["modalities"])
        table.add_row(
            row["stream"], str(row["windows"]), clock(row["end"]), holds, row["status"], score, row["incident"] or "-"
        )
    console.print(table)


def incidents(
    stream: StreamOption = None,
    from_: FromOption = None,
    to: ToOption = None,
    against: Annotated[Path | None, typer.Option("--against", help="A labels.csv to compare with.")] = None,
    state: StateOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """List incidents with their reasons; with --against, say what was found, missed and false."""
    settings = settings_of(state, None, store)
    where = Filter(stream=stream, from_ms=parse_time(from_), to_ms=parse_time(to))

    async def ask() -> list[dict[str, Any]]:
        from streams.client import open_queries

        async with open_queries(settings) as queries:
            return await queries.incidents(where)

    rows = run_async(ask())
    score = None
    if against is not None:
        from streams.recording import read_labels
        from streams.scoring import IncidentSpan, score_incidents

        spans = [
            IncidentSpan(row["id"], row["stream"], row["opened_ms"], row["onset_ms"], row["closed_ms"]) for row in rows
        ]
        score = score_incidents(read_labels(against), spans)
    if as_json:
        print_json(rows if score is None else {"incidents": rows, "labels": score.to_json()})
        return
    table = Table("opened", "closed", "stream", "severity", "because", "incident", box=None)
    for row in rows:
        times = (clock(row["opened_ms"]), clock(row["closed_ms"]))
        table.add_row(*times, row["stream"], str(row["severity"]), row["text"], row["id"])
    console.print(table)
    if score is not None:
        from streams.scoring import label_table

        console.print(label_table(score))


def export(
    out: Annotated[Path, typer.Option("--out", help="File to write, one JSON object a line; - for standard output.")],
    state: StateOption = None,
    store: StoreOption = None,
) -> None:
    """Write every stored window, sorted by id: what it holds, its score, and a hash of its vector."""
    settings = settings_of(state, None, store)

    async def ask() -> list[dict[str, Any]]:
        from streams.client import open_queries

        async with open_queries(settings) as queries:
            return [row async for row in queries.export()]

    rows = sorted(run_async(ask()), key=lambda row: str(row["id"]))
    lines = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
    if str(out) == "-":
        sys.stdout.buffer.write(lines)
        return
    partial = out.with_name(out.name + ".tmp")
    partial.write_bytes(lines)
    partial.replace(out)
    console.print(f"{len(rows)} windows written to {out}", soft_wrap=True)
