"""`hone recipe schema`: what may stand in a recipe, for editors and other programs."""

from hone.cli.output import print_json


def schema() -> None:
    """Print a recipe's JSON Schema.

    Editors complete and check a recipe with it: put the line
    `# yaml-language-server: $schema=recipe.schema.json` at the top of the recipe.

    \b
    Example:
      hone recipe schema > recipe.schema.json
    """
    from hone.recipe.load import json_schema

    print_json(json_schema())
