"""`hone rollouts`: sorted and filtered, whole and partial files, and what a person reads."""

import json
from pathlib import Path

import pytest

from hone.cli.commands import invoke
from hone.errors import UserError
from hone.recipe.load import load_recipe
from hone.recorded import append_scored, mark_stopped, rollouts_path, write_rollouts
from hone.runs import create_run
from tests.test_recorded import make

pytestmark = pytest.mark.quick

RECIPE = """\
model: {architecture: llama, tokenizer: acme/words}
stages:
  - pretrain: {data: text.jsonl}
  - grpo: {environment: arithmetic}
"""


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A run whose second stage has two whole steps, an evaluation, and a step that is scored."""
    (tmp_path / "text.jsonl").write_text("{}\n")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    run = create_run(load_recipe(tmp_path / "recipe.yaml"), "first", tmp_path / "runs")
    folder = run.stage_folder(1, "grpo")
    for step in (1, 2):
        whole = [
            make(group, sample, step + 0.25 * sample, step=step, advantage=sample - 0.5)
            for group in range(2)
            for sample in range(2)
        ]
        whole[3] = make(1, 1, None, step=step, text="5\nmore\x1b[31m", failure="it hung", ids=[2])
        write_rollouts(rollouts_path(folder, "step", step), whole)
    write_rollouts(rollouts_path(folder, "evaluation", 2), [make(0, 0, 9.0, step=2)])
    append_scored(rollouts_path(folder, "step", 3), [make(0, 0, 7.0, step=3, finish="length")])
    mark_stopped(rollouts_path(folder, "step", 3))
    return tmp_path / "runs"


def found(runs: Path, capsys: pytest.CaptureFixture[str], *words: str) -> list[tuple[int, ...]]:
    """(step, group, sample) of what is printed as JSON."""
    assert invoke(["rollouts", "first", "--runs", str(runs), "--json", *words]) == 0
    return [(r["step"], r["group"], r["sample"]) for r in json.loads(capsys.readouterr().out)]


def test_the_newest_stand_first_and_what_is_scored_now_is_there(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    everything = found(runs, capsys)
    assert everything == [
        (3, 0, 0),
        *((2, group, sample) for group in range(2) for sample in range(2)),
        *((1, group, sample) for group in range(2) for sample in range(2)),
    ]
    assert found(runs, capsys, "--limit", "2") == everything[:2]
    assert [each[0] for each in found(runs, capsys, "--reverse")] == [1] * 4 + [2] * 4 + [3]


def test_sorted(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by_reward = found(runs, capsys, "--sort", "reward")
    assert by_reward[:2] == [(3, 0, 0), (2, 0, 1)] and len(by_reward) == 7  # none has failed
    assert found(runs, capsys, "--sort", "reward", "--reverse", "--limit", "1") == [(1, 0, 0)]
    assert {each[2] for each in found(runs, capsys, "--sort", "advantage", "--limit", "2")} == {1}
    assert found(runs, capsys, "--sort", "length", "--reverse", "--limit", "2")[0][1:] == (1, 1)


def test_filtered(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {each[0] for each in found(runs, capsys, "--step", "2")} == {2}
    assert found(runs, capsys, "--failed") == [(2, 1, 1), (1, 1, 1)]
    assert found(runs, capsys, "--min-reward", "2.25") == [(3, 0, 0), (2, 0, 1)]
    assert {each[1] for each in found(runs, capsys, "--task", "11")} == {1}
    assert found(runs, capsys, "--evaluation") == [(2, 0, 0)]
    assert len(found(runs, capsys, "--stage", "2")) == 9


def test_what_a_person_reads(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["rollouts", "first", "--runs", str(runs), "--step", "2"]) == 0
    printed = capsys.readouterr().out
    assert "REWARD" in printed and "2 + 3?" in printed and "+0.5" in printed
    assert "5↵more" in printed and "failed: it hung" in printed.replace("\n", " ")
    assert "\x1b[31m" not in printed
    assert invoke(["rollouts", "first", "--runs", str(runs), "--step", "3"]) == 0
    assert "[cut off]" in capsys.readouterr().out
    assert invoke(["rollouts", "first", "--runs", str(runs), "--task", "99"]) == 0
    assert "no rollout is like that" in capsys.readouterr().out


def test_a_run_without_rollouts(runs: Path) -> None:
    from hone.cli.rollouts import rollouts

    with pytest.raises(UserError, match="has no rollouts: its stage 1 has not sampled anything"):
        rollouts("first", stage=1, runs=runs)
