"""`hone compare` on real runs: one against itself, and one against a twin that trained longer."""

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image

from hone.cli.commands import invoke
from hone.recipe.load import load_recipe
from hone.runs import create_run
from tests.workbench import NEW_MODEL, work, write_data

pytestmark = pytest.mark.e2e

STAGES = """
stages:
  - pretrain: {data: text.jsonl, steps: 60, batch: {samples: 16}, learning_rate: 3e-3}
  - sft:
      data: chat.jsonl
      evaluation: {share: 0.1, every: 10}
      batch: {samples: 16}
      steps: 2
      learning_rate: 5e-3
"""
REWARDED = """
  - grpo:
      data: prompts.csv
      rewards: ["reward.py:REWARD"]
      evaluation: {share: 0.1, every: 1}
      batch: {samples: 1}
      group: 2
      completion_tokens: 4
      steps: 1
"""
ONLY_TEXT = "\nstages:\n  - pretrain: {data: text.jsonl, steps: 1}\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs `first`, `longer` with another vocabulary, and others."""
    made = tmp_path_factory.mktemp("beside")
    write_data(made)
    (made / "prompts.csv").write_text("prompt\n" + "".join(f"{n} plus 1 is\n" for n in range(20)))
    (made / "reward.py").write_text(
        "def long(completions, **columns):\n    return [len(text) for text in completions]\n\n\n"
        "def short(completions, **columns):\n    return [-len(text) for text in completions]\n"
    )
    recipes = {
        "first": STAGES + REWARDED.replace("REWARD", "long"),
        "longer": STAGES.replace("steps: 2", "steps: 60") + REWARDED.replace("REWARD", "short"),
        "text": ONLY_TEXT,
    }
    for name, stages in recipes.items():
        model = NEW_MODEL.replace("320", "340") if name == "longer" else NEW_MODEL
        (made / f"{name}.yaml").write_text(model + stages)
        work(create_run(load_recipe(made / f"{name}.yaml"), name, made / "runs"))
    unfinished = create_run(load_recipe(made / "text.yaml"), "unfinished", made / "runs")
    assert not unfinished.done
    return made


def compare(
    folder: Path, capsys: pytest.CaptureFixture[str], *words: str, expect: int = 0
) -> tuple[str, str]:
    """(stdout, stderr) of the command."""
    capsys.readouterr()
    code = invoke(["compare", *words, "--runs", str(folder / "runs"), "--max-tokens", "12"])
    captured = capsys.readouterr()
    assert code == expect, captured.out + captured.err
    return captured.out, captured.err


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    """What the comparison of the two says, made once."""
    from hone.runs import open_run
    from hone.side_by_side.compare import Asking, compare_side_by_side
    from hone.side_by_side.page import write_page
    from hone.side_by_side.picture import draw_picture

    runs = (open_run(name, folder / "runs") for name in ("first", "longer"))
    beside = compare_side_by_side(*runs, Asking(max_tokens=12))
    write_page(beside, folder / "page.html")
    draw_picture(beside, folder / "picture.png")
    return beside.as_json()


def test_a_run_beside_itself_has_no_differences(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = compare(folder, capsys, "first", "first", "--json")
    found = json.loads(out)
    assert (found["better"], found["worse"], found["surroundings"]) == (0, 0, [])
    assert [each["name"] for each in found["sets"]] == ["2-sft", "3-grpo"]
    for each in found["sets"]:
        for paired in each["scores"].values():
            assert paired["first"] == paired["second"]
            difference = paired["difference"]
            assert (difference["mean"], difference["low"], difference["high"]) == (0, 0, 0)
        for row in each["rows"]:
            assert row["answers"][0] == row["answers"][1]
    assert list(found["sets"][1]["scores"]) == ["reward", "reward/long"]
    assert (folder / "runs/first/comparisons/first/compare.html").exists()
    assert (folder / "runs/first/comparisons/first/compare.png").exists()


def test_differences_are_those_of_the_scores_row_by_row(found: dict[str, Any]) -> None:
    sft = found["sets"][0]
    assert sft["count"] == 16
    for name, paired in sft["scores"].items():
        first, second = (
            np.array([row["scores"][side][name] for row in sft["rows"]]) for side in (0, 1)
        )
        assert paired["first"] == pytest.approx(first.mean())
        assert paired["difference"]["mean"] == pytest.approx((second - first).mean())
    loss = sft["scores"]["loss"]
    assert loss["difference"]["high"] < 0
    gains = [row["gain"] for row in sft["rows"]]
    assert gains == sorted(gains, reverse=True)
    assert found["better"] == sum(gain > 0 for gain in gains) > 0


def test_answers_are_those_of_the_results(folder: Path, found: dict[str, Any]) -> None:
    """The same prompt put to the result of the second run alone."""
    from hone.runs import open_run
    from hone.stages.run import load_result

    rows = found["sets"][0]["rows"]
    held_out = [row["expected"][0] for row in rows]
    lines = (folder / "chat.jsonl").read_text().splitlines()
    chats = {m[1]["content"]: m[0] for m in (json.loads(line)["messages"] for line in lines)}
    assert set(held_out) <= set(chats)
    result = load_result(open_run("longer", folder / "runs"))
    answers = result.generate_text([rows[0]["prompt"]], max_new_tokens=12)
    assert answers == [rows[0]["answers"][1]]


def test_recipes_that_differ_are_named(found: dict[str, Any]) -> None:
    changes = {each["what"]: (each["before"], each["after"]) for each in found["surroundings"]}
    assert changes["recipe.stages.1.sft.steps"] == (2, 60)
    assert "reward.py:short" in changes["recipe.stages.2.grpo.rewards.0.function"][1]


def test_other_rewards_are_not_compared(found: dict[str, Any]) -> None:
    grpo = found["sets"][1]
    assert "rewards of the runs are not the same" in grpo["remark"]
    assert grpo["scores"] == {}
    assert all(isinstance(answer, str) for row in grpo["rows"] for answer in row["answers"])


def test_the_page_shows_all_and_asks_for_nothing(folder: Path, found: dict[str, Any]) -> None:
    page = (folder / "page.html").read_text()
    text = unescape(re.sub(r"<[^>]+>", " ", page))
    row = found["sets"][0]["rows"][0]
    for shown in (row["prompt"][0]["content"], row["expected"][0], *row["answers"]):
        assert " ".join(shown.split()) in " ".join(text.split())
    assert "recipe.stages.1.sft.steps" in text
    assert page.count("<figure") == 5  # in training three times, held out twice
    assert not re.search(r"""(src|href)=["'](?!#)""", page)
    assert "default-src 'none'" in unescape(page)


def test_the_picture_is_drawn(folder: Path, found: dict[str, Any]) -> None:
    picture = image.imread(folder / "picture.png")
    colours = {tuple(pixel) for pixel in (picture[::3, ::3, :3] * 255).astype(int).reshape(-1, 3)}
    assert len(found["sets"]) == 2
    assert {(31, 90, 158), (192, 47, 74)} <= colours  # both runs


def test_questions_of_a_file_are_asked(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"prompt": "What is 1 plus 2?", "answer": "3"}\n')
    words = ["--on", str(questions), "--measure", "numeric", "--out", str(tmp_path / "out")]
    out, _ = compare(folder, capsys, "first", "longer", *words)
    assert "questions.jsonl  numeric *" in out
    assert "recipe.stages.1.sft.steps 2 -> 60" in out
    assert (tmp_path / "out" / "compare.html").exists()
    bare = tmp_path / "bare.jsonl"
    bare.write_text('{"prompt": "What is 1 plus 2?"}\n')
    out, _ = compare(folder, capsys, "first", "longer", "--on", str(bare), "--json")
    (only,) = json.loads(out)["sets"]
    assert (only["scores"], only["headline"], only["better"]) == ({}, None, 0)
    assert all(isinstance(answer, str) for answer in only["rows"][0]["answers"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["first", "text"], "have no held-out samples in common"),
        (["first", "secund"], "no run `secund`"),
        (["unfinished", "first"], "has no result of its stage 1-pretrain yet"),
        (["first", "longer", "--on", "missing.jsonl"], "there is no file `missing.jsonl`"),
        (["first", "first", "--measure", "f2"], "f2"),
    ],
)
def test_what_cannot_be_compared_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    _, err = compare(folder, capsys, *words, expect=2)
    assert message in err
