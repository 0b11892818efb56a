"""`hone quickstart`: the whole way once, on a corpus, tokenizer and model made on the spot."""

from pathlib import Path
from typing import Annotated

import typer

from hone.cli.output import make_console


def quickstart(
    folder: Annotated[
        Path, typer.Option("--folder", metavar="FOLDER", help="Where everything is put.")
    ] = Path("quickstart"),
) -> None:
    """Train a small model from nothing.

    Makes a corpus and a tokenizer, trains a base model, fine-tunes it, and asks it held-out
    questions before and after. Takes a few minutes on two CPU cores and no network.

    \b
    Example:
      hone quickstart
      hone quickstart --folder /tmp/try
    """
    from hone.quickstart.story import run_quickstart

    run_quickstart(folder, console=make_console())
