"""Own code in a recipe is named like a file: relative to the recipe, and looked for where it is."""

from pathlib import Path

import pytest

from hone.errors import UserError
from hone.recipe.load import load_recipe

pytestmark = pytest.mark.quick

TEXT = """\
model: acme/base
stages:
  - grpo: {data: prompts.jsonl, rewards: [reward.py:distinct], credit: mean}
"""


def write(folder: Path, text: str = TEXT) -> Path:
    (folder / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    (folder / "reward.py").write_text("")
    (folder / "recipe.yaml").write_text(text)
    return folder / "recipe.yaml"


def test_code_becomes_absolute_and_words_stay(tmp_path: Path) -> None:
    loaded = load_recipe(write(tmp_path))
    stage = loaded.recipe.stages[0].settings
    assert stage.rewards[0].function == f"{tmp_path}/reward.py:distinct"
    assert stage.credit == "mean"
    assert loaded.resolved["stages"][0]["grpo"]["rewards"][0]["function"] == "reward.py:distinct"


def test_code_on_the_command_line_is_found_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "own.py").write_text("")
    monkeypatch.chdir(tmp_path / "here")
    loaded = load_recipe(path, ["grpo.credit=own.py:mine"])
    assert loaded.recipe.stages[0].settings.credit == f"{tmp_path}/here/own.py:mine"
    assert loaded.resolved["stages"][0]["grpo"]["credit"] == f"{tmp_path}/here/own.py:mine"


def test_missing_code_is_named_with_what_is_near(tmp_path: Path) -> None:
    path = write(tmp_path, TEXT.replace("reward.py:", "rewards.py:"))
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    assert caught.value.message == (
        f'{path}:3: stages[0].grpo.rewards[0].function: "rewards.py" does not exist: nothing named '
        f'"rewards.py" in {tmp_path}; did you mean "reward.py"?'
    )
