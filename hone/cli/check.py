"""`hone check`: what is wrong with a recipe, its data and its model, before any training."""

from typing import TYPE_CHECKING, Any

from hone.cli.arguments import AsJson, Overrides, Recipe
from hone.cli.output import print_json
from hone.errors import UserError

if TYPE_CHECKING:
    from hone.recipe.load import LoadedRecipe
    from hone.stages.run import Finding


def check(recipe: Recipe, overrides: Overrides = None, as_json: AsJson = False) -> int:
    """Find what is wrong with a recipe.

    Keys and values first, all faults at once; then the data, the model's files and what they need.
    Exit code 0: nothing wrong, 2: the recipe is wrong, 1: it cannot be carried out.

    \b
    Example:
      hone check recipe.yaml
      hone check recipe.yaml sft.steps=50 --json
    """
    from hone.recipe.load import load_recipe

    try:
        loaded = load_recipe(recipe, overrides or [])
    except UserError as error:
        if not as_json:
            raise
        fault = {"severity": "error", "message": error.message, "hint": error.hint}
        print_json({"ok": False, "findings": [fault]})
        return error.exit_code
    from hone.stages.run import check_recipe

    findings = check_recipe(loaded)
    if all(finding.severity != "error" for finding in findings):
        findings += _check_memory(loaded)
    ok = all(finding.severity != "error" for finding in findings)
    if as_json:
        print_json({"ok": ok, "findings": [_as_json(finding) for finding in findings]})
    else:
        for finding in findings:
            print(f"{finding.severity}: {finding.message}")
            if finding.hint:
                print(f"  hint: {finding.hint}")
        print(f"{recipe}: {'nothing is wrong' if ok else 'this cannot be carried out'}")
    return 0 if ok else 1


def _check_memory(loaded: "LoadedRecipe") -> "list[Finding]":
    from hone.estimate.fitting import check_memory
    from hone.stages.run import Finding

    try:
        return [Finding("note", note) for note in check_memory(loaded, with_data=True)]
    except UserError as error:
        return [Finding("error", error.message, error.hint)]


def _as_json(finding: "Finding") -> dict[str, Any]:
    return {"severity": finding.severity, "message": finding.message, "hint": finding.hint}
