"""`hone data validate`: every row read, every bad one named, and what stands in the data twice."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hone.cli.arguments import AsJson, Columns, Format, data_of
from hone.cli.output import make_console, print_json
from hone.errors import UserError

if TYPE_CHECKING:
    from hone.data.duplicates import Found
    from hone.data.formats import TrainOn
    from hone.data.row_hashes import RowHashes
    from hone.data.validate import SourceReport, Validation
    from hone.recipe.data import Data, SampleKind

    Part = tuple[str, list[Data], list[Data], TrainOn, SampleKind | None]
    """A stage's name, or "", its training data, its evaluation data, what is trained of a row, and
    what the rows have to become."""


def validate(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE", help="Data files, folders or Hub data sets."),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option("--against", metavar="FILE", help="Evaluation data that must be other rows."),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", metavar="RECIPE", help="Validate all data of a recipe instead."),
    ] = None,
    format: Format = "auto",
    columns: Columns = None,
    most: Annotated[
        int, typer.Option("--most", metavar="N", min=0, help="How many of each kind are named.")
    ] = 10,
    as_json: AsJson = False,
) -> int:
    """Find rows that cannot be used.

    Reads every row as training would, without a tokenizer: bad rows with their place and reason,
    rows that stand there twice, and evaluation rows that are trained on. Exit code 1 where a row is
    bad.

    \b
    Example:
      hone data validate train.jsonl
      hone data validate train.csv --columns prompt=question --columns completion=answer
      hone data validate train.jsonl more.parquet --against held-out.jsonl
      hone data validate --recipe recipe.yaml --json
    """
    if bool(files) == bool(recipe):
        message = "expected either data files or `--recipe`"
        raise UserError(message, hint="hone data validate train.jsonl", exit_code=2)
    if recipe and (format != "auto" or columns or against):
        message = "`--format`, `--columns` and `--against` have no effect beside `--recipe`"
        raise UserError(message, hint=f"hone data validate --recipe {recipe}", exit_code=2)
    from hone.data.validate import validate as read_all
    from hone.stages.progress import StageProgress

    found: dict[str, Validation] = {}
    parts = _of_recipe(recipe) if recipe else _of_files(files, against, format, columns or [])
    for name, training, evaluation, train_on, kind in parts:
        with StageProgress(make_console(), None, "rows", None) as progress:
            found[name] = read_all(
                training,
                evaluation,
                train_on=train_on,
                kind=kind,
                most=most,
                progress=progress.advance_to,
            )
    ok = all(each.ok for each in found.values())
    if as_json:
        print_json({"ok": ok, "parts": [_as_json(*each) for each in found.items()]})
    else:
        for name, each in found.items():
            _print(name, each)
        print("every row can be used" if ok else "not every row can be used")
    return 0 if ok else 1


def _of_files(
    files: list[str] | None, against: list[str] | None, format: str, columns: list[str]
) -> "list[Part]":
    training, evaluation = (
        [data_of(path, format, columns) for path in paths or []] for paths in (files, against)
    )
    return [("", training, evaluation, "completions", None)]


def _of_recipe(path: Path) -> "list[Part]":
    """The data of every stage of a recipe."""
    from hone.recipe.load import load_recipe
    from hone.recipe.training import DataStage

    parts: list[Part] = []
    for number, stage in enumerate(load_recipe(path).recipe.stages, 1):
        settings = stage.settings
        if not isinstance(settings, DataStage):
            continue
        evaluation = settings.evaluation.data_sets if settings.evaluation else []
        train_on: TrainOn = settings.trained_part
        name, kind = f"{number} {stage.method}", settings.sample_kind
        parts.append((name, settings.data_sets, evaluation, train_on, kind))
    return parts


def _as_json(name: str, found: "Validation") -> dict[str, Any]:
    training, evaluation = found.hashes
    return {
        "stage": name or None,
        "training": [_report_as_json(report) for report in found.training],
        "evaluation": [_report_as_json(report) for report in found.evaluation],
        "repeated": _found_as_json(found.repeated, training, training),
        "trained": found.trained and _found_as_json(found.trained, evaluation, training),
        "prompt_trained": found.asked and _found_as_json(found.asked, evaluation, training),
    }


def _report_as_json(report: "SourceReport") -> dict[str, Any]:
    return {
        "path": report.path,
        "format": report.format,
        "columns": dict(report.columns),
        "rows": report.rows,
        "num_bad": report.num_bad,
        "bad": [{"place": place, "reason": reason} for place, reason in report.bad],
        "fault": report.fault,
    }


def _found_as_json(found: "Found", mine: "RowHashes", theirs: "RowHashes") -> dict[str, Any]:
    pairs = [[mine.place(one), theirs.place(other)] for one, other in found.pairs]
    return {"count": found.count, "pairs": pairs}


def _print(name: str, found: "Validation") -> None:
    if name:
        print(f"stage {name}")
    for report in [*found.training, *found.evaluation]:
        kind = report.format or "no format recognised"
        print(f"{report.path}: {report.rows:,} rows, {kind}, {report.num_bad:,} bad")
        columns = ", ".join(f"{column} ({count:,})" for column, count in report.columns.items())
        print(f"  columns: {columns or 'none'}")
        for place, reason in report.bad:
            print(f"  bad: {place}: {reason}")
        if report.num_bad > len(report.bad):
            print(f"  and {report.num_bad - len(report.bad):,} more")
        if report.fault:
            print(f"  fault: {report.fault}")
    training, evaluation = found.hashes
    _print_found("training rows that repeat another one", found.repeated, training, training)
    if found.trained and found.asked:
        _print_found("evaluation rows that are trained on", found.trained, evaluation, training)
        _print_found(
            "evaluation rows whose prompt is trained on", found.asked, evaluation, training
        )


def _print_found(what: str, found: "Found", mine: "RowHashes", theirs: "RowHashes") -> None:
    print(f"{what}: {found.count:,}")
    for one, other in found.pairs:
        print(f"  {mine.place(one)} and {theirs.place(other)}")
    if found.count > len(found.pairs):
        print(f"  and {found.count - len(found.pairs):,} more")
