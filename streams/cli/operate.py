"""Commands for whoever runs the service: topics, doctor, config, dead letters."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from streams.cli.common import (
    CommandError,
    JsonOption,
    KafkaOption,
    StateOption,
    StoreOption,
    console,
    print_json,
    run_async,
    settings_of,
)


def register(app: typer.Typer) -> None:
    topics = typer.Typer(help="Make the topics, and look at them.", no_args_is_help=True)
    topics.command("create")(topics_create)
    topics.command("describe")(topics_describe)
    app.add_typer(topics, name="topics")
    config = typer.Typer(help="Settings in force, and whether they can be used.", no_args_is_help=True)
    config.command("show")(config_show)
    config.command("check")(config_check)
    app.add_typer(config, name="config")
    dlq = typer.Typer(help="Records that could not be used, and late events.", no_args_is_help=True)
    dlq.command("ls")(dlq_ls)
    dlq.command("show")(dlq_show)
    dlq.command("retry")(dlq_retry)
    app.add_typer(dlq, name="dlq")
    app.command()(doctor)


def topics_create(state: StateOption = None, kafka: KafkaOption = None) -> None:
    """Make the topics that are missing."""
    settings = settings_of(state, kafka)

    async def create() -> list[str]:
        from streams.kafka_clients import find_bootstrap
        from streams.topics import check_topics, create_topics, describe_topics

        bootstrap = find_bootstrap(settings)
        made = await create_topics(settings, bootstrap)
        check_topics(await describe_topics(settings, bootstrap))
        return made

    made = run_async(create())
    console.print(f"created {', '.join(made)}" if made else "all topics exist")


def topics_describe(state: StateOption = None, kafka: KafkaOption = None, as_json: JsonOption = False) -> None:
    """Show every topic: what is on it, partitions, replicas."""
    settings = settings_of(state, kafka)

    async def describe() -> Any:
        from streams.kafka_clients import find_bootstrap
        from streams.topics import describe_topics

        return await describe_topics(settings, find_bootstrap(settings))

    states = run_async(describe())
    if as_json:
        print_json(
            [
                {"topic": s.full_name, "partitions": s.partitions, "replication": s.replication, "holds": s.spec.holds}
                for s in states
            ]
        )
        return
    table = Table("topic", "partitions", "replicas", "holds", box=None)
    for s in states:
        table.add_row(s.full_name, str(s.partitions or "missing"), str(s.replication or "-"), s.spec.holds)
    console.print(table)


def config_show(as_json: JsonOption = False) -> None:
    """Print every setting, its value and where it comes from."""
    from streams.config_report import settings_in_force

    rows = settings_in_force(settings_of())
    if as_json:
        print_json({row.name: {"value": row.value, "from": row.origin} for row in rows})
        return
    table = Table("setting", "value", "from", "meaning", box=None)
    for row in rows:
        table.add_row(row.name, row.value, row.origin, row.meaning)
    console.print(table)


def config_check() -> None:
    """Check the settings without starting anything."""
    settings = settings_of()
    from streams.config_report import problems

    found = problems(settings)
    if found:
        raise CommandError("\n".join(found))
    console.print("settings are fine")


def doctor(
    state: StateOption = None, kafka: KafkaOption = None, store: StoreOption = None, as_json: JsonOption = False
) -> None:
    """Check everything the service needs, part by part, and say what mends what is wrong."""
    settings = settings_of(state, kafka, store)
    from streams.doctor import examine

    findings = run_async(examine(settings))
    if as_json:
        print_json([finding.to_json() for finding in findings])
    else:
        for finding in findings:
            colour = {"ok": "green", "warning": "yellow", "error": "red"}[finding.level]
            console.print(f"[{colour}]{finding.level:8}[/]{finding.part:12} {finding.text}", soft_wrap=True)
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(1)


LateOption = Annotated[bool, typer.Option("--late", help="Late events instead of dead letters.")]


def dlq_ls(
    state: StateOption = None,
    kafka: KafkaOption = None,
    late: LateOption = False,
    reason: Annotated[str | None, typer.Option(help="Only this reason code.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """List dead letters (or late events): where each came from, and why it was put aside."""
    settings = settings_of(state, kafka)
    from streams.dlq import read_letters

    letters = run_async(read_letters(settings, late=late, reason=reason))[-limit:]
    if as_json:
        print_json([letter.to_json() for letter in letters])
        return
    table = Table("origin", "stream", "reason", "detail", "first seen", box=None)
    for letter in letters:
        table.add_row(letter.origin, letter.stream or "-", letter.reason, letter.detail, letter.first_seen or "-")
    console.print(table)
    console.print(f"{len(letters)} shown; one in full: sensorium dlq show TOPIC/PARTITION/OFFSET")


def dlq_show(
    origin: Annotated[str, typer.Argument(help="Where it came from, as dlq ls shows it: topic/partition/offset.")],
    state: StateOption = None,
    kafka: KafkaOption = None,
    late: LateOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show one dead letter in full: headers and the original bytes."""
    settings = settings_of(state, kafka)
    from streams.dlq import find_letter

    letter = run_async(find_letter(settings, origin, late=late))
    if as_json:
        print_json(letter.to_json() | letter.body_json())
        return
    console.print(f"origin      {letter.origin}\nstream      {letter.stream or '-'}\nreason      {letter.reason}")
    console.print(f"detail      {letter.detail}\nstage       {letter.stage}\nfirst seen  {letter.first_seen or '-'}")
    for name, value in letter.headers:
        console.print(f"header      {name}: {value.decode(errors='replace')}")
    body = letter.value or b""
    console.print(f"value       {len(body)} bytes")
    console.print(body[:2000].decode(errors="backslashreplace"), markup=False)


def dlq_retry(
    origin: Annotated[str | None, typer.Argument(help="One letter: topic/partition/offset.")] = None,
    state: StateOption = None,
    kafka: KafkaOption = None,
    reason: Annotated[str | None, typer.Option(help="Every letter with this reason code.")] = None,
    late: LateOption = False,
) -> None:
    """Send letters back to the topics they came from, as they were, to be tried again."""
    if (origin is None) == (reason is None):
        raise CommandError("say which: sensorium dlq retry TOPIC/PARTITION/OFFSET, or with --reason CODE")
    settings = settings_of(state, kafka)
    from streams.dlq import retry_letters

    sent = run_async(retry_letters(settings, origin=origin, reason=reason, late=late))
    console.print(f"{sent} sent again to where they came from")
