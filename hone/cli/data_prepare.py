"""`hone data prepare`: tokenise all data of a recipe now, so that a run starts at once."""

from typing import TYPE_CHECKING, Any

from hone.cli.arguments import AsJson, Overrides, Recipe
from hone.cli.output import make_console, number, print_json, print_table

if TYPE_CHECKING:
    from hone.stages.run import PreparedSource

HEADING = ("STAGE", "DATA", "SAMPLES", "TOKENS", "TRAINED", "CUT", "LEFT OUT", "", "FROM")


def prepare(recipe: Recipe, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Tokenise all data of a recipe.

    What is made is kept in the cache, where runs of this recipe find it; data that are there
    already are not read again.

    \b
    Example:
      hone data prepare recipe.yaml
      hone data prepare recipe.yaml sft.max_tokens=4096 --json
    """
    from hone.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    from hone.stages.run import prepare_recipe

    found = [_described(each) for each in prepare_recipe(loaded, make_console())]
    if as_json:
        print_json({"data": found})
    elif found:
        print_table([HEADING, *map(_cells, found)])
    else:
        print("there is nothing to prepare: no stage learns from samples that are there before it")


def _described(source: "PreparedSource") -> dict[str, Any]:
    return {
        "stage": source.stage,
        "name": source.name,
        "path": source.data.path,
        "made": source.made,
        "key": source.prepared.key,
        "counts": source.prepared.report,
        "skipped": source.prepared.skipped,
    }


def _cells(found: dict[str, Any]) -> tuple[str, ...]:
    from hone.data.prepared import LEFT_OUT

    counts = found["counts"]
    return (
        found["stage"],
        found["name"],
        number(counts["samples"]),
        number(counts["tokens"]),
        number(counts["trained_tokens"]),
        number(counts["truncated"]),
        number(sum(counts[name] for name in LEFT_OUT)),
        "made" if found["made"] else "kept",
        found["path"],
    )
