"""`hone quickstart`: the whole way once, from nothing to a fine-tuned model that answers.

Everything is a run like any other: `corpus.py` makes the data, `recipe.yaml` is the recipe, and the
answers come from the saved results, loaded again in fresh processes. Called again in the same
folder it goes on where it was stopped.
"""

import json
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hone.errors import UserError
from hone.evaluate import Evaluation, Score, ask_in_fresh_process
from hone.files import write_json
from hone.metrics import read_metrics
from hone.plots import plot_losses
from hone.quickstart.corpus import KINDS, CorpusFiles, write_corpus
from hone.recipe.load import load_recipe
from hone.runs import Run, create_run
from hone.signals import StopRequested

SEED = 0
NAME = "quickstart"
EXAMPLES_PER_KIND = 2


def run_quickstart(
    folder: Path, *, console: Console, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Make the data, train, ask before and after; returns what is written to summary.json.

    Raises UserError for a folder with other things in it.
    """
    began = time.monotonic()
    files = prepare_folder(folder, console)
    run = open_or_create(folder, files, overrides)
    if not run.done:
        train(run, folder, console)
    before = ask(run, 0, files, "before fine-tuning", console)
    after = ask(run, 1, files, "after fine-tuning", console)
    plot = folder / "loss.png"
    plot_losses(
        {
            stage.name.partition("-")[2]: read_metrics(stage / "metrics.jsonl")
            for stage in run.stage_folders()
        },
        plot,
    )
    summary = {
        "before": {kind: vars(score) for kind, score in before.scores.items()},
        "after": {kind: vars(score) for kind, score in after.scores.items()},
        "seconds": round(time.monotonic() - began, 1),
        "peak_memory_bytes": peak_memory_bytes(),
    }
    write_json(folder / "summary.json", summary)
    show(files, before, after, console)
    say_where(folder, run, plot, summary, console)
    return summary


def prepare_folder(folder: Path, console: Console) -> CorpusFiles:
    """Write the corpus; a folder with other things in it is refused."""
    known = {"pretrain.jsonl", "sft.jsonl", "evaluation.jsonl", "recipe.yaml", "runs"}
    known |= {"loss.png", "summary.json"}
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
        return write_corpus(folder, SEED)


def open_or_create(folder: Path, files: CorpusFiles, overrides: Sequence[str]) -> Run:
    """The run of an earlier call, or a new one."""
    path = folder / "runs" / NAME
    if (path / "recipe.resolved.json").exists():
        return Run(path.resolve())
    return create_run(load_recipe(files.recipe, overrides), NAME, folder / "runs")


def train(run: Run, folder: Path, console: Console) -> None:
    """Both stages, with the state of the run kept as for `hone run`."""
    again = f"go on with: hone quickstart --folder {folder}"
    try:
        with run.attempt():
            from hone.stages.run import run_recipe

            run_recipe(run, console=console)
    except StopRequested as stop:
        console.print(f"{stop}; {again}", highlight=False, soft_wrap=True)
        raise


def ask(run: Run, stage: int, files: CorpusFiles, title: str, console: Console) -> Evaluation:
    """The held-out questions, put to the saved result of a stage in a fresh process."""
    with console.status(f"asking held-out questions {title}"):
        return ask_in_fresh_process(run.path, stage, files.evaluation)


def peak_memory_bytes() -> int:
    """The most memory that this process or one it started has held."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(one).ru_maxrss for one in who) * 1024


def show(files: CorpusFiles, before: Evaluation, after: Evaluation, console: Console) -> None:
    """Accuracy and some answers, before and after."""
    table = Table(title="held-out questions answered exactly (95 % interval)", title_justify="left")
    for name in ("", "before", "after", "questions"):
        table.add_column(name, justify="left" if not name else "right")
    for kind in (*KINDS, "all"):
        scores = before.scores[kind], after.scores[kind]
        table.add_row(kind, *map(in_words, scores), str(scores[0].total))
    console.print(table)
    answers = Table(title="some of the answers", title_justify="left")
    for name in ("asked", "right", "before", "after"):
        answers.add_column(name, overflow="fold")
    rows = [json.loads(line) for line in files.evaluation.read_text().splitlines()]
    for kind in KINDS:
        chosen = [n for n, row in enumerate(rows) if row["kind"] == kind][:EXAMPLES_PER_KIND]
        for n in chosen:
            texts = (rows[n]["prompt"], rows[n]["answer"], before.answers[n], after.answers[n])
            answers.add_row(*(json.dumps(text, ensure_ascii=False)[1:-1] for text in texts))
    console.print(answers)


def in_words(score: Score) -> str:
    """A share with its interval."""
    return f"{score.share:.0%} ({score.low:.0%} to {score.high:.0%})"


def say_where(
    folder: Path, run: Run, plot: Path, summary: dict[str, Any], console: Console
) -> None:
    """Time, memory, where everything is and what to type next."""
    memory = summary["peak_memory_bytes"] / 1e9
    result = run.stage_folders()[-1] / "model"
    for line in (
        f"took {summary['seconds']:.0f} s and at most {memory:.2f} GB",
        f"recipe       {folder / 'recipe.yaml'}",
        f"run          {run.path}",
        f"result       {result}",
        f"loss plot    {plot}",
        f"numbers      {folder / 'summary.json'}",
        f"talk to it:  hone chat {run.reference}",
        f'ask it:      hone generate {run.reference} --prompt "What is the capital of Peru?"',
    ):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
