"""`hone data show`: samples as the model will see them, trained tokens marked, and the counts."""

from typing import TYPE_CHECKING, Annotated

import typer

from hone.cli.arguments import AsJson, Overrides, Recipe
from hone.cli.output import print_json, print_rich
from hone.errors import UserError

if TYPE_CHECKING:
    from hone.recipe.load import LoadedRecipe


def show(
    recipe: Recipe,
    overrides: Overrides = None,
    stage: Annotated[
        int, typer.Option("--stage", metavar="N", min=1, help="Which stage's data, from 1.")
    ] = 1,
    data_set: Annotated[
        int | None,
        typer.Option("--set", metavar="N", min=0, help="Of several data sets only data[N]."),
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", metavar="N", min=0, help="How many samples.")
    ] = 3,
    start: Annotated[
        int, typer.Option("--start", metavar="N", min=0, help="The first sample, from 0.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Print samples as the model will see them.

    Trained tokens are coloured; below the samples stand the counts of samples, tokens, trained
    tokens, and of what was cut or left out. Of a stage that learns from its own answers, the
    prompts are shown.

    \b
    Example:
      hone data show recipe.yaml
      hone data show recipe.yaml --stage 2 --samples 1
      hone data show recipe.yaml --set 1
      hone data show recipe.yaml sft.max_tokens=256 --json
    """
    from hone.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    num_stages = len(loaded.recipe.stages)
    if stage > num_stages:
        message = f"`--stage {stage}`: the recipe has {num_stages} stage(s)"
        raise UserError(message, hint=f"hone data show {recipe} --stage {num_stages}", exit_code=2)
    from hone.recipe.policy import Grpo

    if isinstance(loaded.recipe.stages[stage - 1].settings, Grpo):
        _show_prompts(loaded, stage - 1, samples, start, as_json)
        return
    from hone.data.joined import Joined
    from hone.data.show import samples_as_json, show_samples
    from hone.stages.run import prepare_stage

    prepared, tokenizer = prepare_stage(loaded, stage - 1)
    if data_set is not None:
        num_sets = len(prepared.sets)
        if data_set >= num_sets:
            message = f"`--set {data_set}`: the stage has {num_sets} data set(s), from 0"
            raise UserError(message, hint=f"--set {num_sets - 1}", exit_code=2)
        prepared = Joined((prepared.sets[data_set],))
    if as_json:
        shown = samples_as_json(prepared, tokenizer, samples, start)
        print_json({"samples": shown, "counts": prepared.report})
    else:
        print_rich(show_samples(prepared, tokenizer, samples, start))


def _show_prompts(
    loaded: "LoadedRecipe", index: int, count: int, start: int, as_json: bool
) -> None:
    """The prompts of a policy stage; what is trained is sampled later."""
    from rich.text import Text

    from hone.stages.run import stage_tasks
    from hone.stages.tasks import shown

    tasks, tokenizer = stage_tasks(loaded, index)
    prompts = shown(tasks, tokenizer, count, start)
    if as_json:
        counts = {"tasks": len(tasks.questions), "held_out": len(tasks.held_out.questions)}
        print_json({"prompts": prompts, "counts": counts})
        return
    for prompt in prompts:
        place = f", {prompt['place']}" if prompt["place"] else ""
        print_rich(Text(f"task {prompt['task']}{place}, {prompt['num_tokens']} tokens", "bold"))
        print_rich(Text(prompt["text"]))
        if prompt["gold"] is not None:
            print_rich(Text(f"gold answer: {prompt['gold']}", "green"))
        print()
    for line in tasks.describe():
        print(line)
    print("what is trained is sampled: after some steps, see it with `hone rollouts RUN`")
