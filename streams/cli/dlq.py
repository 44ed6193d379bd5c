"""`sensorium dlq`: list, show and resend dead letters and late events."""

from __future__ import annotations

from typing import Annotated

import typer

from streams.cli.common import (
    CommandError,
    JsonOption,
    KafkaOption,
    StateOption,
    examples,
    print_json,
    print_table,
    run_async,
    say,
    settings_of,
)
from streams.errors import DataError

_SHOWN_BYTES = 2000  # of the value, without --json
LateOption = Annotated[bool, typer.Option("--late", help="Late events instead of dead letters.")]
ReasonOption = Annotated[str | None, typer.Option("--reason", metavar="CODE", help="Only with this reason code.")]


def register(app: typer.Typer) -> None:
    dlq = typer.Typer(help="Dead letters (records that could not be used) and late events.", no_args_is_help=True)
    dlq.command(
        "ls",
        short_help="List them with origin and reason.",
        epilog=examples("sensorium dlq ls", "sensorium dlq ls --reason not_json", "sensorium dlq ls --late --json"),
    )(dlq_ls)
    dlq.command(
        "show",
        short_help="Show one in full.",
        epilog=examples("sensorium dlq show sensor-readings/0/17"),
    )(dlq_show)
    dlq.command(
        "retry",
        short_help="Send them again to the topics they came from.",
        epilog=examples("sensorium dlq retry sensor-readings/0/17", "sensorium dlq retry --reason claim_missing"),
    )(dlq_retry)
    app.add_typer(dlq, name="dlq")


def dlq_ls(
    state: StateOption = None,
    kafka: KafkaOption = None,
    late: LateOption = False,
    reason: ReasonOption = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="The newest N.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """List dead letters, or late events with --late: where each came from, and why it was rejected."""
    _check_reason(reason)
    settings = settings_of(state, kafka)
    from streams.kafka.dlq import read_letters

    found = run_async(read_letters(settings, late=late, reason=reason))
    shown = found[-limit:]
    if as_json:
        print_json([letter.to_json() for letter in shown])
        return
    if not shown:
        say("no late events" if late else "no dead letters")
        return
    rows = [(letter.origin, letter.stream or "-", letter.reason, letter.detail) for letter in shown]
    print_table(("origin", "stream", "reason", "detail"), rows, folded=3)
    more = f", the newest of {len(found)}" if len(found) > len(shown) else ""
    option = " --late" if late else ""
    say(f"{len(shown)} shown{more}; one in full: sensorium dlq show {shown[-1].origin}{option}", "dim")


def dlq_show(
    origin: Annotated[str, typer.Argument(metavar="ORIGIN", help="Its origin in dlq ls: topic/partition/offset.")],
    state: StateOption = None,
    kafka: KafkaOption = None,
    late: LateOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show one dead letter in full, with its headers and the original bytes."""
    settings = settings_of(state, kafka)
    from streams.kafka.dlq import find_letter

    letter = run_async(find_letter(settings, origin, late=late))
    if as_json:
        print_json(letter.to_json() | letter.body_json())
        return
    say(f"origin      {letter.origin}\nstream      {letter.stream or '-'}\nreason      {letter.reason}")
    say(f"detail      {letter.detail}\nstage       {letter.stage}\nfirst seen  {letter.first_seen or '-'}")
    for name, value in letter.headers:
        say(f"header      {name}: {_printable(value)}")
    body = letter.value or b""
    cut = f", the first {_SHOWN_BYTES} shown (all: --json)" if len(body) > _SHOWN_BYTES else ""
    say(f"value       {len(body)} bytes{cut}")
    say(_printable(body[:_SHOWN_BYTES]))


def dlq_retry(
    origin: Annotated[str | None, typer.Argument(metavar="ORIGIN", help="One of them: topic/partition/offset.")] = None,
    state: StateOption = None,
    kafka: KafkaOption = None,
    reason: ReasonOption = None,
    late: LateOption = False,
) -> None:
    """Send dead letters again to the topics they came from, unchanged."""
    if (origin is None) == (reason is None):
        raise CommandError("name one: sensorium dlq retry TOPIC/PARTITION/OFFSET, or all of a reason: --reason CODE")
    _check_reason(reason)
    settings = settings_of(state, kafka)
    from streams.kafka.dlq import retry_letters

    sent = run_async(retry_letters(settings, origin=origin, reason=reason, late=late))
    if not sent:
        option = " --late" if late else ""
        raise DataError(f"nothing with reason {reason}; list them with: sensorium dlq ls{option}")
    say(f"{sent} sent again to the topic {'it' if sent == 1 else 'each'} came from")


def _check_reason(reason: str | None) -> None:
    from streams.events.types import Reason

    codes = [code.value for code in Reason]
    if reason is not None and reason not in codes:
        raise CommandError(f"{reason} is not a reason code; use one of: {', '.join(codes)}")


def _printable(value: bytes) -> str:
    """Text without control characters: untrusted bytes must not send escape sequences to the terminal."""
    text = value.decode(errors="backslashreplace")
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
