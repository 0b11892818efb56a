"""`hone check`: what is wrong with a recipe, its data and its model, before any training."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hone.cli.arguments import AsJson, Overrides, Recipe
from hone.cli.output import make_console, print_json
from hone.errors import UserError

if TYPE_CHECKING:
    from hone.recipe.load import LoadedRecipe
    from hone.rehearsal.rehearse import Rehearsal
    from hone.stages.run import Finding


def check(
    recipe: Recipe,
    overrides: Overrides = None,
    rehearse: Annotated[
        bool,
        typer.Option(
            "--rehearse", help="Also play every stage for two steps on a few rows of its data."
        ),
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Find what is wrong with a recipe.

    Keys and values first, all faults at once; then the data, the model's files and what they need.
    With --rehearse, where nothing is wrong so far: steps of the real size, a save, a resume, an
    evaluation and an answer of the result, stage after stage, and how long the run will take.
    Exit code 0: nothing wrong, 2: the recipe is wrong, 1: it cannot be carried out.

    \b
    Example:
      hone check recipe.yaml
      hone check recipe.yaml --rehearse
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
    findings = find_all(loaded)
    rehearsal = None
    if rehearse and _is_well(findings):
        rehearsal = _rehearse(loaded)
        findings += rehearsal.findings
    ok = _is_well(findings)
    if as_json:
        found: dict[str, Any] = {"ok": ok, "findings": [_as_json(each) for each in findings]}
        if rehearse:
            found["rehearsal"] = rehearsal.as_json() if rehearsal else None
        print_json(found)
    else:
        for finding in findings:
            print(f"{finding.severity}: {finding.message}")
            if finding.hint:
                print(f"  hint: {finding.hint}")
        if rehearsal:
            print(f"rehearsed in {rehearsal.seconds:.0f} s")
        elif rehearse:
            print("not rehearsed, for what is wrong already")
        print(f"{recipe}: {'nothing is wrong' if ok else 'this cannot be carried out'}")
    return 0 if ok else 1


def find_all(loaded: "LoadedRecipe") -> "list[Finding]":
    """What is wrong with data and model; where nothing is, whether the memory will suffice."""
    from hone.stages.run import check_recipe

    findings = check_recipe(loaded)
    return findings + _check_memory(loaded) if _is_well(findings) else findings


def _is_well(findings: "list[Finding]") -> bool:
    return all(finding.severity != "error" for finding in findings)


def _rehearse(loaded: "LoadedRecipe") -> "Rehearsal":
    from hone.rehearsal.rehearse import rehearse

    with make_console().status("rehearsing") as status:
        return rehearse(loaded, lambda text: status.update(f"rehearsing: {text}"))


def _check_memory(loaded: "LoadedRecipe") -> "list[Finding]":
    from hone.estimate.fitting import check_memory
    from hone.stages.run import Finding

    try:
        return [Finding("note", note) for note in check_memory(loaded, with_data=True)]
    except UserError as error:
        return [Finding("error", error.message, error.hint)]


def _as_json(finding: "Finding") -> dict[str, Any]:
    return {"severity": finding.severity, "message": finding.message, "hint": finding.hint}
