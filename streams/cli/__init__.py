"""The `sensorium` command. Each module holds the commands of one purpose; errors end as one clear line."""

from __future__ import annotations

import sys

import typer

from streams.cli import ask, data, operate, run
from streams.cli.common import EXPECTED, fail

app = typer.Typer(
    name="sensorium",
    help="Fuse sensor readings, sounds and captions into searchable moments, and raise incidents when a stream drifts.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
run.register(app)
data.register(app)
ask.register(app)
operate.register(app)


def main() -> None:
    """Entry point."""
    try:
        app()
    except EXPECTED as error:
        fail(error)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has seen enough
        sys.exit(0)
