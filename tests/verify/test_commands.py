"""`hone verify`, and how `hone run`, `resume` and `show` tell of it: with the real checks."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from hone.cli.commands import invoke
from hone.recipe.verify import CheckName
from hone.runs import Run, open_run
from hone.verify.examine import CHECKS
from tests.processes import running
from tests.verify.ground import RECIPE, copy_of
from tests.workbench import kill, start

# Nothing but the check `rewards`, on few questions.
LEAVE_OUT = sorted(CHECKS.keys() - {"rewards"})
BRIEF = {"samples": 8, "leave_out": LEAVE_OUT}
KEYS = {"name", "status", "value", "threshold", "n", "how", "reason", "seconds", "parts"}


def said(capsys: pytest.CaptureFixture[str], *words: str | Path, expect: int = 0) -> str:
    """What a command printed to stdout and stderr."""
    capsys.readouterr()
    code = invoke([str(word) for word in words])
    captured = capsys.readouterr()
    assert code == expect, captured.out + captured.err
    return captured.out + captured.err


@pytest.fixture
def rewarded(workshop: Path) -> Path:
    """A workshop whose recipe is a single step of grpo with a learning rate of 0."""
    head, rest = RECIPE.split("  - sft:")
    head += "  - grpo:" + rest.split("  - grpo:")[1].replace("steps: 10", "steps: 1")
    head = head.replace("learning_rate: 0.002", "learning_rate: 0")
    (workshop / "recipe.yaml").write_text(
        head.replace("verify: {}", f"verify: {json.dumps(BRIEF)}")
    )
    return workshop


# --- hone verify ----------------------------------------------------------------------------------


def test_what_passes_is_told_in_a_table_and_a_file(
    green: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = copy_of(green, tmp_path, **BRIEF)
    assert "verify it: hone verify" in said(capsys, "show", copy.path)
    printed = said(capsys, "verify", copy.path)
    rows = {line.split()[0]: line for line in printed.splitlines() if line.strip()}
    assert " passed " in rows["rewards"] and "mean reward" in printed
    assert " not applicable " in rows["resume"] and "hone verify RUN --resume" in printed
    assert f"figures: {copy.path}/verify/verify.json" in printed
    found = json.loads((copy.path / "verify/verify.json").read_text())
    assert found["schema"] == 1 and found["passed"] is True
    assert [check["name"] for check in found["checks"]] == list(CHECKS)
    assert all(set(check) == KEYS for check in found["checks"])
    by_name = {check["name"]: check for check in found["checks"]}
    reasons = {by_name[name]["reason"] for name in LEAVE_OUT if name != "resume"}
    assert reasons <= {"left out by the recipe"}
    assert by_name["rewards"]["n"] == 8 and len(by_name["rewards"]["parts"]) == 5
    assert copy.events()[-1] | {"time": ""} == {"time": "", "event": "verified", "passed": True}
    assert "verified: passed\n" in said(capsys, "show", copy.path)


def test_what_fails_ends_with_exit_code_1(
    green: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = copy_of(green, tmp_path, **BRIEF, thresholds={"constant": 0.0})
    printed = said(capsys, "verify", copy.path, "--json", expect=1)
    found = json.loads(printed)
    assert found == json.loads((copy.path / "verify/verify.json").read_text())
    assert found["passed"] is False
    status = {check["name"]: check["status"] for check in found["checks"]}
    assert [name for name, each in status.items() if each == "failed"] == ["rewards"]
    shown = json.loads(said(capsys, "show", copy.path, "--json"))
    assert shown["verified"] == {"state": "failed", "failed": ["rewards"]}
    assert "verified: failed: rewards" in said(capsys, "show", copy.path)


def test_what_cannot_be_verified_is_refused(
    green: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = copy_of(green, tmp_path)
    (copy.path / "stages/3-grpo/model").rename(tmp_path / "away")
    printed = said(capsys, "verify", "green", "--runs", tmp_path, expect=2)
    assert "the run `green` has no result of its stage 3-grpo yet" in printed
    assert "hone resume" in printed and not (copy.path / "verify").exists()
    assert "did you mean `green`" in said(capsys, "verify", "gren", "--runs", tmp_path, expect=2)


def test_every_check_has_a_name_of_the_recipe() -> None:
    assert set(CHECKS) <= set(CheckName.__args__)


# --- At the end of a run --------------------------------------------------------------------------


def test_a_run_that_is_not_proven_ends_with_exit_code_3(
    rewarded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The learning rate is 0: it trained well, and gained nothing. Without `verify:` it is fine."""
    runs = rewarded / "runs"
    words = ("run", rewarded / "recipe.yaml", "--runs", runs, "--name")
    printed = said(capsys, *words, "first", expect=3)
    run = open_run("first", runs)
    assert run.done and run.status()["state"] == "succeeded"
    assert f"verifying it: hone verify {run.reference}" in printed
    assert run.verdicts() is not None and not run.verdicts()["passed"]
    assert "verified: failed: rewards" in said(capsys, "show", run.path)
    assert "is finished: hone show" in said(capsys, "resume", run.path)
    said(capsys, *words, "second", "verify=null")
    second = open_run("second", runs)
    assert second.verdicts() is None and not second.lacks_verdicts()
    shown = said(capsys, "show", second.path)
    assert "verif" not in shown.replace(str(rewarded), "")


def test_a_verification_that_is_killed_is_told(
    rewarded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = rewarded / "runs"
    ended = threading.Thread(target=kill_verification, args=(str(runs / "first"),))
    ended.start()
    words = ("run", rewarded / "recipe.yaml", "--runs", runs, "--name", "first")
    printed = said(capsys, *words, expect=3)
    ended.join()
    assert "is finished, but could not be verified: that ended by SIGKILL" in printed
    run = open_run("first", runs)
    assert run.status()["state"] == "succeeded" and run.lacks_verdicts()
    assert f"hint: hone verify {run.reference}" in printed
    assert "is finished, not yet verified: hone verify" in said(capsys, "resume", run.path)
    shown = said(capsys, "show", run.path)
    assert "verified: not yet" in shown and f"verify it: hone verify {run.reference}" in shown


def kill_verification(run: str) -> None:
    """Send SIGKILL to the process that verifies a run, once there is one."""
    while True:
        for number, line in running().items():
            if f"hone verify {run}" in line:
                os.kill(number, signal.SIGKILL)
                return
        time.sleep(0.05)


@pytest.mark.e2e
def test_ctrl_c_stops_both_and_leaves_a_finished_run(rewarded: Path) -> None:
    process = start(rewarded, "run", "recipe.yaml", "--name", "first")
    assert process.stdout is not None
    lines = []
    while "verifying it" not in "".join(lines):
        lines.append(process.stdout.readline())
    run = open_run("first", rewarded / "runs")
    while not any(f"hone verify {run.path}" in line for line in running().values()):
        time.sleep(0.05)
    printed = kill(process, signal.SIGINT)
    assert process.returncode == 130, printed
    assert "stopped by SIGINT; the run is finished, not yet verified: hone verify first" in printed
    assert run.status()["state"] == "succeeded" and run.lacks_verdicts()
    assert not [line for line in running().values() if str(run.path) in line]
