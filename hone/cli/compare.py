"""`hone compare`: two runs beside each other, by what their results answer."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hone.cli.arguments import (
    RUNS_FOLDER,
    AsJson,
    Columns,
    Format,
    MaxTokens,
    RunName,
    RunsFolder,
    data_of,
)
from hone.cli.output import make_console, number, print_json, print_table
from hone.errors import UserError

if TYPE_CHECKING:
    from hone.side_by_side.compare import SideBySide
    from hone.side_by_side.paired import PairedRow, PairedSet

HEADING = ("QUESTIONS", "SCORE", "FIRST", "SECOND", "DIFFERENCE", "95 % INTERVAL", "N")
SHOWN = 3  # answers of each kind
MOST_CHANGES = 40
LONGEST = 300  # characters of an answer


def compare(
    first: RunName,
    second: RunName,
    on: Annotated[
        Path | None,
        typer.Option("--on", metavar="FILE", help="Questions; else what both runs have held out."),
    ] = None,
    measure: Annotated[
        list[str] | None,
        typer.Option("--measure", metavar="NAME", help="exact, f1, ...; else those that fit."),
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", metavar="N", min=1, help="At most so many of each source.")
    ] = 100,
    max_tokens: MaxTokens = 64,
    format: Format = "auto",
    columns: Columns = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FOLDER", help="Where page and picture go; else into the first run."
        ),
    ] = None,
    as_json: AsJson = False,
    runs: RunsFolder = RUNS_FOLDER,
) -> None:
    """Show two runs beside each other.

    Both results answer the same questions greedily: a file's, or the held-out samples that both
    runs have. Shown are differences with intervals, what became better and worse, and in what
    recipes and locks differ; a page and a picture have answers and curves besides.

    \b
    Example:
      hone compare first second
      hone compare first second --on questions.jsonl --measure numeric
      hone compare first second --json
    """
    from hone.runs import open_run

    found = open_run(first, runs), open_run(second, runs)
    if on is not None and not on.exists():
        raise UserError(f"there is no file `{on}`", hint="name a file of questions", exit_code=2)
    data = None if on is None else data_of(str(on), format, columns or [])
    folder = out or found[0].path / "comparisons" / found[1].name
    _check_folder(folder)
    from hone.side_by_side.compare import Asking, compare_side_by_side
    from hone.side_by_side.page import write_page
    from hone.side_by_side.picture import draw_picture

    asking = Asking(data, tuple(measure or ()), samples, max_tokens)
    with make_console().status("comparing") as status:
        beside = compare_side_by_side(*found, asking, lambda text: status.update(text))
        folder.mkdir(parents=True, exist_ok=True)
        page, picture = folder / "compare.html", folder / "compare.png"
        write_page(beside, page)
        draw_picture(beside, picture)
    if as_json:
        print_json({**beside.as_json(), "page": str(page), "picture": str(picture)})
        return
    _print(beside)
    print(f"\npage     {page}\npicture  {picture}")


def _check_folder(folder: Path) -> None:
    """Raises UserError where no folder can be."""
    if folder.exists() and not folder.is_dir():
        raise UserError(
            f"`{folder}` is a file, expected a folder",
            hint="name another one: --out FOLDER",
            exit_code=2,
        )


def _print(beside: "SideBySide") -> None:
    print(f"first   {beside.first.name}\nsecond  {beside.second.name}\n")
    rows = [
        (
            each.name,
            f"{name} *" if name == each.headline else name,
            number(paired.first),
            number(paired.second),
            f"{paired.difference.mean:+.4g}",
            f"{paired.difference.low:+.4g} to {paired.difference.high:+.4g}",
            number(paired.difference.count),
        )
        for each in beside.sets
        for name, paired in each.scores.items()
    ]
    if rows:
        print_table([HEADING, *rows])
        print("* decides which answer is better; of a loss, less is better")
    for each in beside.sets:
        _print_set(each)
    print("\ndifferences of recipe and lock:" + ("" if beside.surroundings else " none"))
    for difference in beside.surroundings[:MOST_CHANGES]:
        print(f"  {difference.in_words()}")
    if (more := len(beside.surroundings) - MOST_CHANGES) > 0:
        print(f"  and {more:,} more")


def _print_set(each: "PairedSet") -> None:
    better, worse = each.better, each.worse
    print(
        f"\n{each.name}: of {len(each.rows):,} questions {len(better):,} are answered better, "
        f"{len(worse):,} worse"
    )
    if each.remark:
        print(f"  {each.remark}")
    for title, rows in (("better", better), ("worse", worse)):
        for row in rows[:SHOWN]:
            _print_row(title, row)


def _print_row(title: str, row: "PairedRow") -> None:
    prompt = row.question.prompt
    text = prompt if isinstance(prompt, str) else prompt[-1].get("content") if prompt else None
    print(f"\n  {title}: {_short(text or row.question.place)}")
    if row.question.expected:
        print(f"    expected  {_short(row.question.expected[0])}")
    for name, answered in (("first", row.first), ("second", row.second)):
        if answered.answer is not None:
            print(f"    {name.ljust(8)}  {_short(answered.answer)}")


def _short(text: object) -> str:
    """On one line, and not too long."""
    line = " ".join(str(text).split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."
