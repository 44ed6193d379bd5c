"""Commands for operators: topics, config, doctor."""

from __future__ import annotations

from typing import Any

import typer

from streams.cli.common import (
    JsonOption,
    KafkaOption,
    StateOption,
    StoreOption,
    console,
    examples,
    print_json,
    print_table,
    run_async,
    say,
    settings_of,
)


def register(app: typer.Typer) -> None:
    topics = typer.Typer(help="Create and describe the topics.", no_args_is_help=True)
    topics.command(
        "create",
        epilog=examples("sensorium topics create", "sensorium topics create --kafka kafka-1:9092"),
    )(topics_create)
    topics.command(
        "describe",
        epilog=examples("sensorium topics describe", "sensorium topics describe --kafka kafka-1:9092 --json"),
    )(topics_describe)
    app.add_typer(topics, name="topics")
    config = typer.Typer(help="Show and check the settings.", no_args_is_help=True)
    config.command(
        "show",
        short_help="Print every setting and where it comes from.",
        epilog=examples(
            "sensorium config show",
            "sensorium config show > sensorium.toml   # a settings file to start from",
            "SENSORIUM_WINDOW__SIZE_MS=5000 SENSORIUM_WINDOW__HOP_MS=5000 sensorium config show --json",
        ),
    )(config_show)
    config.command(
        "check",
        epilog=examples("sensorium config check", "SENSORIUM_CONFIG=plant.toml sensorium config check"),
    )(config_check)
    app.add_typer(config, name="config")
    app.command(
        short_help="Check everything the service needs.",
        epilog=examples("sensorium doctor", "sensorium doctor --kafka kafka-1:9092 --store http://qdrant:6333"),
    )(doctor)


def topics_create(state: StateOption = None, kafka: KafkaOption = None) -> None:
    """Create the topics that are missing. Existing topics are not changed."""
    settings = settings_of(state, kafka)

    async def create() -> list[str]:
        from streams.kafka.admin import check_topics, create_topics, describe_topics
        from streams.kafka.clients import find_bootstrap

        bootstrap = find_bootstrap(settings)
        made = await create_topics(settings, bootstrap)
        check_topics(await describe_topics(settings, bootstrap))
        return made

    made = run_async(create())
    say(f"created {', '.join(made)}" if made else "all topics exist")


def topics_describe(state: StateOption = None, kafka: KafkaOption = None, as_json: JsonOption = False) -> None:
    """Show every topic: partitions, replicas, contents."""
    settings = settings_of(state, kafka)

    async def describe() -> Any:
        from streams.kafka.admin import describe_topics
        from streams.kafka.clients import find_bootstrap

        return await describe_topics(settings, find_bootstrap(settings))

    states = run_async(describe())
    if as_json:
        print_json(
            [
                {
                    "topic": s.full_name,
                    "partitions": s.partitions,
                    "replication": s.replication,
                    "holds": s.spec.holds,
                    "warning": s.warning,
                }
                for s in states
            ]
        )
        return
    rows = [(s.full_name, str(s.partitions or "missing"), str(s.replication or "-"), s.spec.holds) for s in states]
    print_table(("topic", "partitions", "replicas", "holds"), rows, folded=3)
    for s in states:
        if s.warning is not None:
            say(f"warning: {s.warning}")


def config_show(
    state: StateOption = None, kafka: KafkaOption = None, store: StoreOption = None, as_json: JsonOption = False
) -> None:
    """Print every setting, its value and where it comes from, in the form of a settings file.

    Options override the environment (SENSORIUM_STATE, SENSORIUM_WINDOW__SIZE_MS, ...), the environment overrides the
    file (./sensorium.toml, or the file that SENSORIUM_CONFIG names), the file overrides the defaults.
    """
    from streams.settings_report import as_toml, settings_in_force

    given = {"state": state, "kafka": kafka, "store": store}
    flags = frozenset(name for name, value in given.items() if value is not None)
    rows = settings_in_force(settings_of(state, kafka, store), flags)
    if as_json:
        print_json({row.name: {"value": row.value, "from": row.origin} for row in rows})
        return
    for row in rows:
        say(as_toml(row))


def config_check(state: StateOption = None, kafka: KafkaOption = None, store: StoreOption = None) -> None:
    """Check the settings without starting anything.

    Each by itself, then all together; every error names its remedy.
    """
    settings = settings_of(state, kafka, store)
    from streams.settings_report import check, check_names

    check(settings)
    check_names(settings)
    say("settings are fine")


def doctor(
    state: StateOption = None, kafka: KafkaOption = None, store: StoreOption = None, as_json: JsonOption = False
) -> None:
    """Check everything the service needs, part by part, with a remedy for each error.

    The exit status is 1 if there is an error. A warning is about something that is not there yet.
    """
    settings = settings_of(state, kafka, store)
    from streams.serving.doctor import examine

    findings = run_async(examine(settings))
    if as_json:
        print_json([finding.to_json() for finding in findings])
    else:
        for finding in findings:
            colour = {"ok": "green", "warning": "yellow", "error": "red"}[finding.level]
            console.print(f"[{colour}]{finding.level:8}[/]{finding.part:9}", end="")
            say(finding.text)
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(1)
