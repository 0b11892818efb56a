"""What an evaluation depends on, where it is kept, and what scores answers."""

from pathlib import Path

import pytest
import torch

from hone.choosing import SamplingSettings
from hone.errors import UserError
from hone.evaluation.answered import Answered, summarise
from hone.evaluation.evaluate import NAMES
from hone.evaluation.opened import Model, rewards_of, what_of
from hone.evaluation.stored import Place, differing, find_place, read_evaluation
from hone.recipe.data import Data
from hone.recipe.load import load_environment, load_resolved
from hone.recipe.rewards import Answers, Arithmetic, Reward
from hone.runs import Run

pytestmark = pytest.mark.quick

DOCS = Path(__file__).parents[2] / "docs/evaluation.md"


def test_the_page_lists_every_measure() -> None:
    section = DOCS.read_text().partition("## Measures")[2].partition("\n## ")[0]
    first = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    listed = [name.strip(" `") for cell in first for name in cell.split(",")]
    assert sorted(listed) == sorted(NAMES)


def test_the_rewards_of_a_recipe_are_those_of_its_last_stage_that_has_some(tmp_path: Path) -> None:
    stages = [
        {"grpo": {"environment": {"type": "arithmetic", "digits": 1}}},
        {"grpo": {"data": "prompts.jsonl", "rewards": ["reward.py:one"]}},
        {"sft": {"data": "chat.jsonl"}},
    ]
    recipe = load_resolved({"model": "none", "stages": stages}, tmp_path).recipe
    (reward,) = rewards_of(recipe)
    assert isinstance(reward, Reward) and reward.function.endswith("reward.py:one")
    first = load_resolved({"model": "none", "stages": [stages[0], stages[2]]}, tmp_path).recipe
    assert rewards_of(first) == [Arithmetic(digits=1)]
    last = load_resolved({"model": "none", "stages": [stages[2]]}, tmp_path).recipe
    assert rewards_of(last) == []


def test_an_environment_of_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_environment("arithmetic") == Arithmetic()
    (tmp_path / "asked.jsonl").write_text("{}\n")
    found = load_environment("{type: answers, data: asked.jsonl, match: numeric}")
    assert isinstance(found, Answers)
    assert found.data.path == str(tmp_path / "asked.jsonl")
    with pytest.raises(UserError, match=r'command line: .*data.*"askd.jsonl"'):
        load_environment("{type: answers, data: askd.jsonl}")


def test_where_an_evaluation_is_kept(tmp_path: Path) -> None:
    device = torch.device("cpu")
    run = Run(tmp_path / "runs/first")
    kept = run.path / "evaluations"
    assert Model("x", device, run=run).evaluations("facts") == (kept, "facts")
    assert Model("x", device, run=run, stage="2").evaluations("facts") == (kept, "facts-stage-2")
    assert Model("x", device, run=run, stage="base").evaluations("a b") == (kept, "a-b-base")
    folder, name = Model("Qwen/Qwen3-0.6B", device).evaluations("facts")
    assert (str(folder), name) == ("evaluations", "Qwen3-0.6B-facts")


def test_content_counts_and_not_the_path(tmp_path: Path) -> None:
    whats = []
    for name, weights, reward in (("a", b"1", "1"), ("b", b"1", "1"), ("c", b"2", "2")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(weights)
        (folder / "rows.jsonl").write_text("{}\n")
        (tmp_path / "reward.py").write_text(f"def one(**c): return [{reward}]\n")
        model, data = Model(str(folder), torch.device("cpu")), Data(path=str(folder / "rows.jsonl"))
        rewards = [Reward(function=f"{tmp_path / 'reward.py'}:one")]
        whats.append(what_of(model, data, rewards, SamplingSettings(8, stop=("x",)), {"seed": 1}))
    assert differing(whats[0], whats[1]) == []
    assert whats[0] != whats[1]
    found = differing(whats[0], whats[2])
    assert [each.partition(" was ")[0] for each in found] == ["model.sha256", "rewards"]


def test_a_place_is_taken_up_behind_its_last_whole_batch(tmp_path: Path) -> None:
    what = {"model": {"sha256": "1"}, "settings": {"seed": 0}}
    place, _ = find_place(tmp_path, "facts", what)
    assert place.lines == tmp_path / "facts.jsonl"
    place.begin(what)
    rows = [
        Answered(n, f"row {n}", "?", answer="é\u2028", scores={"exact": n / 4}) for n in range(7)
    ]
    place.keep(rows[:3])
    place.keep(rows[3:5])
    with place.lines.open("ab") as file:
        file.write(b'{"index": 5, ')
    assert place.take_up(3, 7) == rows[:3]
    assert place.lines.read_bytes().count(b"\n") == 3
    place.keep(rows[3:])
    assert place.take_up(3, 7) == rows
    with pytest.raises(UserError, match="is not finished"):
        read_evaluation(place.lines)
    place.finish(what, summarise(rows))
    assert read_evaluation(tmp_path / "facts.json").evaluated == summarise(rows)
    again, differences = find_place(tmp_path, "facts", what)
    assert again == place and differences == []
    other, differences = find_place(tmp_path, "facts", {**what, "settings": {"seed": 1}})
    assert other == Place(tmp_path / "facts-2.jsonl")
    assert differences == ["settings.seed was 0, is 1"]
    with pytest.raises(UserError, match="is no evaluation"):
        read_evaluation(tmp_path / "none.jsonl")
