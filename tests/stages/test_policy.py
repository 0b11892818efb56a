"""The stage `grpo` as a person meets it: it learns, says what it did, and stops where it must."""

import gc
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hone.cli.commands import invoke
from hone.errors import UserError
from hone.metrics import Row, read_metrics
from hone.recipe.load import load_recipe
from hone.recorded import groups_of, list_rollout_files
from hone.runs import Run, create_run
from hone.stages.run import check_recipe, load_result, run_recipe, stage_tasks
from tests.workbench import NEW_MODEL, fingerprint, write_data

RECIPE = (
    NEW_MODEL
    + """
stages:
  - grpo:
      data: prompts.jsonl
      rewards: [reward.py:low]
      adapter: full
      batch: {samples: 2}
      group: 8
      completion_tokens: 6
      steps: 4
      learning_rate: 0.01
"""
)
REWARDS = """
from pathlib import Path

from tests.workbench import fill


def filling(completion_ids, trainer_state, **columns):
    place = Path(__file__).parent / "disk"
    if place.exists() and trainer_state.global_step == 1:
        fill(Path(place.read_text()), 4_000)
    return low(completion_ids)


def low(completion_ids, **columns):
    return [sum(token < 150 for token in ids) / len(ids) for ids in completion_ids]


def equal(completions, **columns):
    return [1.0] * len(completions)


def broken(completions, **columns):
    if (Path(__file__).parent / "mended").exists():
        return [float(n) for n in range(len(completions))]
    raise RuntimeError("the judge is away")
"""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, rewards and the recipe."""
    folder = tmp_path_factory.mktemp("policy")
    write_data(folder)
    rows = [{"prompt": f"{a} plus {b} is", "sum": a + b} for a in range(5) for b in range(5)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "reward.py").write_text(REWARDS)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture
def folder(bench: Path) -> Iterator[Path]:
    """The same folder, without runs afterwards."""
    yield bench
    shutil.rmtree(bench / "runs", ignore_errors=True)
    (bench / "mended").unlink(missing_ok=True)


def make(folder: Path, *overrides: str, runs: Path | None = None) -> Run:
    return create_run(
        load_recipe(folder / "recipe.yaml", overrides), "run", runs or folder / "runs"
    )


def do(run: Run) -> str:
    """One attempt; what was printed."""
    console = Console(file=io.StringIO(), width=200)
    with run.attempt():
        run_recipe(run, console=console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def rows(run: Run, split: str | None = None) -> list[Row]:
    found = read_metrics(run.path / "stages/1-grpo/metrics.jsonl")
    return [row for row in found if row.get("split") == split]


def test_a_reward_rises_and_its_result_answers(folder: Path) -> None:
    """Tokens below 150 are rewarded; with learning rate 0 nothing is learned."""
    more = ("grpo.steps=24", "grpo.evaluation={share: 0.2, every: 24, temperature: 1}")
    run = make(folder, *more)
    printed = do(run)
    first, last = (row["reward"] for row in rows(run, "evaluation"))
    assert last > first + 0.25
    assert "20 tasks, 5 held out, prompts of" in printed and "held-out reward" in printed
    (answer,) = load_result(run).generate_text(["1 plus 2 is"], max_new_tokens=6)
    assert answer
    shutil.rmtree(folder / "runs")
    still = make(folder, *more, "grpo.learning_rate=0")
    do(still)
    first, last = (row["reward"] for row in rows(still, "evaluation"))
    assert first == last


def test_what_a_row_says(folder: Path) -> None:
    run = make(folder, "grpo.updates=2", "grpo.beta=0.01", "grpo.precision=fp32")
    do(run)
    for row in rows(run):
        assert {"ratio", "kl", "entropy", "clip_share", "gap", "completion_tokens"} <= set(row)
        assert {"truncated_share", "failed_share", "no_spread_share", "reward_spread"} <= set(row)
        assert {"reward/low", "reward/low/spread", "reward/low/at_top"} <= set(row)
        assert row["samples"] == 2 and row["rollouts"] == 16
        fresh = row["step"] % 2 == 1
        assert (row["gap"] < 1e-5) == fresh and ("sampling_s" in row) == fresh
        assert (abs(row["ratio"] - 1) < 1e-5) == fresh
    assert rows(run)[0]["kl"] < 1e-9 < rows(run)[1]["kl"]
    files = list_rollout_files(run.stage_folders())
    assert [(file.step, file.whole) for file in files] == [(1, True), (3, True)]
    assert [len(group) for group in groups_of(files[0].read())] == [8, 8]


def test_sampling_and_training_that_are_too_far_apart_stop_before_the_update(folder: Path) -> None:
    run = make(folder, "grpo.max_gap=1e-9", "grpo.precision=bf16")
    with pytest.raises(UserError, match="another probability when they were sampled than in"):
        do(run)
    assert rows(run) == [] and not list(run.path.glob("stages/1-grpo/checkpoints/*"))


def test_a_step_of_which_nothing_is_left_makes_no_update(folder: Path) -> None:
    words = ("grpo.rewards=[reward.py:equal]", "grpo.no_spread=resample")
    run = make(folder, *words, "grpo.checkpoint.every=1")
    do(run)
    for row in rows(run):
        assert row["samples"] == 0 and row["skipped"] == 1 and row["used_share"] == 0
    kept = run.path / "stages/1-grpo/model/model.safetensors"
    assert kept.read_bytes() == (run.path / "base/model.safetensors").read_bytes()
    found = list_rollout_files(run.stage_folders())[0].read()
    assert {rollout.left_out for rollout in found} == {"no spread"}


def test_failures_stop_the_stage_and_are_scored_again(folder: Path) -> None:
    words = ("grpo.rewards=[reward.py:broken]", "grpo.checkpoint.every=1")
    run = make(folder, *words)
    with pytest.raises(UserError) as stopped:
        do(run)
    assert "16 of 16 rollouts could not be scored" in stopped.value.message
    assert "`broken` raised RuntimeError: the judge is away" in stopped.value.message
    assert run.status()["state"] == "failed"
    (folder / "mended").touch()
    do(run)
    assert [row["step"] for row in rows(run)] == [1, 2, 3, 4]
    assert all(row["failed_share"] == 0 for row in rows(run))


def test_a_full_disk_stops_before_anything_is_learned_from_what_is_not_kept(
    folder: Path, small_disk: Path
) -> None:
    """The reward of step 2 fills it."""
    words = ("grpo.checkpoint.every=1", "grpo.group=32", "grpo.rewards=[reward.py:filling]")
    expected = make(folder, *words)
    do(expected)
    run = make(folder, *words, runs=small_disk)
    (folder / "disk").write_text(str(small_disk))
    with pytest.raises(UserError, match="the rollouts could not be kept, the disk of"):
        do(run)
    assert [row["step"] for row in rows(run)] == [1]
    (small_disk / "filler").unlink()
    (folder / "disk").unlink()
    do(run)
    assert fingerprint(run.path) == fingerprint(expected.path)
    gc.collect()  # models that were read from there


REFUSED = {
    ("grpo.environment=arithmetic",): "expected exactly one of `environment` and `data`, found",
    ("grpo.rewards=[]",): "expected `rewards` beside it",
    ("grpo.evaluation={every: 5}",): "expected exactly one of `share` and `data`, found none",
    ("grpo.loss=grop",): "expected one of grpo, dapo, dr_grpo",
    ("grpo.credit=means",): "expected one of group, mean, leave_one_out",
    ("grpo.loss=reinforce", "grpo.updates=2"): "expected `updates: 1`",
    ("grpo.group=1",): "group",
    ("grpo.temperature=0",): "temperature",
    ("grpo.batch={tokens: 100}",): 'unknown key "tokens"',
    ("grpo.evaluation={share: 0.2, early_stopping: {metric: loss}}",): "such as `reward/correct`",
    ("grpo.overlong={penalty: -1}",): "above 0",
}


@pytest.mark.parametrize(("overrides", "words"), REFUSED.items(), ids=map(str, REFUSED))
def test_what_cannot_be_is_refused(overrides: tuple[str, ...], words: str, folder: Path) -> None:
    with pytest.raises(UserError) as refused:
        load_recipe(folder / "recipe.yaml", overrides)
    assert words in refused.value.message


def findings(folder: Path, *overrides: str) -> list[str]:
    loaded = load_recipe(folder / "recipe.yaml", overrides)
    return [f"{found.severity}: {found.message}" for found in check_recipe(loaded)]


def test_check_says_what_there_is_and_what_is_wrong(folder: Path) -> None:
    told = "25 tasks, 0 held out, prompts of 5 to 5 tokens; 16 completions for each step"
    assert f"note: stage 1 grpo: {told}" in findings(folder)
    (wrong,) = (each for each in findings(folder, "grpo.rewards=[reward.py:lo]") if "error" in each)
    assert "there is no `lo`" in wrong and "did you mean `low`?" in wrong
    assert "note: stage 1 grpo: rewards: low; 4 steps" in findings(folder)
    twice = "grpo.rewards=[reward.py:low, reward.py:low]"
    (wrong,) = (each for each in findings(folder, twice) if "error" in each)
    assert "two rewards are called `low`" in wrong
    stopping = "grpo.evaluation={share: 0.2, early_stopping: {metric: reward/lo}}"
    (wrong,) = (each for each in findings(folder, stopping) if "error" in each)
    assert "is `reward/lo`; expected one of reward, reward/low" in wrong
    (wrong,) = (each for each in findings(folder, "grpo.prompt_tokens=2") if "error" in each)
    assert "no prompt of 25 has at most `prompt_tokens` 2 tokens" in wrong
    (folder / "open.jsonl").write_text(
        '{"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    )
    (wrong,) = (each for each in findings(folder, "grpo.data=open.jsonl") if "error" in each)
    assert "open.jsonl:1: the last message of the prompt is of role `assistant`" in wrong


def test_data_show_prints_prompts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "show", str(folder / "recipe.yaml"), "--samples", "2", "--start", "1"]
    assert invoke(words) == 0
    printed = capsys.readouterr().out
    assert "prompts.jsonl:2, 5 tokens" in printed and "0 plus 2 is" in printed
    assert "0 plus 0 is" not in printed and "`hone rollouts RUN`" in printed
    assert invoke([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [each["text"] for each in told["prompts"]] == ["0 plus 1 is", "0 plus 2 is"]
    assert told["counts"] == {"tasks": 25, "held_out": 0}


def test_check_scores_gold_answers(folder: Path) -> None:
    environment = "{type: answers, data: %s, columns: {answer: sum}, match: numeric, marker: '%s'}"
    recipe = (folder / "recipe.yaml").read_text()
    recipe = recipe.replace(
        "data: prompts.jsonl", f"environment: {environment % ('prompts.jsonl', 'A:')}"
    )
    (folder / "gold.yaml").write_text(recipe.replace("rewards: [reward.py:low]", "template: auto"))
    found = check_recipe(load_recipe(folder / "gold.yaml"))
    assert any("gold answers were scored, all with full marks" in each.message for each in found)


def test_the_prompts_are_those_that_are_sampled_from(folder: Path) -> None:
    run = make(folder, "grpo.steps=1")
    do(run)
    tasks, tokenizer = stage_tasks(load_recipe(folder / "recipe.yaml", ["grpo.steps=1"]), 0)
    by_task: dict[int, Any] = {q.task.index: q for q in tasks.questions}
    for rollout in list_rollout_files(run.stage_folders())[0].read():
        question = by_task[rollout.task]
        assert list(rollout.prompt_ids) == question.ids
        assert rollout.prompt == question.task.prompt == tokenizer.decode(question.ids)


def test_the_dropout_of_a_model_does_not_part_training_from_sampling(folder: Path) -> None:
    """Neither that of the configuration nor that of the adapter."""
    config = "{n_embd: 32, n_layer: 2, n_head: 4, resid_pdrop: 0.3, attn_pdrop: 0.3}"
    tokenizer = "{train_on: text.jsonl, vocabulary: 320}"
    model = f"model={{architecture: gpt2, config: {config}, tokenizer: {tokenizer}}}"
    run = make(folder, model, "grpo.precision=fp32", "grpo.steps=1", "grpo.adapter={dropout: 0.3}")
    assert "dropout is off" in do(run)
    (row,) = rows(run)
    assert row["gap"] < 1e-4
    assert row["ratio"] == pytest.approx(1, abs=1e-4)


def test_weights_that_an_update_has_broken_are_told(folder: Path) -> None:
    words = ("grpo.learning_rate=1e30", "grpo.optimizer=sgd", "grpo.max_grad_norm=null")
    with pytest.raises(UserError, match="the model's probabilities are not finite"):
        do(make(folder, *words))
