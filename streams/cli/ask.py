"""Commands that query stored windows: search, streams, incidents, export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.padding import Padding
from rich.text import Text

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
    errors,
    examples,
    lasted,
    parse_range,
    print_json,
    print_table,
    run_async,
    say,
    settings_of,
)
from streams.serving.pages import Page, every
from streams.store.base import Filter

CursorOption = Annotated[
    str | None, typer.Option("--cursor", metavar="CURSOR", help="Where the page before ended, as it was printed there.")
]
RowsOption = Annotated[int, typer.Option("--limit", min=1, max=1000, metavar="N", help="At most so many.")]


def register(app: typer.Typer) -> None:
    app.command(
        short_help="Find moments like a text, a sound or a moment.",
        epilog=examples(
            "sensorium search --text 'grinding noise at the pump'",
            "sensorium search --text leak --stream cooling-loop --from 2026-01-01T00:10:00Z",
            "sensorium search --audio knocking.wav --limit 3",
            "sensorium search --window 70ac4cd7-8dfb-5a1e-9f0c-2f6f8c1f0a11 --json",
        ),
    )(search)
    app.command(
        short_help="List every stream and how it is.",
        epilog=examples("sensorium streams", "sensorium streams --limit 100   # prints how to see the next page"),
    )(streams)
    app.command(
        short_help="List incidents with their reasons.",
        epilog=examples(
            "sensorium incidents",
            "sensorium incidents --stream feed-pump --from 2026-01-01T00:00:00Z --json",
            "sensorium incidents --against plant/labels.csv   # found, missed, false",
        ),
    )(incidents)
    app.command(
        short_help="Write all stored windows as JSON lines.",
        epilog=examples("sensorium export --out windows.jsonl", "sensorium export --out - | head -3"),
    )(export)


def search(
    text: Annotated[str | None, typer.Option("--text", metavar="WORDS", help="What it was like, in words.")] = None,
    audio: Annotated[
        Path | None, typer.Option("--audio", metavar="FILE", help="What it sounded like: WAV, FLAC or OGG.")
    ] = None,
    window: Annotated[str | None, typer.Option("--window", metavar="ID", help="The id of a stored moment.")] = None,
    stream: StreamOption = None,
    from_: FromOption = None,
    to: ToOption = None,
    limit: RowsOption = 10,
    cursor: CursorOption = None,
    state: StateOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find moments like a text, a sound, or another moment; the most similar first.

    "similar" is the cosine between the query and the moment: 1 is the same.
    """
    if sum(given is not None for given in (text, audio, window)) != 1:
        raise CommandError("give one of --text, --audio or --window, as in: sensorium search --text 'grinding noise'")
    start, end = parse_range(from_, to)
    settings = settings_of(state, None, store)
    where = Filter(stream=stream, from_ms=start, to_ms=end)
    encoded = audio.read_bytes() if audio is not None else None

    async def query() -> Page:
        from streams.serving.client import open_queries

        async with open_queries(settings) as queries:
            if text is not None:
                return await queries.search_text(text, where, limit, cursor)
            if encoded is not None:
                return await queries.search_audio(encoded, where, limit, cursor)
            return await queries.search_window(window or "", where, limit, cursor)

    rows = run_async(query())
    if as_json:
        print_json(rows)
        _say_next(rows)
        return
    if not rows:
        say(f"no moments{_of(where)}; what there is: sensorium streams")
        return
    cells = []
    for row in rows:
        captions = "; ".join(row["captions"]) or "-"
        cells.append((clock(row["start"]), row["stream"], f"{row['similarity']:.3f}", row["status"], captions))
    print_table(("time (UTC)", "stream", "similar", "status", "captions"), cells, folded=4)
    say(f"like the first: sensorium search --window {rows[0]['id']}", "dim")
    _say_next(rows)


def _say_next(page: Page) -> None:
    """How to get the page that follows, if there is one; on standard error, which a program does not read."""
    if page.next is not None:
        errors.print(f"there are more: the same command with --cursor {page.next}", markup=False, soft_wrap=True)


def _of(where: Filter) -> str:
    """The filter in words, for a message."""
    text = f" of stream {where.stream}" if where.stream is not None else ""
    if where.from_ms is not None:
        text += f" from {clock(where.from_ms)}"
    if where.to_ms is not None:
        text += f" before {clock(where.to_ms)}"
    return text


def streams(
    limit: RowsOption = 1000,
    cursor: CursorOption = None,
    state: StateOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """List every stream: how many windows, when its last one ended, how it is.

    A score of 1 is the line at which an alarm begins; "warming" streams are still learning what is normal.
    """
    settings = settings_of(state, None, store)

    async def query() -> Page:
        from streams.serving.client import open_queries

        async with open_queries(settings) as queries:
            return await queries.streams(limit, cursor)

    rows = run_async(query())
    if as_json:
        print_json(rows)
        _say_next(rows)
        return
    if not rows:
        say("no windows are stored yet; send some events, or see: sensorium simulate --help")
        return
    names = ("stream", "windows", "last window ends", "status", "score", "holds")
    cells = []
    for row in rows:
        score = "-" if row["score"] is None else f"{row['score']:.2f}"
        status = row["status"] + ("" if row["incident"] is None else " (incident)")
        cells.append(
            (row["stream"], str(row["windows"]), clock(row["end"]), status, score, " ".join(row["modalities"]))
        )
    print_table(names, cells, folded=5)
    _say_next(rows)


def incidents(
    stream: StreamOption = None,
    from_: FromOption = None,
    to: ToOption = None,
    against: Annotated[
        Path | None, typer.Option("--against", metavar="FILE", help="A labels.csv to compare with.")
    ] = None,
    limit: RowsOption = 1000,
    cursor: CursorOption = None,
    state: StateOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """List incidents with their reasons; with --against, of all of them what was found, missed and false."""
    start, end = parse_range(from_, to)
    settings = settings_of(state, None, store)
    where = Filter(stream=stream, from_ms=start, to_ms=end)

    async def query() -> Page:
        from streams.serving.client import open_queries

        async with open_queries(settings) as queries:
            if against is None:
                return await queries.incidents(where, limit, cursor)
            return Page([row async for row in every(lambda cursor: queries.incidents(where, cursor=cursor))])

    labels = None
    if against is not None:
        from streams.sources.recording import read_labels

        labels = read_labels(against)
    rows = run_async(query())
    score = None
    if labels is not None:
        from streams.sources.incident_scoring import IncidentSpan, score_incidents

        spans = [
            IncidentSpan(row["id"], row["stream"], row["opened_ms"], row["onset_ms"], row["closed_ms"]) for row in rows
        ]
        score = score_incidents(labels, spans)
    if as_json:
        print_json(rows if score is None else {"incidents": rows, "labels": score.to_json()})
        _say_next(rows)
        return
    for row in rows:
        _print_incident(row)
    say(f"{len(rows)} incidents{_of(where)}")
    _say_next(rows)
    if score is not None:
        from streams.sources.incident_scoring import label_table

        console.print(label_table(score))


def _print_incident(row: dict[str, Any]) -> None:
    if row["closed_ms"] is None:
        end = "still open"
    else:
        how = "closed" if row["steps"][-1]["kind"] == "closed" else "taken as the new normal"
        end = f"{how} after {lasted(row['closed_ms'] - row['opened_ms'])}"
    say(f"{clock(row['opened_ms'])}  {row['stream']}  severity {row['severity']}, {end}", "bold")
    because = row["text"].removeprefix(row["stream"] + ": ")
    if console.is_terminal:
        console.print(Padding(Text(because), (0, 0, 0, 2)))
    else:
        say(f"  {because}")
    say(f"  incident {row['id']}", "dim")


def export(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="One JSON object a line; - for standard output.")],
    state: StateOption = None,
    store: StoreOption = None,
) -> None:
    """Write every stored window, sorted by id: what it holds, its score, and a hash of its vector.

    Two stores that hold the same windows give the same file, byte for byte.
    """
    settings = settings_of(state, None, store)
    if str(out) != "-" and not out.parent.is_dir():
        raise CommandError(f"{out.parent} is not a folder; make it with: mkdir -p {out.parent}")

    async def query() -> list[tuple[str, bytes]]:
        from streams.serving.client import open_queries

        async with open_queries(settings) as queries:  # encoded at once: a row as text is a fifth of a row as a dict
            return [(str(row["id"]), msgspec.json.encode(row) + b"\n") async for row in queries.export()]

    lines = sorted(run_async(query()))
    if str(out) == "-":
        sys.stdout.buffer.writelines(line for _, line in lines)
        return
    partial = out.with_name(out.name + ".tmp")
    with partial.open("wb") as file:
        file.writelines(line for _, line in lines)
    partial.replace(out)
    say(f"{len(lines)} windows written to {out}")
