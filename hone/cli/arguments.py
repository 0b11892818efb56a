"""What several commands take: a recipe with overrides, a run, the folder of runs, JSON output."""

from pathlib import Path
from typing import Annotated

import typer

from hone.cli.completion import complete_overrides

RUNS_FOLDER = Path("runs")


def complete_runs(incomplete: str) -> list[str]:
    """The names of runs in ./runs, for the shell's completion."""
    from hone.runs import list_runs

    return [run.name for run in list_runs(RUNS_FOLDER) if run.name.startswith(incomplete)]


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

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

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
