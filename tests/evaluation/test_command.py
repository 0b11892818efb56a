"""`hone evaluate`: the real command, killed and gone on with, and what it refuses."""

import json
import math
import signal
import time
from pathlib import Path

import pytest

from hone.cli.commands import invoke
from hone.evaluation.stored import list_evaluations, read_evaluation
from hone.metrics import read_metrics
from hone.runs import Run
from tests.evaluation.ground import sums, write_model, write_rows
from tests.workbench import hone, kill, start

ASKED = ["evaluate", "model", "--on", "sums.jsonl", "--measure", "exact,f1,perplexity"]
DRAWN = ["--max-tokens", "8", "--temperature", "1", "--seed", "3", "--batch", "4"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, 240 sums, and the current folder."""
    (tmp_path / "model").mkdir()
    write_model(tmp_path / "model", plain=True)
    write_rows(tmp_path / "sums.jsonl", sums(240))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def kept(folder: Path, name: str) -> tuple[bytes, bytes]:
    """Both files of an evaluation."""
    return tuple((folder / f"{name}{end}").read_bytes() for end in (".jsonl", ".json"))  # type: ignore[return-value]


@pytest.mark.e2e
def test_killed_and_gone_on_with_it_is_the_same(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """While it works no other process writes there."""
    assert invoke([*ASKED, *DRAWN, "--out", "whole.jsonl"]) == 0
    lines = folder / "evaluations/model-sums.jsonl"
    process = start(folder, *ASKED, *DRAWN)
    until = time.monotonic() + 100
    while not (lines.exists() and lines.read_bytes()):
        assert process.poll() is None and time.monotonic() < until, kill(process)
        time.sleep(0.005)
    process.send_signal(signal.SIGSTOP)  # so that it does not end meanwhile
    capsys.readouterr()
    assert invoke([*ASKED, *DRAWN]) == 2
    assert f"is being written by process {process.pid} on host" in capsys.readouterr().err
    kill(process)
    assert process.returncode == -signal.SIGKILL
    assert 0 < lines.read_bytes().count(b"\n") < 240
    with lines.open("ab") as file:  # what a kill in the middle of writing leaves
        file.write(b'{"index": 7, "pla')
    printed = hone(folder, *ASKED, *DRAWN)
    assert "going on behind " in printed and "of 240 answers" in printed
    assert kept(folder, "evaluations/model-sums") == kept(folder, "whole")
    assert len({row.answer for row in read_evaluation(lines).evaluated.rows}) > 200


@pytest.mark.e2e
def test_stopped_it_says_how_to_go_on(folder: Path) -> None:
    process = start(folder, *ASKED, *DRAWN)
    lines = folder / "evaluations/model-sums.jsonl"
    until = time.monotonic() + 100
    while not (lines.exists() and lines.read_bytes()):
        assert process.poll() is None and time.monotonic() < until, kill(process)
        time.sleep(0.005)
    printed = kill(process, signal.SIGINT)
    assert process.returncode == 130
    assert "of 240 answers; the same command goes on" in printed


def test_called_again_it_says_the_same_and_asks_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = [*ASKED, "--max-tokens", "4", "--samples", "9"]
    assert invoke(short) == 0
    first = capsys.readouterr()
    before = kept(folder, "evaluations/model-sums")
    assert "answers: evaluations/model-sums.jsonl" in first.err
    heading, *rows = first.out.splitlines()
    assert heading.split() == ["MEAN", "95", "%", "INTERVAL", "N"]
    assert [row.split()[0] for row in rows[:3]] == ["exact", "f1", "perplexity"]
    (folder / "model/model.safetensors").rename(folder / "weights")
    weights = (folder / "weights").read_bytes()
    (folder / "model/model.safetensors").write_bytes(weights)  # the same content
    assert invoke(short) == 0
    second = capsys.readouterr()
    assert second.out == first.out and "evaluated before" in second.err
    assert kept(folder, "evaluations/model-sums") == before


def test_what_differs_is_said_and_nothing_is_written_over(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["evaluate", "model", "--on", "sums.jsonl", "--samples", "5", "--max-tokens", "2"]
    assert invoke(short) == 0
    before = kept(folder, "evaluations/model-sums")
    capsys.readouterr()
    assert invoke([*short, "--seed", "1"]) == 0
    assert "settings.seed was 0, is 1" in capsys.readouterr().err
    assert invoke([*short, "--seed", "1"]) == 0
    assert "evaluated before" in capsys.readouterr().err
    write_rows(folder / "sums.jsonl", sums(240, seed=1))
    assert invoke(short) == 0
    assert "data.sha256 was" in capsys.readouterr().err
    assert kept(folder, "evaluations/model-sums") == before
    names = [path.name for path in list_evaluations(folder / "evaluations")]
    assert names == ["model-sums.jsonl", "model-sums-2.jsonl", "model-sums-3.jsonl"]
    assert invoke([*short, "--out", "evaluations/model-sums.jsonl"]) == 2
    refused = capsys.readouterr().err
    assert "holds something else: data.sha256 was" in refused and "--anew" in refused
    assert kept(folder, "evaluations/model-sums") == before
    assert invoke([*short, "--out", "evaluations/model-sums.jsonl", "--anew"]) == 0
    assert kept(folder, "evaluations/model-sums") != before
    (folder / "mine.jsonl").write_text("{}\n")
    capsys.readouterr()
    assert invoke([*short, "--out", "mine.jsonl"]) == 2
    assert "it is no evaluation" in capsys.readouterr().err
    assert (folder / "mine.jsonl").read_text() == "{}\n"


def test_a_run_its_stages_and_its_base(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Perplexity is that of the held-out loss which training has written."""
    monkeypatch.chdir(run.path.parents[1])
    measured = []
    for words in (["--stage", "base"], ["--stage", "1"], []):
        options = ["--on", "chat.jsonl", "--measure", "perplexity", "--json", *words]
        assert invoke(["evaluate", "first", *options]) == 0
        found = json.loads(capsys.readouterr().out)
        measured.append(found["measures"]["perplexity"]["mean"])
        assert Path(found["path"]).parent == run.path / "evaluations"
    rows = read_metrics(run.path / "stages/1-sft/metrics.jsonl")
    held_out = [row["loss"] for row in rows if row.get("split") == "evaluation"]
    assert measured[0] == pytest.approx(math.exp(held_out[0]), rel=1e-4)
    assert measured[1] == measured[2] == pytest.approx(math.exp(held_out[-1]), rel=1e-4)
    assert abs(held_out[0] - held_out[-1]) > 0.01
    names = [path.stem for path in list_evaluations(run.path / "evaluations")]
    assert names == ["chat", "chat-base", "chat-stage-1"]
    stored = read_evaluation(run.path / "evaluations/chat.json")
    assert stored.evaluated.measures["perplexity"].mean == pytest.approx(measured[2])
    assert stored.what["model"]["base"]["sha256"] != stored.what["model"]["sha256"]


def test_what_scores_answers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "reward.py").write_text(
        "def length(completions, **columns):\n    return [len(c) / 100 for c in completions]\n"
    )
    (folder / "bare.csv").write_text("prompt\nHello\nOnce upon\n")
    base = ["evaluate", "model", "--max-tokens", "5", "--json"]
    assert invoke([*base, "--on", "bare.csv", "--reward", "reward.py:length"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = read_evaluation(Path(found["path"])).evaluated.rows
    assert [row.scores["reward"] for row in rows] == [len(row.answer or "") / 100 for row in rows]
    environment = "{type: arithmetic, evaluation_tasks: 3, messages: false}"
    assert invoke([*base, "--environment", environment]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["count"] == 3 and set(found["measures"]) > {"reward", "reward/correct"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--on", "sum.jsonl"], "no file or folder `sum.jsonl`"),
        ([], "there is nothing to ask; expected --on FILE, or --environment"),
        (["--on", "sums.jsonl", "--measure", "exakt"], "did you mean `exact`?"),
        (["--on", "sums.jsonl", "--measure", "regex"], "`regex` needs a pattern"),
        (["--on", "sums.jsonl", "--measure", "regex", "--pattern", "("], "no regular expression"),
        (["--on", "sums.jsonl", "--measure", "choice"], "sums.jsonl:1: the row has no choices"),
        (["--on", "sums.jsonl", "--measure", "reward"], "needs something that scores"),
        (["--on", "sums.jsonl", "--by", "knd"], "no column `knd`"),
        (["--on", "sums.jsonl", "--columns", "answer"], "expected KEY=NAME"),
        (["--on", "sums.jsonl", "--columns", "answer=gold"], "no column `gold`"),
        (["--on", "sums.jsonl", "--columns", "promt=x"], "did you mean `prompt`?"),
        (["--on", "sums.jsonl", "--format", "mesages"], "did you mean `messages`?"),
        (["--on", "sums.jsonl", "--stage", "1"], "`model` is no run"),
        (["--on", "sums.jsonl", "--out", "x.json"], "expected a file that ends in .jsonl"),
        (["--on", "sums.jsonl", "--top-p", "0.5"], "nothing is drawn at temperature 0"),
        (["--on", "sums.jsonl", "--reward", "reward.py"], "expected a name in a Python file"),
        (["--environment", "{type: arithmetic, digit: 3}"], 'did you mean "digits"?'),
        (["--columns", "prompt=x"], "`--format` and `--columns` are of a file"),
    ],
)
def test_mistakes_are_named(
    folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["evaluate", "model", *words]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "evaluations").exists()


def test_a_model_that_there_is_not(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["evaluate", "modl", "--on", "sums.jsonl"]) == 2
    assert "no run `modl` in `runs`" in capsys.readouterr().err


def test_a_stage_that_there_is_not(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.path.parents[1])
    assert invoke(["evaluate", "first", "--on", "pairs.jsonl", "--stage", "2"]) == 2
    assert "the run `first` has 1 stages; expected a number from 1 to 1" in capsys.readouterr().err
    assert invoke(["evaluate", "firs", "--on", "pairs.jsonl"]) == 2
    assert "did you mean `first`?" in capsys.readouterr().err
