"""`hone quickstart`: the whole way once, on a corpus, tokenizer and model made on the spot."""

from pathlib import Path
from typing import Annotated

import typer

from hone.cli.arguments import AsJson
from hone.cli.output import make_console, print_json


def quickstart(
    folder: Annotated[
        Path, typer.Option("--folder", metavar="FOLDER", help="Where everything is put.")
    ] = Path("quickstart"),
    as_json: AsJson = False,
) -> None:
    """Train a small model from nothing.

    Makes a corpus and a tokenizer, trains a base model, fine-tunes it, shows it which answers are
    preferred, and lets it practise sums for a reward. Asks held-out questions after each stage, and
    verifies the results; the exit code is 3 where that fails. Takes a few minutes on two CPU cores
    and no network.

    \b
    Example:
      hone quickstart
      hone quickstart --folder /tmp/try
      hone quickstart --json > numbers.json
    """
    from hone.quickstart.story import run_quickstart

    summary = run_quickstart(folder, console=make_console())
    if as_json:
        print_json(summary)
    if not summary["verified"]["passed"]:
        from hone.verify.fresh import NOT_VERIFIED

        raise typer.Exit(NOT_VERIFIED)
