"""`hone data split`: one data file into two of the same kind, for training and evaluation."""

from pathlib import Path
from typing import Annotated

import typer

from hone.cli.arguments import AsJson
from hone.cli.output import make_console, print_json
from hone.errors import UserError


def split(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A data file, a folder or a Hub data set.")
    ],
    share: Annotated[
        float, typer.Option("--share", metavar="S", help="Share of the rows for evaluation.")
    ] = 0.05,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, help="Another seed holds out other rows.")
    ] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Where the two files go.")
    ] = None,
    names: Annotated[
        tuple[str, str] | None,
        typer.Option("--names", metavar="TRAIN EVALUATION", help="What the two files are called."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the two files.")] = False,
    as_json: AsJson = False,
) -> None:
    """Split data into training and evaluation files.

    A row's side depends on the seed and on what it says: rows that are equal are on the same side,
    and the same rows give the same files. Lines are copied byte for byte; a folder and a Hub data
    set become JSON Lines. The files are beside FILE: a.jsonl gives a.train.jsonl and
    a.evaluation.jsonl. Nothing is overwritten without --force.

    \b
    Example:
      hone data split chat.jsonl
      hone data split chat.csv.gz --share 0.1 --seed 3 --out parts
      hone data split chat.parquet --names train.parquet held-out.parquet --json
    """
    if not 0 < share < 1:
        message = f"`--share {share:g}`: expected a number above 0 and below 1"
        raise UserError(message, hint="--share 0.05", exit_code=2)
    from hone.data.split import split as write_both
    from hone.stages.progress import StageProgress

    with StageProgress(make_console(), None, "rows", None) as progress:
        made = write_both(
            file,
            share,
            seed,
            folder=out,
            names=names,
            force=force,
            progress=progress.advance_to,
        )
    if as_json:
        sides = zip(("train", "evaluation"), made.paths, made.rows, strict=True)
        written = {side: {"path": str(path), "rows": rows} for side, path, rows in sides}
        print_json({**written, "repeated": made.repeated, "share": share, "seed": seed})
        return
    for path, rows in zip(made.paths, made.rows, strict=True):
        print(f"{path}: {rows:,} rows")
    if made.repeated:
        print(f"rows that repeat another one, on the same side: {made.repeated:,}")
