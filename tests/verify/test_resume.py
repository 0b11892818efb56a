"""The check `resume`: a slice killed and resumed ends in the same bytes, or the check is red."""

import json
import os
from pathlib import Path

import pytest

from hone.data.prepared import default_cache_folder
from hone.metrics import read_metrics
from hone.runs import Run
from hone.verify.examine import CHECKS, make_check
from hone.verify.resume import LIMIT_S, STEPS, choose
from hone.verify.subject import StageResult, Subject
from hone.verify.verdicts import Verdict
from tests.processes import running
from tests.verify.ground import RECIPE, copy_of, variant


def check(run: Run) -> Verdict:
    return make_check("resume", CHECKS["resume"], Subject(run))


def everything(folder: Path) -> dict[str, tuple[int, bytes]]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


@pytest.mark.e2e
def test_bytes_are_compared_after_a_real_kill(workshop: Path) -> None:
    """A reward that is drawn anew each time cannot be repeated; the stage before it can."""
    noise = "\n\ndef noise(completions, **columns):\n    import os\n"
    noise += "    return [float(os.urandom(1)[0]) for _ in completions]\n"
    with (workshop / "reward.py").open("a") as file:
        file.write(noise)
    begin, rest = RECIPE.split("  - dpo:")
    (workshop / "recipe.yaml").write_text(begin + "  - grpo:" + rest.split("  - grpo:")[1])
    run = variant(workshop, "noisy", sft__steps=5, grpo__steps=4, grpo__rewards=["reward.py:noise"])
    before = everything(run.path.parent)
    verdict = check(run)
    assert {part.of: part.status for part in verdict.parts} == {
        "1-sft as recorded": "passed",
        "1-sft killed and resumed": "passed",
        "2-grpo as recorded": "failed",
        "2-grpo killed and resumed": "failed",
    }
    told = {part.of: part.reason for part in verdict.parts}
    assert told["1-sft killed and resumed"] == (
        "killed after step 3, gone on from step 2: the same bytes after step 4"
    )
    assert "killed after step 3, gone on from step 2: stage 2-grpo, " in verdict.reason
    assert verdict.parts[1].n > 4 + 2  # rows, and the files of a checkpoint
    assert everything(run.path.parent) == before  # the run is only read
    assert not list(default_cache_folder().parent.glob("verify-resume-*"))
    assert not [line for line in running().values() if "hone.verify.replay" in line]


def test_what_is_not_there_any_more_is_not_repeated(green: Run, tmp_path: Path) -> None:
    copy = copy_of(green, tmp_path)
    lock = json.loads((copy.path / "lock.json").read_text())
    changed = tmp_path / "changed.jsonl"
    changed.write_text("")
    source = lock["stages"]["2"]["data"]["sources"][0]
    source["path"] = str(changed)
    (copy.path / "lock.json").write_text(json.dumps(lock))
    verdict = check(copy)
    assert verdict.status == "not_applicable"
    assert verdict.reason.startswith(
        f"it cannot be trained again from what is here: `{changed}` was"
    )


def test_a_slice_lies_around_a_checkpoint(green: Run) -> None:
    slices, left_out = choose(Subject(green).stages)
    assert not left_out and [each.stage.index for each in slices] == [2, 1, 0]
    assert {(each.steps, each.kill, each.newest, each.every) for each in slices} == {
        (STEPS, 3, 2, 2)
    }
    for each in slices:
        rows = read_metrics(each.stage.folder / "metrics.jsonl")
        taken = [row["step_s"] for row in rows if row["step"] <= STEPS and "split" not in row]
        assert each.seconds == pytest.approx(sum(taken))


def test_slow_stages_and_short_ones(green: Run, tmp_path: Path) -> None:
    """The last stage is always done again, others while there is time."""
    stages = Subject(copy_of(green, tmp_path)).stages

    def took(stage: StageResult, *seconds: float) -> None:
        rows = [{"step": n, "loss": 1.0, "step_s": each} for n, each in enumerate(seconds, 1)]
        path = stage.folder / "metrics.jsonl"
        path.write_text("".join(json.dumps(row) + os.linesep for row in rows))

    took(stages[2], LIMIT_S)
    took(stages[1], 1.0, 1.0)
    took(stages[0])
    slices, left_out = choose(stages)
    (only,) = slices
    assert (only.stage, only.steps, only.kill, only.newest, only.every) == (stages[2], 1, 1, 0, 1)
    assert [part.of for part in left_out] == ["2-dpo", "1-sft"]
    assert left_out[0].reason == "2 steps take 2 s, with later stages more than 300"
    took(stages[2], LIMIT_S - 2)
    assert [each.stage for each in choose(stages)[0]] == [stages[2], stages[1]]
