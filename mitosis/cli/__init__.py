"""The command line: one file a verb. A verb imports what it needs when it runs, so that ``--help`` is quick."""

import sys

import typer

from mitosis.cli.check_splits import check_splits
from mitosis.cli.count import count
from mitosis.cli.evaluate import evaluate
from mitosis.cli.export import export
from mitosis.cli.extract import extract
from mitosis.cli.info import info
from mitosis.cli.lint import lint
from mitosis.cli.mine import mine
from mitosis.cli.models import models
from mitosis.cli.train import train
from mitosis.cli.verify import verify

__all__ = ["app", "main"]

app = typer.Typer(
    name="mitosis",
    help="Find and count mitotic figures in histology images. Research use only; not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for verb in (info, lint, extract, check_splits, train, mine, verify, count, evaluate, models, export):
    app.command()(verb)


def main() -> None:
    """Run the command line; an error of this package becomes one sentence and exit code 1."""
    from mitosis.errors import MitosisError

    try:
        app()
    except MitosisError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        sys.exit(130)
