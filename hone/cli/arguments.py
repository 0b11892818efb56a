"""What several commands take: a recipe with overrides, a run, the folder of runs, JSON output."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hone.cli.completion import complete_overrides
from hone.errors import UserError, nearest

if TYPE_CHECKING:
    from hone.choosing import SamplingSettings
    from hone.recipe.data import Data

RUNS_FOLDER = Path("runs")


def complete_runs(incomplete: str) -> list[str]:
    """The names of runs in ./runs, for the shell's completion."""
    from hone.runs import list_runs

    return [run.name for run in list_runs(RUNS_FOLDER) if run.name.startswith(incomplete)]


def data_of(path: str, format: str, columns: Sequence[str]) -> "Data":
    """A data source as the options of a command describe it. Raises UserError."""
    from typing import get_args

    from hone.recipe.data import Columns, Data

    formats = get_args(Data.model_fields["format"].annotation)
    if format not in formats:
        raise _unknown("--format", format, formats)
    named = {}
    for column in columns:
        key, equals, name = column.partition("=")
        if not equals or not name:
            message = f"`--columns {column}`: expected KEY=NAME"
            raise UserError(message, hint="--columns prompt=question", exit_code=2)
        if key not in Columns.model_fields:
            raise _unknown("--columns", key, Columns.model_fields)
        named[key] = name
    return Data.model_validate({"path": path, "format": format, "columns": named})


def _unknown(option: str, value: str, valid: Iterable[str]) -> UserError:
    close = nearest(value, valid)
    meant = f"; did you mean `{close}`?" if close else ""
    expected = f"expected one of {', '.join(valid)}"
    return UserError(f"`{option} {value}`: {expected}{meant}", exit_code=2)


Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.")]

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Values that win over the recipe's: sft.steps=50",
        autocompletion=complete_overrides,
    ),
]

RunName = Annotated[
    str,
    typer.Argument(metavar="RUN", help="A run's name or folder.", autocompletion=complete_runs),
]

RunsFolder = Annotated[Path, typer.Option("--runs", metavar="FOLDER", help="Where the runs are.")]

Yes = Annotated[bool, typer.Option("--yes", help="Delete without asking.")]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

Format = Annotated[
    str, typer.Option("--format", metavar="FORMAT", help="How rows are read, as in a recipe.")
]

Columns = Annotated[
    list[str] | None,
    typer.Option("--columns", metavar="KEY=NAME", help="A column's name: prompt=question."),
]

MaxTokens = Annotated[
    int, typer.Option("--max-tokens", metavar="N", min=1, help="The longest answer, in tokens.")
]

Temperature = Annotated[
    float,
    typer.Option("--temperature", metavar="T", min=0.0, help="0 always takes the likeliest token."),
]

Seed = Annotated[
    int, typer.Option("--seed", metavar="N", min=0, help="What is drawn above temperature 0.")
]

System = Annotated[
    str | None, typer.Option("--system", metavar="TEXT", help="What the model is told first.")
]

TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        metavar="P",
        min=0.0,
        max=1.0,
        help="Draw from the likeliest tokens that together have this probability.",
    ),
]

TopK = Annotated[
    int | None,
    typer.Option("--top-k", metavar="N", min=1, help="Draw from the N likeliest tokens."),
]

MinP = Annotated[
    float | None,
    typer.Option(
        "--min-p",
        metavar="P",
        min=0.0,
        max=1.0,
        help="Leave out tokens with less than this share of the likeliest one's probability.",
    ),
]

RepetitionPenalty = Annotated[
    float,
    typer.Option(
        "--repetition-penalty",
        metavar="X",
        help="Above 1, tokens that stand there already become less likely.",
    ),
]

Stop = Annotated[
    list[str] | None,
    typer.Option(
        "--stop",
        metavar="TEXT",
        help=r"End before this text, '\n' being a new line; may be given several times.",
    ),
]


def sampling_settings(
    max_tokens: int,
    temperature: float,
    top_p: float | None,
    top_k: int | None,
    min_p: float | None,
    repetition_penalty: float,
    stop: Sequence[str] | None,
) -> "SamplingSettings":
    """What the options say together. Raises UserError for values that mean nothing."""
    from hone.choosing import SamplingSettings

    cuts = {"--top-p": top_p, "--top-k": top_k, "--min-p": min_p}
    idle = [name for name, value in cuts.items() if value is not None]
    if temperature == 0 and idle:
        message = f"{', '.join(idle)}: nothing is drawn at temperature 0"
        raise UserError(message, hint="add --temperature 1", exit_code=2)
    stops = tuple(text.replace("\\n", "\n") for text in stop or ())
    return SamplingSettings(max_tokens, temperature, top_p, top_k, min_p, repetition_penalty, stops)
