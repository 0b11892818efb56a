"""`hone quickstart`: the whole way once, from nothing to a model that answers, is preferred and has
practised.

Everything is a run like any other: `corpus.py` makes the data, `recipe.yaml` is the recipe, and
answers and verdicts come from the saved results, loaded again in fresh processes. Called again in
the same folder it goes on where it was stopped.
"""

import json
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from hone.errors import UserError
from hone.files import write_json
from hone.intervals import Measure
from hone.metrics import read_metrics
from hone.plots import LOSS, Curve, plot_stages
from hone.quickstart.asking import (
    Evaluation,
    ask_in_fresh_process,
    find_environment,
    most_reward,
)
from hone.quickstart.corpus import EVALUATION_QUESTIONS, FILES, CorpusFiles, write_corpus
from hone.quickstart.questions import KINDS
from hone.recipe.load import load_recipe
from hone.report.write import RESULT
from hone.runs import Run, create_run
from hone.signals import StopRequested
from hone.verify.fresh import verify_in_fresh_process

SEED = 0
NAME = "quickstart"
PLOT, SUMMARY = "curves.png", "summary.json"
EXAMPLES_PER_KIND = 2
CURVES = {
    "dpo": Curve("accuracy", "pairs told apart (share)"),
    "grpo": Curve("reward", "mean reward"),
}
ROWS = {
    **{f"accuracy/{kind}": f"{kind} right" for kind in KINDS},
    "accuracy": "all right",
    "format": "well formed",
    "preference": "pairs preferred",
    "reward": "mean reward",
}
TITLE = "held-out questions after each stage, in % (95 % bootstrap intervals)"
CAPTION = """\
Greedy answers of each saved result, loaded again in a fresh process.
right            what the answer says, however it is worded
well formed      it ends with "Happy to help!", as the preferred ones do
pairs preferred  the preferred one of two right answers is likelier: by its
                 whole log-probability, summed over tokens, without a reference
mean reward      of the sums, by the recipe's environment; 100 % is {most:g}
"""


def run_quickstart(
    folder: Path,
    *,
    console: Console,
    overrides: Sequence[str] = (),
    questions: Mapping[str, int] = EVALUATION_QUESTIONS,
) -> dict[str, Any]:
    """Make the data, train, ask after each stage; returns what is written to summary.json.

    questions: how many of each kind are asked. Raises UserError for a folder with other things in
    it.
    """
    began = time.monotonic()
    files = prepare_folder(folder, questions, console)
    run = open_or_create(folder, files, overrides)
    if not run.done:
        train(run, folder, console)
    evaluations = ask(run, files, console)
    environment = find_environment(run.loaded_recipe().recipe)
    assert environment is not None, "the quickstart's recipe has a stage with an environment"
    most = most_reward(environment)
    plot(run, evaluations, most, folder / PLOT)
    verified = verify(run, console)
    summary = {
        "stages": {
            method: {name: asdict(measure) for name, measure in evaluation.measures.items()}
            for method, evaluation in evaluations.items()
        },
        "most_reward": most,
        "verified": verified,
        "seconds": round(time.monotonic() - began, 1),
        "peak_memory_bytes": peak_memory_bytes(),
    }
    write_json(folder / SUMMARY, summary)
    show(files, evaluations, most, console)
    say_where(folder, run, summary, console)
    return summary


def prepare_folder(folder: Path, questions: Mapping[str, int], console: Console) -> CorpusFiles:
    """Write the corpus; a folder with other things in it is refused."""
    known = {*FILES, "runs", PLOT, SUMMARY}
    if folder.exists() and not folder.is_dir():
        raise UserError(
            f"`{folder}` is a file, expected a folder",
            hint="hone quickstart --folder try",
            exit_code=2,
        )
    found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if others := sorted(name for name in found - known if not name.startswith(".")):
        raise UserError(
            f"`{folder}` holds other things ({', '.join(others[:5])})",
            hint=f"name a new folder: hone quickstart --folder {folder}-2",
            exit_code=2,
        )
    console.print(f"quickstart in {folder.resolve()}", highlight=False, soft_wrap=True)
    with console.status("making the corpus"):
        return write_corpus(folder, SEED, questions)


def open_or_create(folder: Path, files: CorpusFiles, overrides: Sequence[str]) -> Run:
    """The run of an earlier call, or a new one."""
    path = folder / "runs" / NAME
    if (path / "recipe.resolved.json").exists():
        return Run(path.resolve())
    return create_run(load_recipe(files.recipe, overrides), NAME, folder / "runs")


def train(run: Run, folder: Path, console: Console) -> None:
    """All stages, with the state of the run kept as for `hone run`."""
    again = f"go on with: hone quickstart --folder {folder}"
    try:
        with run.attempt():
            from hone.stages.run import run_recipe

            run_recipe(run, console=console)
    except StopRequested as stop:
        console.print(f"{stop}; {again}", highlight=False, soft_wrap=True)
        raise


def ask(run: Run, files: CorpusFiles, console: Console) -> dict[str, Evaluation]:
    """The held-out questions, put to the saved result of each stage in a fresh process."""
    methods = [stage.name.partition("-")[2] for stage in run.stage_folders()]
    with console.status("asking held-out questions after each stage"):
        found = ask_in_fresh_process(run.path, files.evaluation)
    return dict(zip(methods, found, strict=True))


def verify(run: Run, console: Console) -> dict[str, Any]:
    """Whether verification passed, and the status of each check; made only once."""
    if run.lacks_verdicts():
        verify_in_fresh_process(run, console)
    verdicts = run.verdicts()
    assert verdicts is not None, "the quickstart's recipe asks for it"
    checks = {check["name"]: check["status"] for check in verdicts["checks"]}
    return {"passed": verdicts["passed"], "checks": checks}


def plot(run: Run, evaluations: Mapping[str, Evaluation], most: float, path: Path) -> None:
    """The stages' curves and, below, what was measured after each."""
    measured = {ROWS[name]: shares for name, shares in by_measure(evaluations, most).items()}
    curves = {
        method: (read_metrics(stage / "metrics.jsonl"), CURVES.get(method, LOSS))
        for method, stage in zip(evaluations, run.stage_folders(), strict=True)
    }
    plot_stages(curves, measured, path)


def by_measure(evaluations: Mapping[str, Evaluation], most: float) -> dict[str, list[Measure]]:
    """For each name of `ROWS` a share a stage; of rewards, of the most there is."""
    found = {name: [each.measures[name] for each in evaluations.values()] for name in ROWS}
    found["reward"] = [
        Measure(each.mean / most, each.low / most, each.high / most, each.count)
        for each in found["reward"]
    ]
    return found


def peak_memory_bytes() -> int:
    """The most memory that this process or one it started has held."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(one).ru_maxrss for one in who) * 1024


def show(
    files: CorpusFiles, evaluations: Mapping[str, Evaluation], most: float, console: Console
) -> None:
    """What was measured after each stage, and some answers."""
    table = Table(title=TITLE, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for method in evaluations:
        table.add_column(method, justify="right")
    table.add_column("n", justify="right")
    for name, shares in by_measure(evaluations, most).items():
        table.add_row(ROWS[name], *map(in_words, shares), str(shares[0].count))
    console.print(table)
    console.print(CAPTION.format(most=most), style="italic", highlight=False)
    answers = Table(title="some of the answers", title_justify="left")
    for name in ("asked", "right", *evaluations):
        answers.add_column(name, overflow="fold")
    rows = [json.loads(line) for line in files.evaluation.read_text().splitlines()]
    for kind in KINDS:
        chosen = [n for n, row in enumerate(rows) if row["kind"] == kind][:EXAMPLES_PER_KIND]
        for n in chosen:
            given = (evaluation.answers[n] for evaluation in evaluations.values())
            texts = (rows[n]["prompt"], rows[n]["answer"], *given)
            answers.add_row(*(json.dumps(text, ensure_ascii=False)[1:-1] for text in texts))
    console.print(answers)


def in_words(share: Measure) -> str:
    """A share in per cent with its interval, if that has a width: 97 (92-99)."""
    mean, low, high = (f"{100 * value:.0f}" for value in (share.mean, share.low, share.high))
    return mean if low == high else f"{mean} ({low}-{high})"


def say_where(folder: Path, run: Run, summary: dict[str, Any], console: Console) -> None:
    """Time, memory, where everything is and what to type next."""
    memory = summary["peak_memory_bytes"] / 1e9
    result = run.stage_folders()[-1] / "model"
    for line in (
        f"took {summary['seconds']:.0f} s and at most {memory:.2f} GB",
        f"recipe       {folder / 'recipe.yaml'}",
        f"run          {run.path}",
        f"result       {result}",
        f"plot         {folder / PLOT}",
        f"report       {run.path / RESULT}",
        f"numbers      {folder / SUMMARY}",
        f"talk to it:  hone chat {run.reference}",
        f'ask it:      hone generate {run.reference} --prompt "What is the capital of Peru?"',
    ):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
