"""`hone estimate`: what a recipe takes of memory and disk, before anything is loaded."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hone.cli.arguments import AsJson, Overrides, Recipe
from hone.cli.output import make_console, print_json, say
from hone.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from hone.estimate.examine import StageEstimate
    from hone.estimate.measure import Measured


def estimate(
    recipe: Recipe,
    overrides: Overrides = None,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="KIND", help="cpu or cuda, which need not be there."),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Run a few steps of each stage and compare.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Estimate what a recipe takes.

    For each stage and phase, the peak of memory above what the libraries hold, and the disk. The
    model's own code is run on tensors without numbers, so no weights are loaded. With --measure
    every stage is begun from the recipe's model in a fresh process, and the error is shown.

    \b
    Example:
      hone estimate recipe.yaml
      hone estimate recipe.yaml sft.token_budget=512 --measure
      hone estimate recipe.yaml --device cuda --json
    """
    from hone.recipe.load import load_recipe

    if device not in (None, "cpu", "cuda"):
        raise UserError(f"`--device {device}`: expected cpu or cuda", exit_code=2)
    if measure and device is not None:
        raise UserError("`--measure` measures on the recipe's own device", exit_code=2)
    loaded = load_recipe(recipe, overrides or [])
    from hone.estimate.examine import estimate_recipe
    from hone.estimate.measure import STEPS, measure_peak
    from hone.stages.run import quieten_libraries

    quieten_libraries()
    console = make_console()
    found = estimate_recipe(loaded, device=device, steps=STEPS if measure else None)
    measured: list[Measured] = []
    if measure:
        for index, each in enumerate(found):
            with console.status(f"measuring {each.title}"):
                measured.append(measure_peak(loaded, index))
    if as_json:
        print_json({"schema": 1, "stages": _as_json(found, measured)})
    else:
        _print(found, measured, console)


def error_of(estimate: "StageEstimate", measured: "Measured") -> float:
    """How much of the measured peak the estimate is above it."""
    return estimate.peak / measured.peak - 1


def _as_json(found: "list[StageEstimate]", measured: "list[Measured]") -> list[dict[str, Any]]:
    stages = [each.as_json() for each in found]
    for stage, each, real in zip(stages, found, measured, strict=False):
        stage["measured"] = {**vars(real), "error": error_of(each, real)}
    return stages


def _print(found: "list[StageEstimate]", measured: "list[Measured]", console: "Console") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from hone.memory import in_words

    for index, stage in enumerate(found):
        say(
            console,
            f"{stage.title} on {stage.device}, {stage.precision}, layout {stage.layout}, "
            f"{stage.budget:,} tokens at once (largest {stage.tokens:,})",
        )
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("phase")
        table.add_column("peak", justify="right")
        for phase, count in stage.phases.items():
            mark = "[bold]" if phase == stage.phase else ""
            table.add_row(f"{mark}{phase}", f"{mark}{in_words(count)}")
        console.print(table)
        parts = (f"{name.replace('_', ' ')} {in_words(n)}" for name, n in stage.parts.items())
        say(console, f"of it: {', '.join(parts)}")
        say(console, str(stage.disk))
        if measured:
            real = measured[index]
            say(
                console,
                f"measured: {in_words(real.peak)} above {in_words(real.floor)}; the estimate is "
                f"{error_of(stage, real):+.1%} from it",
            )
