"""`hone rollouts`: what a model has answered while it was trained, and what came of it."""

from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hone.cli.arguments import RUNS_FOLDER, AsJson, RunName, RunsFolder
from hone.cli.output import number, print_json, print_rich
from hone.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from hone.recorded import Rollout, RolloutFile
    from hone.runs import Run

SHOWN = 240  # characters of a text, unless all of it is asked for
NEWLINE = "↵"


class Sort(StrEnum):
    """What rollouts can be sorted by; the largest comes first."""

    STEP = "step"
    REWARD = "reward"
    ADVANTAGE = "advantage"
    LENGTH = "length"


def rollouts(
    run: RunName,
    sort: Annotated[Sort, typer.Option("--sort", help="What is sorted by.")] = Sort.STEP,
    reverse: Annotated[
        bool, typer.Option("--reverse", help="The smallest first; of steps, the earliest.")
    ] = False,
    step: Annotated[
        int | None, typer.Option("--step", metavar="N", min=0, help="Only those of this step.")
    ] = None,
    stage: Annotated[
        int | None, typer.Option("--stage", metavar="N", min=1, help="Only this stage, from 1.")
    ] = None,
    task: Annotated[
        int | None, typer.Option("--task", metavar="N", min=0, help="Only answers to this task.")
    ] = None,
    failed: Annotated[
        bool, typer.Option("--failed", help="Only those that could not be scored.")
    ] = False,
    min_reward: Annotated[
        float | None, typer.Option("--min-reward", metavar="X", help="Only those with at least X.")
    ] = None,
    evaluation: Annotated[
        bool, typer.Option("--evaluation", help="Answers to held-out tasks instead.")
    ] = False,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, help="At most so many.")
    ] = 20,
    full: Annotated[bool, typer.Option("--full", help="Show texts whole.")] = False,
    runs: RunsFolder = RUNS_FOLDER,
    as_json: AsJson = False,
) -> None:
    """Show what a run's model has answered.

    The newest stand first. A run may be working: what is not scored yet is not shown.

    \b
    Example:
      hone rollouts first
      hone rollouts first --sort reward --limit 5 --full
      hone rollouts first --step 10 --failed
      hone rollouts first --json
    """
    from hone.runs import open_run

    found = open_run(run, runs)
    kind = "evaluation" if evaluation else "step"
    files = [
        each for each in _files(found, stage) if each.kind == kind and step in (None, each.step)
    ]

    def wanted(rollout: "Rollout") -> bool:
        return (
            task in (None, rollout.task)
            and (rollout.failure is not None or not failed)
            and (min_reward is None or (rollout.total is not None and rollout.total >= min_reward))
        )

    chosen = _chosen(files, wanted, sort, reverse, limit)
    if as_json:
        print_json([{"stage": stage_name, **_as_json(each)} for stage_name, each in chosen])
    elif chosen:
        print_rich(_table(chosen, full))
    else:
        print("no rollout is like that; leave an option out, or see: hone show " + found.reference)


def _files(run: "Run", stage: int | None) -> list["RolloutFile"]:
    """The files of a run or of one of its stages; raises UserError where there are none."""
    from hone.recorded import list_rollout_files

    folders = run.stage_folders()
    if stage is not None:
        folders = [each for each in folders if each.name.startswith(f"{stage}-")]
    files = list_rollout_files(folders)
    if not files:
        where = "it" if stage is None else f"its stage {stage}"
        raise UserError(
            f"the run `{run.name}` has no rollouts: {where} has not sampled anything",
            hint=f"hone show {run.reference}",
        )
    return files


def _chosen(
    files: list["RolloutFile"], wanted: Any, sort: Sort, reverse: bool, limit: int
) -> list[tuple[str, "Rollout"]]:
    """(stage, rollout), sorted; files are not read any more once there are enough."""

    def read() -> Iterator[tuple[str, "Rollout"]]:
        for file in files if reverse else reversed(files):
            yield from ((file.stage, each) for each in file.read() if wanted(each))

    if sort is Sort.STEP:
        return [each for each, _ in zip(read(), range(limit), strict=False)]
    known = [(key, pair) for pair in read() if (key := _key(pair[1], sort)) is not None]
    known.sort(key=lambda each: each[0], reverse=not reverse)
    return [pair for _, pair in known[:limit]]


def _key(rollout: "Rollout", sort: Sort) -> float | None:
    """What a rollout is sorted by; None where it has no such thing."""
    if sort is Sort.LENGTH:
        return len(rollout.ids)
    return rollout.total if sort is Sort.REWARD else rollout.advantage


def _table(chosen: list[tuple[str, "Rollout"]], full: bool) -> "Table":
    from rich import box
    from rich.table import Table

    several = len({stage for stage, _ in chosen}) > 1
    names = list(dict.fromkeys(name for _, rollout in chosen for name in rollout.rewards))
    table = Table(box=box.SIMPLE_HEAD, show_lines=full, padding=(0, 1), header_style="bold")
    for heading in (*(["STAGE"] if several else []), "STEP", "TASK"):
        table.add_column(heading, justify="left" if heading == "STAGE" else "right")
    for heading in ("REWARD", *(names if len(names) > 1 else []), "ADVANTAGE", "TOKENS"):
        table.add_column(heading, justify="right")
    table.add_column("PROMPT", ratio=2, overflow="fold")
    table.add_column("COMPLETION", ratio=3, overflow="fold")
    for stage, rollout in chosen:
        cells: list[str | Text] = [stage] if several else []
        cells += [str(rollout.step), str(rollout.task), number(rollout.total)]
        cells += [number(rollout.rewards.get(name)) for name in names if len(names) > 1]
        cells += [_advantage(rollout), f"{len(rollout.ids):,}"]
        table.add_row(*cells, _text(rollout.prompt, full, "dim"), _completion(rollout, full))
    return table


def _advantage(rollout: "Rollout") -> "Text":
    from rich.text import Text

    if rollout.advantage is None:
        return Text("-", style="dim")
    style = "green" if rollout.advantage > 0 else "red" if rollout.advantage < 0 else "dim"
    return Text(f"{rollout.advantage:+.3g}", style=style)


def _completion(rollout: "Rollout", full: bool) -> "Text":
    """The text, with what became of it where that is not the usual."""
    shown = _text(rollout.text, full, "")
    if rollout.finish == "length":
        shown.append(" [cut off]", style="yellow")
    if rollout.left_out and rollout.left_out != "cut off":
        shown.append(f" [left out: {rollout.left_out}]", style="yellow")
    if rollout.failure:
        shown.append(f" [failed: {rollout.failure}]", style="bold red")
    return shown


def _text(text: str, full: bool, style: str) -> "Text":
    from rich.text import Text

    plain = text if full else text.replace("\n", NEWLINE)
    if not full and len(plain) > SHOWN:
        plain = f"{plain[: SHOWN // 2]} ... {plain[-SHOWN // 2 :]}"
    visible = "".join(
        c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in plain
    )
    return Text(visible, style=style)


def _as_json(rollout: "Rollout") -> dict[str, Any]:
    import json

    table: dict[str, Any] = json.loads(rollout.as_line())
    return table
