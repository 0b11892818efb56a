"""Answers before and after, and some rollouts: what a reader believes more than a number.

Answers come from verify/answers.json, which `hone verify` writes; rollouts from the stages' own
files, of which only the few that are shown are read. Called by `collect.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hone.files import read_json
from hone.metrics import Row, read_metrics
from hone.recorded import Rollout, RolloutFile, groups_of, has_spread, list_rollout_files
from hone.report import words
from hone.runs import Run

ANSWERS = Path("verify", "answers.json")
MOST_ANSWERS = 12  # of a stage
MOST_COMPLETIONS = 8  # of a group
MOST_UNSCORED = 2  # groups
LONGEST = 400  # characters of a completion


@dataclass(frozen=True)
class Answer:
    """A held-out prompt with what was expected and the two answers. rejected: the worse one of a
    pair.
    """

    prompt: str
    expected: str
    before: str
    after: str
    score_before: float | None
    score_after: float | None
    rejected: str

    @property
    def as_expected(self) -> bool:
        """True where the result answers word for word what was expected."""
        return bool(self.expected) and self.after == self.expected


@dataclass(frozen=True)
class Completion:
    """What became of one completion, in words."""

    text: str
    reward: float | None
    advantage: float | None
    tokens: int
    notes: list[str]
    failure: str


@dataclass(frozen=True)
class GroupShown:
    """The completions of one prompt. title: when, and why it is shown."""

    title: str
    prompt: str
    completions: list[Completion]
    left_out: int


@dataclass(frozen=True)
class Examples:
    """What there is of a stage. failure: why its answers could not be made."""

    stage: str
    answers: list[Answer]
    groups: list[GroupShown]
    failure: str = ""


def collect_answers(run: Path) -> list[Examples]:
    """The answers of each stage that has some."""
    table = read_json(run / ANSWERS) or {}
    found = []
    for stage in table.get("stages", []):
        rows = [_answer(row) for row in stage.get("rows", [])[:MOST_ANSWERS]]
        found.append(Examples(str(stage.get("stage")), rows, [], str(stage.get("failure") or "")))
    return found


def _answer(row: dict[str, Any]) -> Answer:
    texts = ("prompt", "expected", "before", "after", "rejected")
    prompt, expected, before, after, rejected = (words.shortened(row.get(k) or "") for k in texts)
    scores = row.get("score_before"), row.get("score_after")
    return Answer(prompt, expected, before, after, *scores, rejected)


def collect_rollouts(run: Run) -> list[Examples]:
    """Groups of the first and the newest step of each stage that has sampled, of its newest
    evaluation, and completions that could not be scored.
    """
    found = []
    for folder in run.stage_folders():
        files = [file for file in list_rollout_files([folder]) if file.whole]
        if groups := _groups(files, read_metrics(folder / "metrics.jsonl")):
            found.append(Examples(folder.name, [], groups))
    return found


def _groups(files: Sequence[RolloutFile], rows: Sequence[Row]) -> list[GroupShown]:
    steps = [file for file in files if file.kind == "step"]
    shown = []
    for file in dict.fromkeys([*steps[:1], *steps[-1:]]):
        groups = groups_of(file.read())
        spread = [group for group in groups if has_spread(group)]
        if groups:
            shown.append(_group(f"training, step {file.step:,}", (spread or groups)[0]))
    failed = {row["step"] for row in rows if row.get("failed_share") and "split" not in row}
    for file in [file for file in reversed(steps) if file.step in failed][:1]:
        unscored = groups_of(rollout for rollout in file.read() if rollout.failure)
        for group in unscored[:MOST_UNSCORED]:
            shown.append(_group(f"could not be scored, step {file.step:,}", group))
    return shown


def _group(title: str, group: Sequence[Rollout]) -> GroupShown:
    kept = [_completion(rollout) for rollout in group[:MOST_COMPLETIONS]]
    prompt = words.shortened(group[0].prompt)
    return GroupShown(title, prompt, kept, len(group) - len(kept))


def _completion(rollout: Rollout) -> Completion:
    notes = ["cut off"] if rollout.finish == "length" else []
    if rollout.left_out and rollout.left_out not in notes:
        notes.append(f"left out: {rollout.left_out}")
    return Completion(
        words.shortened(rollout.text, LONGEST),
        rollout.total,
        rollout.advantage,
        len(rollout.ids),
        notes,
        words.shortened(rollout.failure or ""),
    )
