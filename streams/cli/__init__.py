"""The `sensorium` command. Each module holds the commands of one purpose; errors end as one clear line."""

from __future__ import annotations

import os
import sys

# before numpy is imported: a second BLAS thread takes several times the CPU for the small products here
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import typer  # noqa: E402

from streams.cli import ask, data, model, operate, run  # noqa: E402
from streams.cli.common import EXPECTED, fail  # noqa: E402

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
model.register(app)


def main() -> None:
    """Entry point."""
    try:
        app()
    except EXPECTED as error:
        fail(error)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has seen enough
        sys.exit(0)
