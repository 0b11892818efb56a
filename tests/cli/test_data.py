"""The data commands as they are typed: what they print, their JSON and their exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest

from hone.cli.commands import invoke
from tests.stages.test_data import mixed_folder
from tests.workbench import write_data

pytestmark = pytest.mark.quick


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: data, a recipe with three data sets, an empty cache."""
    monkeypatch.chdir(mixed_folder(tmp_path))
    monkeypatch.setenv("HONE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *words: str, expect: int = 0) -> str:
    code = invoke(["data", *words])
    captured = capsys.readouterr()
    assert code == expect, captured.err
    return captured.out if expect in (0, 1) and captured.out else captured.err


def run_json(capsys: pytest.CaptureFixture[str], *words: str, expect: int = 0) -> Any:
    return json.loads(run(capsys, *words, "--json", expect=expect))


def test_prepare_makes_what_a_run_uses(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run_json(capsys, "prepare", "recipe.yaml")["data"]
    assert [each["name"] for each in first] == ["data[0]", "data[1]", "data[2]"]
    assert [each["counts"]["samples"] for each in first] == [160, 9, 160]
    assert all(each["made"] for each in first)
    again = run_json(capsys, "prepare", "recipe.yaml")["data"]
    assert [each["key"] for each in again] == [each["key"] for each in first]
    assert not any(each["made"] for each in again)
    held_out = "sft.evaluation={data: pairs.jsonl}"
    printed = run(capsys, "prepare", "recipe.yaml", held_out).splitlines()
    assert [line.split()[2] for line in printed[1:]] == [
        "data[0]",
        "data[1]",
        "data[2]",
        "evaluation",
    ]
    listed = run_json(capsys, "list")
    assert {each["key"] for each in listed["entries"]} == {each["key"] for each in first}


def test_the_cache_is_cleaned_only_when_it_is_meant(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "0 entries" in run(capsys, "list")
    run(capsys, "prepare", "recipe.yaml")
    assert len(run(capsys, "list").splitlines()) == 5
    assert "nobody to ask" in run(capsys, "list", "--clean", expect=2)
    assert "has no effect without" in run(capsys, "list", "--yes", expect=2)
    assert len(run_json(capsys, "list")["entries"]) == 3
    young = run_json(capsys, "list", "--clean", "--yes", "--older-than", "1")
    assert young["entries"] == [] and len(run_json(capsys, "list")["entries"]) == 3
    assert len(run_json(capsys, "list", "--clean", "--yes")["entries"]) == 3
    assert run_json(capsys, "list")["entries"] == []


def test_show_takes_one_of_several_data_sets(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    together = run_json(capsys, "show", "recipe.yaml", "--start", "159", "--samples", "2")
    assert [each["set"] for each in together["samples"]] == [0, 1]
    assert together["counts"]["samples"] == 329
    only = run_json(capsys, "show", "recipe.yaml", "--set", "1", "--samples", "1")
    assert only["samples"][0]["place"] == f"{folder / 'pairs.jsonl'}:1"
    assert only["counts"]["samples"] == 9
    assert ", data[1], " in run(capsys, "show", "recipe.yaml", "--start", "160", "--samples", "1")
    assert "3 data set(s)" in run(capsys, "show", "recipe.yaml", "--set", "3", expect=2)


def test_validate_says_what_is_wrong(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_json(capsys, "validate", "--recipe", "recipe.yaml")["ok"]
    with (folder / "pairs.jsonl").open("a") as file:
        file.write('{"prompt": 3}\n')
    printed = run(capsys, "validate", "pairs.jsonl", expect=1)
    assert "pairs.jsonl:10: there is no column `completion`" in printed
    found = run_json(capsys, "validate", "--recipe", "recipe.yaml", expect=1)
    (part,) = found["parts"]
    assert part["stage"] == "1 sft" and not found["ok"]
    assert [report["num_bad"] for report in part["training"]] == [0, 1, 0]
    overlap = run_json(capsys, "validate", "chat.jsonl", "--against", "chat.jsonl")["parts"][0]
    assert overlap["trained"]["count"] == 160 == overlap["prompt_trained"]["count"]
    assert overlap["trained"]["pairs"][2] == ["chat.jsonl:3", "chat.jsonl:3"]
    renamed = ("--columns", "prompt=completion", "--columns", "completion=prompt")
    assert run_json(capsys, "validate", "pairs.jsonl", *renamed, expect=1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["validate"], "expected either data files or `--recipe`"),
        (["validate", "a.jsonl", "--recipe", "recipe.yaml"], "expected either data files or"),
        (["validate", "--recipe", "recipe.yaml", "--format", "text"], "have no effect beside"),
        (["validate", "chat.jsonl", "--format", "mesages"], "did you mean `messages`?"),
        (["validate", "chat.jsonl", "--columns", "text"], "expected KEY=NAME"),
        (["validate", "chat.jsonl", "--columns", "promt=a"], "did you mean `prompt`?"),
        (["validate", "caht.jsonl"], "there is no file or folder `caht.jsonl`"),
        (["split", "chat.jsonl", "--share", "1"], "expected a number above 0 and below 1"),
        (["split", "caht.jsonl"], "there is no file or folder `caht.jsonl`"),
        (["stats", "chat.jsonl", "sft.steps=3"], "only a recipe has values to override"),
        (["stats", "recipe.yaml", "--format", "text"], "have no effect on a recipe"),
        (["stats", "caht.jsonl"], "there is no file or folder `caht.jsonl`"),
        (["prepare", "recpie.yaml"], '"recpie.yaml" does not exist'),
    ],
)
def test_mistakes(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert message in run(capsys, *words, expect=2)


def test_split_says_what_it_wrote(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = run_json(capsys, "split", "chat.jsonl", "--share", "0.1", "--seed", "3")
    assert made["evaluation"]["path"] == "chat.evaluation.jsonl"
    assert made["train"]["rows"] + made["evaluation"]["rows"] == 160
    assert made["evaluation"]["rows"] == 16
    found = run_json(capsys, "validate", "chat.train.jsonl", "--against", "chat.evaluation.jsonl")
    assert found["parts"][0]["trained"]["count"] == 0
    assert "exists already" in run(capsys, "split", "chat.jsonl", expect=2)
    printed = run(capsys, "split", "chat.jsonl", "--names", "a.jsonl", "b.jsonl")
    assert printed.startswith("a.jsonl: 152 rows\nb.jsonl: 8 rows\n")


def test_stats_of_a_file_and_of_a_recipe(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = run_json(capsys, "stats", "chat.jsonl")["data"]
    assert (found["rows"], found["num_bad"], found["format"]) == (160, 0, "messages")
    assert found["roles"] == {"user": 160, "assistant": 160}
    assert found["turns"]["median"] == 2 and found["tokens"] is None
    of_recipe = run_json(capsys, "stats", "recipe.yaml", "sft.max_tokens=38")["data"]
    assert [each["name"] for each in of_recipe] == ["data[0]", "data[1]", "data[2]"]
    assert of_recipe[2]["tokens"]["lengths"]["max"] == 38
    assert of_recipe[2]["tokens"]["counts"]["truncated"] > 0
    printed = run(capsys, "stats", "recipe.yaml")
    assert "share of tokens trained" in printed and "########" in printed
    write_data(folder)  # the tokenizer of the cache stands for a model's
    (tokenizer,) = (folder / "cache" / "tokenizers").iterdir()
    (counted,) = run_json(capsys, "stats", "chat.jsonl", "--model", str(tokenizer))["data"]
    assert counted["tokens"]["lengths"]["count"] == 160
    assert 0.1 < counted["tokens"]["trained_share"] < 0.5


def write_preferences(folder: Path) -> None:
    """better.jsonl: twenty pairs with one bad row. judged.csv: labelled answers, as text."""
    rows = [
        {"prompt": f"{n} and one?", "chosen": f" {n + 1}", "rejected": " none"} for n in range(20)
    ]
    bad = {**rows[0], "rejected": ["none"]}
    lines = [json.dumps(row) + "\n" for row in [*rows, bad]]
    (folder / "better.jsonl").write_text("".join(lines))
    judged = [f"{n} and one?, {n + 1},{n % 4 > 0}\n" for n in range(20)]
    (folder / "judged.csv").write_text("".join(["prompt,completion,label\n", *judged]))


def test_data_commands_read_preferences(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_preferences(folder)
    printed = run(capsys, "validate", "better.jsonl", expect=1)
    assert "better.jsonl: 21 rows, preference, 1 bad" in printed
    assert "better.jsonl:21: `chosen` is text and `rejected` is a list" in printed
    assert "20 rows, unpaired, 0 bad" in run(capsys, "validate", "judged.csv")
    renamed = ("--columns", "chosen=rejected", "--columns", "rejected=chosen")
    run(capsys, "validate", "better.jsonl", *renamed, "--format", "preference", expect=1)
    run(capsys, "split", "better.jsonl", "--share", "0.2")
    lines = (folder / "better.evaluation.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 4 and set(lines) < set((folder / "better.jsonl").read_text().splitlines(1))

    run(capsys, "prepare", "recipe.yaml")
    (tokenizer,) = (folder / "cache" / "tokenizers").iterdir()
    (pairs,) = run_json(capsys, "stats", "better.jsonl", "--model", str(tokenizer))["data"]
    assert (pairs["format"], pairs["num_bad"], pairs["tokens"]["kind"]) == (
        "preference",
        1,
        "pairs",
    )
    assert list(pairs["tokens"]["segments"]) == ["prompt", "chosen", "rejected"]
    sums = [each["sum"] for each in pairs["tokens"]["segments"].values()]
    assert sum(sums) == pairs["tokens"]["lengths"]["sum"]
    shown = run(capsys, "stats", "judged.csv", "--model", str(tokenizer))
    assert "answers that are wanted: 15 (75.0%)" in shown and "tokens of the completion" in shown
    kinds = {entry["kind"] for entry in run_json(capsys, "list")["entries"]}
    assert kinds == {"supervised", "pairs", "unpaired"}
    assert "pairs" in run(capsys, "list")


def test_a_supervised_stage_says_what_it_cannot_learn_from(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_preferences(folder)
    for command in ("prepare", "show"):
        printed = run(capsys, command, "recipe.yaml", "sft.data=better.jsonl", expect=2)
        assert "this stage learns from text or conversations: expected `messages`" in printed
        assert "columns: {completion: chosen}" in printed
    better = "sft.data={path: better.jsonl, on_bad_row: skip, columns: {completion: chosen}}"
    assert run_json(capsys, "show", "recipe.yaml", better)["counts"]["samples"] == 21
