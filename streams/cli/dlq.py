"""`sensorium dlq`: records that could not be used, and late events; to be looked at, and to be sent again."""

from __future__ import annotations

from typing import Annotated

import typer

from streams.cli.common import (
    DATA,
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

_SHOWN_BYTES = 2000
LateOption = Annotated[bool, typer.Option("--late", help="Late events instead of dead letters.")]
ReasonOption = Annotated[str | None, typer.Option("--reason", metavar="CODE", help="Only those with this reason.")]


def register(app: typer.Typer) -> None:
    dlq = typer.Typer(help="Records that could not be used, and late events.", no_args_is_help=True)
    dlq.command(
        "ls",
        short_help="List them: where each came from, and why.",
        epilog=examples("sensorium dlq ls", "sensorium dlq ls --reason not_json", "sensorium dlq ls --late --json"),
    )(dlq_ls)
    dlq.command(
        "show",
        short_help="Show one in full.",
        epilog=examples("sensorium dlq show sensor-readings/0/17"),
    )(dlq_show)
    dlq.command(
        "retry",
        short_help="Send them again to where they came from.",
        epilog=examples("sensorium dlq retry sensor-readings/0/17", "sensorium dlq retry --reason claim_missing"),
    )(dlq_retry)
    app.add_typer(dlq, name="dlq")


def dlq_ls(
    state: StateOption = None,
    kafka: KafkaOption = None,
    late: LateOption = False,
    reason: ReasonOption = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="At most so many, the newest.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """List dead letters (or late events): where each came from, and why it was put aside."""
    _known(reason)
    settings = settings_of(state, kafka)
    from streams.kafka.dlq import read_letters

    found = run_async(read_letters(settings, late=late, reason=reason))
    letters = found[-limit:]
    if as_json:
        print_json([letter.to_json() for letter in letters])
        return
    if not letters:
        say("no late events" if late else "no dead letters")
        return
    rows = [(letter.origin, letter.stream or "-", letter.reason, letter.detail) for letter in letters]
    print_table(("origin", "stream", "reason", "detail"), rows, folded=3)
    more = f", the newest of {len(found)}" if len(found) > len(letters) else ""
    option = " --late" if late else ""
    say(f"{len(letters)} shown{more}; one in full: sensorium dlq show {letters[-1].origin}{option}", "dim")


def dlq_show(
    origin: Annotated[
        str, typer.Argument(metavar="ORIGIN", help="Where it came from, as dlq ls shows it: topic/partition/offset.")
    ],
    state: StateOption = None,
    kafka: KafkaOption = None,
    late: LateOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show one dead letter in full: headers and the original bytes."""
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
    cut = f", the first {_SHOWN_BYTES} of them here (all: --json)" if len(body) > _SHOWN_BYTES else ""
    say(f"value       {len(body)} bytes{cut}")
    say(_printable(body[:_SHOWN_BYTES]))


def dlq_retry(
    origin: Annotated[
        str | None, typer.Argument(metavar="[ORIGIN]", help="One letter: topic/partition/offset.")
    ] = None,
    state: StateOption = None,
    kafka: KafkaOption = None,
    reason: ReasonOption = None,
    late: LateOption = False,
) -> None:
    """Send letters back to the topics they came from, as they were, to be tried again."""
    if (origin is None) == (reason is None):
        raise CommandError("say which: sensorium dlq retry TOPIC/PARTITION/OFFSET, or with --reason CODE")
    _known(reason)
    settings = settings_of(state, kafka)
    from streams.kafka.dlq import retry_letters

    sent = run_async(retry_letters(settings, origin=origin, reason=reason, late=late))
    if not sent:
        raise CommandError(f"no letters with reason {reason}; see what there is with: sensorium dlq ls", DATA)
    say(f"{sent} sent again to where {'it' if sent == 1 else 'they'} came from")


def _known(reason: str | None) -> None:
    from streams.events.types import Reason

    codes = [code.value for code in Reason]
    if reason is not None and reason not in codes:
        raise CommandError(f"{reason} is no reason code; they are: {', '.join(codes)}")


def _printable(value: bytes) -> str:
    """Text that cannot play tricks with a terminal: whoever sent this may have wanted to."""
    text = value.decode(errors="backslashreplace")
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
