"""`hone data stats`: rows, columns, lengths, turns and roles of files, or of a recipe's data."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hone.cli.arguments import AsJson, Columns, Format, data_of
from hone.cli.output import make_console, number, print_json, print_table
from hone.errors import UserError

if TYPE_CHECKING:
    from hone.data.formats import TrainOn
    from hone.recipe.data import Data, SampleKind

BAR = 40  # characters of the longest bar
HEADING = ("", "SUM", "MEAN", "MIN", "P10", "MEDIAN", "P90", "P99", "MAX")
RECIPES = (".yaml", ".yml")


def stats(
    source: Annotated[
        str, typer.Argument(metavar="FILE", help="A data file, folder, Hub data set, or a recipe.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Of a recipe: values that win over its own."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="Count tokens too, of this folder or Hub id"),
    ] = None,
    format: Format = "auto",
    columns: Columns = None,
    as_json: AsJson = False,
) -> None:
    """Count what is in data.

    Rows, columns, characters, turns, roles and rows that repeat another one; with --model, or of a
    recipe, tokens and the share of them that is trained. Quantiles are values that occur.

    \b
    Example:
      hone data stats chat.jsonl
      hone data stats chat.jsonl --model Qwen/Qwen3-0.6B
      hone data stats recipe.yaml sft.max_tokens=512 --json
    """
    if source.lower().endswith(RECIPES):
        if model or format != "auto" or columns:
            message = "`--model`, `--format` and `--columns` have no effect on a recipe"
            raise UserError(message, hint=f"hone data stats {source}", exit_code=2)
        found = _of_recipe(Path(source), overrides or [])
    elif overrides:
        message = f"`{overrides[0]}`: only a recipe has values to override"
        raise UserError(message, hint=f"hone data stats {source}", exit_code=2)
    else:
        found = [_of_file(data_of(source, format, columns or []), model)]
    if as_json:
        print_json({"data": found})
        return
    for each in found:
        _print(each)


def _of_file(data: "Data", model: str | None) -> dict[str, Any]:
    described = _rows(data, "completions", None)
    if model is None:
        return described
    from hone.data.formats import FORMATS
    from hone.data.prepare import prepare
    from hone.data.statistics import count_tokens
    from hone.models import load_tokenizer
    from hone.stages.progress import StageProgress

    tokenizer = load_tokenizer(model)
    with StageProgress(make_console(), None, "tokens", None) as bar:
        prepared = prepare(
            data.model_copy(update={"on_bad_row": "skip"}),
            tokenizer,
            max_tokens=2**31 - 1,
            overlong="keep_start",
            train_on="completions",
            kind=FORMATS[described["format"]].kind if described["format"] else "supervised",
            progress=bar.advance_to,
        )
    return {**described, "tokens": count_tokens(prepared)}


def _of_recipe(path: Path, overrides: list[str]) -> list[dict[str, Any]]:
    from hone.data.statistics import count_tokens
    from hone.recipe.load import load_recipe
    from hone.stages.run import prepare_recipe

    loaded = load_recipe(path, overrides)
    found: list[dict[str, Any]] = []
    for each in prepare_recipe(loaded, make_console()):
        name = {"stage": each.stage, "name": each.name}
        rows = _rows(each.data, each.settings.trained_part, each.settings.sample_kind)
        found.append({**name, **rows, "tokens": count_tokens(each.prepared)})
    return found


def _rows(data: "Data", train_on: "TrainOn", kind: "SampleKind | None") -> dict[str, Any]:
    from hone.data.statistics import count_rows, histogram, summary
    from hone.stages.progress import StageProgress

    with StageProgress(make_console(), None, "rows", None) as bar:
        counted = count_rows(data, train_on=train_on, kind=kind, progress=bar.advance_to)
    report = counted.report
    if report.fault and not report.rows:
        raise UserError(f"`{data.path}`: {report.fault}")
    return {
        "path": data.path,
        "format": report.format,
        "rows": report.rows,
        "num_bad": report.num_bad,
        "fault": report.fault,
        "repeated": counted.repeated,
        "columns": dict(report.columns),
        "characters": summary(counted.characters),
        "turns": summary(counted.turns),
        "roles": dict(counted.roles),
        "histogram": histogram(counted.characters),
        "tokens": None,
    }


def _print(found: dict[str, Any]) -> None:
    if "stage" in found:
        print(f"stage {found['stage']} {found['name']}")
    print(f"{found['path']}: {found['rows']:,} rows, {found['format'] or 'no format recognised'}")
    if found["num_bad"] or found["fault"]:
        print(f"  bad rows: {found['num_bad']:,}; hone data validate {found['path']}")
    if found["fault"]:
        print(f"  fault: {found['fault']}")
    print(f"  rows that repeat another one: {found['repeated']:,}")
    print(f"  columns: {_counted(found['columns'])}")
    if found["roles"]:
        print(f"  roles: {_counted(found['roles'])}")
    tokens = found["tokens"]
    rows = [("characters", found["characters"]), ("turns", found["turns"])]
    if tokens:
        rows += [("tokens", tokens["lengths"]), ("trained tokens", tokens["trained"])]
        rows += [(f"tokens of the {name}", of) for name, of in tokens["segments"].items()]
    cells = [_cells(name, values) for name, values in rows if values["count"]]
    if cells:
        print_table([HEADING, *cells], indent="  ")
    if tokens:
        print(f"  share of tokens trained: {tokens['trained_share']:.1%}")
        if tokens["wanted"] is not None:
            share = tokens["wanted"] / tokens["lengths"]["count"]
            print(f"  answers that are wanted: {tokens['wanted']:,} ({share:.1%})")
    _print_histogram("tokens" if tokens else "characters", (tokens or found)["histogram"])


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count:,})" for name, count in counts.items()) or "none"


def _cells(name: str, values: dict[str, Any]) -> tuple[str, ...]:
    quantiles = ("sum", "mean", "min", "p10", "median", "p90", "p99", "max")
    return (name, *(number(values[key]) for key in quantiles))


def _print_histogram(what: str, bins: list[tuple[int, int, int]]) -> None:
    if not bins:
        return
    highest = max(count for *_, count in bins)
    rows = [
        (f"{low:,}-{high:,}", f"{count:,}", "#" * -(-BAR * count // highest))
        for low, high, count in bins
    ]
    print_table([(what.upper(), "SAMPLES" if what == "tokens" else "ROWS", ""), *rows], indent="  ")
