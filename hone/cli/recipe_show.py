"""`hone recipe show`: a profile or a whole recipe, each value with its help."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hone.cli.arguments import AsJson, Overrides
from hone.cli.completion import complete_profiles
from hone.cli.output import print_json, print_table
from hone.errors import UserError

if TYPE_CHECKING:
    from hone.recipe.profiles import Profile

HEADING = ("PROFILE", "WHAT FOR")
METHOD = "sft"  # has all the keys that a profile may have


def show(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="PROFILE|RECIPE",
            help="A profile's name or file, or a recipe; left out: list the profiles.",
            autocompletion=complete_profiles,
        ),
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Print a profile, or a recipe with all its values.

    Each value stands below its help; those of a recipe are followed by where they are from. What
    is printed can be saved and used: a profile as a profile, a recipe as a recipe.

    \b
    Example:
      hone recipe show
      hone recipe show chat > my-profile.yaml
      hone recipe show recipe.yaml sft.steps=50
    """
    from hone.recipe.profiles import find_profile, open_profile, profile_names

    if name is None:
        _list([open_profile(each) for each in profile_names()], as_json)
        return
    file = find_profile(name, [Path()])
    if file is not None and _is_recipe(file):
        _show_recipe(Path(name), overrides or [], as_json)
        return
    if overrides:
        message = f"`{overrides[0]}`: a profile is shown as it is; expected a recipe before it"
        raise UserError(message, hint=f"hone recipe show {name}", exit_code=2)
    _show_profile(open_profile(name, METHOD, file), as_json)


def _list(profiles: "list[Profile]", as_json: bool) -> None:
    if as_json:
        print_json([{"name": each.name, "summary": each.summary} for each in profiles])
    else:
        print_table([HEADING, *((each.name, each.summary) for each in profiles)])


def _is_recipe(file: Path) -> bool:
    """True for a file with keys of a recipe's top level; a profile has those of a stage."""
    from hone.recipe.document import read_document
    from hone.recipe.faults import Origin
    from hone.recipe.text import read_text

    value = read_document(read_text(file), Origin(str(file), 1)).value
    return isinstance(value, dict) and bool(value.keys() & {"model", "stages"})


def _show_recipe(path: Path, overrides: list[str], as_json: bool) -> None:
    from hone.cli.resolved import help_in, resolved_lines
    from hone.recipe.load import describe_resolved, load_recipe

    loaded = load_recipe(path, overrides)
    if as_json:
        values = [
            {"key": key, "value": value, "origin": origin}
            for key, value, origin in describe_resolved(loaded)
        ]
        print_json({"recipe": loaded.resolved, "values": values})
    else:
        lines = resolved_lines(loaded.resolved, loaded.origins, help_in(loaded.resolved))
        print("\n".join(lines))


def _show_profile(profile: "Profile", as_json: bool) -> None:
    from hone.cli.resolved import help_in, resolved_lines
    from hone.recipe.faults import raise_faults

    raise_faults(profile.faults, hint="`hone recipe schema` lists every key with its meaning")
    if as_json:
        shown: dict[str, Any] = {"name": profile.name, "summary": profile.summary}
        print_json({**shown, "settings": profile.settings})
        return
    recipe = {"stages": [{METHOD: profile.settings}]}
    if profile.summary:
        print(f"# {profile.summary}")
    lines = resolved_lines(profile.settings, None, help_in(recipe, ("stages", 0, METHOD)))
    print("\n".join(lines))
