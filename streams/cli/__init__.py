"""The `sensorium` command. Each module holds the commands of one purpose; errors end as one clear line."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from typing import Annotated, Any

# before numpy is imported: a second BLAS thread takes several times the CPU for the small products here
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import typer  # noqa: E402

from streams.cli import ask, data, dlq, evaluate, model, operate, run, train  # noqa: E402
from streams.cli.common import EXPECTED, CommandError, examples, fail  # noqa: E402

app = typer.Typer(
    name="sensorium",
    help="Fuse sensor readings, sounds and captions into searchable moments, and raise incidents when a stream drifts.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "sensorium demo                      everything at once, with a simulated plant",
        "sensorium simulate --out plant      make a recording of that plant ...",
        "sensorium replay plant              ... play it, and account for every event",
        "sensorium incidents                 what went wrong in it, and why",
        "sensorium search --text 'grinding'  moments like these words",
        "sensorium doctor                    what is missing on this machine",
    ),
)
run.register(app)
data.register(app)
ask.register(app)
operate.register(app)
dlq.register(app)
model.register(app)
train.register(app)
evaluate.register(app)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"sensorium {metadata.version('sensorium')}")
        raise typer.Exit


@app.callback()
def _every_command(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Options that stand before the command."""


def main() -> None:
    """Entry point."""
    usage_error: type[Exception] = typer.BadParameter.__mro__[1]  # UsageError, which typer does not export
    try:
        sys.exit(app(standalone_mode=False))
    except EXPECTED as error:
        fail(error)
    except usage_error as error:
        fail(_one_line(error))
    except KeyboardInterrupt:
        sys.exit(130)


def _one_line(error: Any) -> CommandError:
    """A wrong option or argument, with the help that shows the right ones."""
    context = error.ctx
    if type(error).__name__ == "NoArgsIsHelpError":
        sys.stdout.write(error.format_message() + "\n")
        sys.exit(2)
    command = "sensorium" if context is None else context.command_path
    said = " ".join(error.format_message().split()).rstrip(".")
    return CommandError(f"{said}; see: {command} --help")
