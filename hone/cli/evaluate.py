"""`hone evaluate`: how well a model answers the questions of a file, with intervals."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hone.cli.arguments import (
    RUNS_FOLDER,
    AsJson,
    Columns,
    Format,
    MaxTokens,
    MinP,
    RepetitionPenalty,
    RunsFolder,
    Seed,
    Stop,
    Temperature,
    TopK,
    TopP,
    complete_runs,
    data_of,
    sampling_settings,
)
from hone.cli.output import make_console, print_json, print_table, say
from hone.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from hone.evaluation.answered import Evaluated
    from hone.evaluation.examples import Question
    from hone.evaluation.opened import Model
    from hone.evaluation.stored import Place, What
    from hone.recipe.data import Data
    from hone.rewards.lane import RewardSource

KIND = "kind"  # a column of this name groups the measures where nobody says otherwise
MOST_GROUPS = 20  # values of such a column


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A run's name or folder, a model's or adapter's folder, or a Hub id.",
            autocompletion=complete_runs,
        ),
    ],
    on: Annotated[
        str | None,
        typer.Option("--on", metavar="FILE", help="The questions: a file, folder or Hub data set."),
    ] = None,
    measure: Annotated[
        str | None,
        typer.Option(
            "--measure", metavar="NAMES", help="What is measured: exact,f1; left out, what fits."
        ),
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option("--stage", metavar="N", help="Of a run: this stage, from 1, or `base`."),
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option("--pattern", metavar="REGEX", help="What the measure `regex` looks for."),
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option("--reward", metavar="FILE.py:NAME", help="A function that scores answers."),
    ] = None,
    environment: Annotated[
        str | None,
        typer.Option(
            "--environment", metavar="YAML", help="Scores answers; without --on, also asks."
        ),
    ] = None,
    format: Format = "auto",
    columns: Columns = None,
    by: Annotated[
        list[str] | None,
        typer.Option("--by", metavar="COLUMN", help="Measure each value of this column, too."),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option("--samples", metavar="N", min=1, help="Ask N of the questions, by the seed."),
    ] = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = 1.0,
    stop: Stop = None,
    seed: Seed = 0,
    batch: Annotated[
        int, typer.Option("--batch", metavar="N", min=1, help="Questions answered together.")
    ] = 32,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.jsonl", help="Where the answers are written."),
    ] = None,
    anew: Annotated[
        bool, typer.Option("--anew", help="Write over what is there, and ask everything again.")
    ] = False,
    runs: RunsFolder = RUNS_FOLDER,
    as_json: AsJson = False,
) -> None:
    """Measure how well a model answers questions.

    Measures: exact, contains, numeric, regex, f1, rouge_1, rouge_2, rouge_l (of answers),
    perplexity, choice and preference (of given texts), reward. Rows are as for training, or have
    the columns prompt and answer, and choices. Answers are kept beside the run, or in
    ./evaluations; called again after a stop, it goes on.

    \b
    Example:
      hone evaluate first --on held_out.jsonl
      hone evaluate first --on questions.csv --measure exact,f1 --columns prompt=question
      hone evaluate first --stage base --on choices.jsonl --by subject
      hone evaluate first --on sums.jsonl --measure regex --pattern '#### (?P<answer>.+)'
      hone evaluate Qwen/Qwen3-0.6B --environment '{type: arithmetic, digits: 3}' --json
    """
    settings = sampling_settings(
        max_tokens, temperature, top_p, top_k, min_p, repetition_penalty, stop
    )
    console = make_console()
    from hone.evaluation.evaluate import check_questions, make_wanted
    from hone.evaluation.opened import open_model, what_of
    from hone.evaluation.resumable import evaluate_into
    from hone.evaluation.stored import check_place

    opened = open_model(model, runs, stage)
    _use_threads(opened)
    rewards = _rewards(opened, reward or [], environment, measure, on)
    data, own_columns = _data(on, format, columns or [])
    questions, chosen = _questions(data, own_columns, rewards, samples, seed)
    names = _measures(measure, questions, rewards)
    wanted = make_wanted(names, pattern, rewards)
    groups = by if by is not None else _usual_groups(questions)
    check_questions(chosen, wanted, groups)
    more = {
        "measures": names,
        "pattern": pattern,
        "columns": own_columns,
        "by": groups,
        "samples": samples,
        "seed": seed,
        "batch": batch,
    }
    what = what_of(opened, data, rewards, settings, more)
    place = _place(opened, data, rewards, out, what, anew, console)
    with place.lock():
        if not anew:
            check_place(place, what)
        found = evaluate_into(place, what, opened, chosen, wanted, settings, console, anew=anew)
    if as_json:
        print_json({"path": str(place.lines), "what": what, **found.as_json()})
    else:
        _print(found)
        say(console, f"answers: {place.lines}")


def _use_threads(opened: "Model") -> None:
    """A run computes with as many threads as it was trained with."""
    if opened.run is not None:
        from hone.device import use_threads

        use_threads(opened.run.read_lock_json()["threads"])


def _rewards(
    opened: "Model",
    functions: "Sequence[str]",
    environment: str | None,
    measure: str | None,
    on: str | None,
) -> "list[RewardSource]":
    """What scores answers: what is named, else what the run's recipe has, if it is asked for."""
    from hone.evaluation.opened import rewards_of
    from hone.recipe.load import load_environment
    from hone.recipe.rewards import OWN_CODE, Reward

    named: list[RewardSource] = []
    if environment is not None:
        named.append(load_environment(environment))
    for function in functions:
        if not OWN_CODE.fullmatch(function):
            message = f"`--reward {function}`: expected a name in a Python file"
            raise UserError(message, hint="--reward reward.py:distinct", exit_code=2)
        named.append(Reward(function=str(Path(function).absolute())))
    asked = measure is not None and "reward" in measure.split(",")
    if not named and opened.run is not None and (asked or (on is None and measure is None)):
        return rewards_of(opened.run.loaded_recipe().recipe)
    return named


def _data(
    on: str | None, format: str, columns: "Sequence[str]"
) -> "tuple[Data | None, dict[str, str]]":
    """The data, and the columns that only an evaluation reads."""
    own = [each for each in columns if each.partition("=")[0] in ("answer", "choices")]
    rest = [each for each in columns if each not in own]
    if on is None:
        if format != "auto" or columns:
            message = "`--format` and `--columns` are of a file"
            raise UserError(message, hint="name it: --on FILE", exit_code=2)
        return None, {}
    named = {}
    for each in own:
        key, _, name = each.partition("=")
        if not name:
            message = f"`--columns {each}`: expected KEY=NAME"
            raise UserError(message, hint=f"--columns {key}=gold", exit_code=2)
        named[key] = name
    return data_of(on, format, rest), named


def _questions(
    data: "Data | None",
    own_columns: dict[str, str],
    rewards: "list[RewardSource]",
    samples: int | None,
    seed: int,
) -> "tuple[list[Question], list[Question]]":
    """All questions, and those that are asked."""
    from hone.environments import make_environment
    from hone.evaluation.examples import AnswerColumns, choose, questions_of, read_questions
    from hone.recipe.rewards import Reward

    if data is not None:
        questions = read_questions(data, AnswerColumns(**own_columns), bare=bool(rewards))
    elif rewards and not isinstance(rewards[0], Reward):
        questions = questions_of(make_environment(rewards[0]))
    else:
        raise UserError(
            "there is nothing to ask; expected --on FILE, or --environment",
            hint="hone evaluate MODEL --on questions.jsonl",
            exit_code=2,
        )
    return questions, choose(questions, samples, seed)


def _measures(
    measure: str | None, questions: "Sequence[Question]", rewards: "list[RewardSource]"
) -> list[str]:
    from hone.evaluation.evaluate import usual_measures

    if measure is None:
        return ["reward"] if rewards else usual_measures(questions)
    names = list(dict.fromkeys(name.strip() for name in measure.split(",")))
    return [*names, "reward"] if rewards and "reward" not in names else names


def _usual_groups(questions: "Sequence[Question]") -> list[str]:
    """The column `kind`, where every row has one of few."""
    kinds = {str(question.columns.get(KIND)) for question in questions}
    there = all(question.columns.get(KIND) is not None for question in questions)
    return [KIND] if there and 1 < len(kinds) <= MOST_GROUPS else []


def _place(
    opened: "Model",
    data: "Data | None",
    rewards: "list[RewardSource]",
    out: Path | None,
    what: "What",
    anew: bool,
    console: "Console",
) -> "Place":
    """Where the answers go."""
    from hone.evaluation.stored import Place, find_place

    if out is not None:
        if out.suffix != ".jsonl":
            message = f"`--out {out}`: expected a file that ends in .jsonl"
            raise UserError(message, hint=f"--out {out.with_suffix('.jsonl')}", exit_code=2)
        return Place(out)
    asked = Path(data.path.rstrip("/")).stem if data else getattr(rewards[0], "type", "reward")
    folder, name = opened.evaluations(asked)
    if anew:
        return Place(folder / f"{name}.jsonl")
    place, differences = find_place(folder, name, what)
    if differences:
        say(console, f"writing {place.lines}, since an earlier evaluation differs:")
        for each in differences:
            say(console, f"  {each}")
    return place


def _print(found: "Evaluated") -> None:
    rows = [("", "MEAN", "95 % INTERVAL", "N")]
    groups = [("", found.measures)]
    groups += [
        (f"{column} {value}", measures)
        for column, values in found.by.items()
        for value, measures in values.items()
    ]
    for title, measures in groups:
        for name, each in measures.items():
            interval = f"{each.low:.4g} to {each.high:.4g}"
            rows.append(
                (f"{title}  {name}".strip(), f"{each.mean:.4g}", interval, f"{each.count:,}")
            )
    print_table(rows)
    if found.failures:
        print(f"not scored: {found.failures:,} answers; `failure` in the file of answers says why")
