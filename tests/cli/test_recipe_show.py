"""`hone recipe show`: what is printed is the profile, or the recipe, with its help."""

import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from hone.cli.commands import invoke
from hone.recipe.load import load_recipe
from hone.recipe.profiles import open_profile, profile_names
from hone.recipe.schema import Sft
from tests.recipe.test_load import SMALL, write

pytestmark = pytest.mark.quick


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert invoke(["recipe", "show", *words]) == 0
    return capsys.readouterr().out


def test_the_list_has_every_profile(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys).splitlines()
    assert [line.split()[0] for line in lines[1:]] == profile_names()
    listed = json.loads(shown(capsys, "--json"))
    assert [each["name"] for each in listed] == profile_names()
    assert all(each["summary"] in "\n".join(lines) for each in listed)


@pytest.mark.parametrize("name", profile_names())
def test_a_profile_is_printed_as_a_profile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    text = shown(capsys, name)
    own = tmp_path / "own.yaml"
    own.write_text(text)
    built_in = open_profile(name)
    saved = open_profile(str(own), file=own)
    assert (saved.settings, saved.faults) == (built_in.settings, [])
    assert saved.summary == built_in.summary
    help_of_rate = Sft.model_fields["learning_rate"].description
    assert f"# {help_of_rate}\nlearning_rate: " in text
    described = json.loads(shown(capsys, str(own), "--json"))
    assert described["settings"] == built_in.settings


def test_a_recipe_is_printed_as_a_recipe_with_help_and_origins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(
        tmp_path, SMALL.replace("data: chat.jsonl", "data: chat.jsonl\n      profile: chat")
    )
    text = shown(capsys, str(path), "sft.steps=7")
    loaded = load_recipe(path, ["sft.steps=7"])
    assert YAML(typ="safe", pure=True).load(text) == loaded.resolved
    again = tmp_path / "again.yaml"
    again.write_text(text)
    assert load_recipe(again).recipe == loaded.recipe
    lines = text.splitlines()
    at = next(number for number, line in enumerate(lines) if line.strip().startswith("rank:"))
    assert lines[at - 1].strip() == "# Rank of the update, r."
    assert lines[at].endswith("  # profile chat")
    assert any(line.strip().startswith("steps: 7") for line in lines)
    start = next(number for number, line in enumerate(lines) if line.startswith("  - sft:"))
    assert lines[start - 1].startswith("  # Supervised")
    values = json.loads(shown(capsys, str(path), "sft.steps=7", "--json"))
    assert values["recipe"] == loaded.resolved
    ranks = [row for row in values["values"] if row["key"].endswith("adapter.rank")]
    assert ranks == [{"key": "stages[0].sft.adapter.rank", "value": 8, "origin": "profile chat"}]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["caht"], 'there is no profile "caht"; did you mean "chat"?'),
        (["recip.yaml"], 'did you mean "recipe.yaml"?'),
        (["zebra"], "expected chat, code, instruction or a YAML file"),
        (["chat", "sft.steps=3"], "a profile is shown as it is"),
        (["own.yaml"], 'own.yaml:1: max_tokns: unknown key "max_tokns"; did you mean'),
        (["broken.yaml"], "broken.yaml:1: not valid YAML"),
        (["recipe.yaml", "sft.stps=3"], 'unknown key "stps"; did you mean "steps"?'),
    ],
)
def test_what_cannot_be_shown(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    write(tmp_path, SMALL)
    (tmp_path / "own.yaml").write_text("max_tokns: 3\n")
    (tmp_path / "broken.yaml").write_text("a: b: c\n")
    monkeypatch.chdir(tmp_path)
    assert invoke(["recipe", "show", *words]) == 2
    assert message in capsys.readouterr().err


def test_odd_keys_and_texts_survive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"a: b": "# x", "- ": "1e-5", "": "null", "ö": "yes", "#": " x ", "true": "["}
    config |= {"x": "\t", "y": "\u2028\u0085"}
    recipe = {
        "model": {"tokenizer": "acme/base", "config": config},
        "stages": [{"pretrain": {"data": {"path": "chat.jsonl", "columns": {"text": "a: {b}"}}}}],
    }
    path = write(tmp_path, json.dumps(recipe))
    text = shown(capsys, str(path))
    assert YAML(typ="safe", pure=True).load(text)["model"]["config"] == config
    assert YAML(typ="safe", pure=True).load(text) == load_recipe(path).resolved
