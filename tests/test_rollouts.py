"""Groups are sampled, scored, credited and kept; failures, cut-off answers and equal rewards."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hone.credit import make_credit
from hone.device import Precision
from hone.errors import UserError
from hone.files import read_json_lines
from hone.frozen_start import open_start
from hone.models import join_model
from hone.optim import make_optimizer
from hone.recipe.policy import Grpo
from hone.recorded import partial_path, read_rollouts, rollouts_path
from hone.records import Task
from hone.rewards.pool import Scorer
from hone.rollouts import Player, Question, other_questions, to_samples
from hone.training import Training
from tests.test_signals import run_script
from tests.tiny import make_model

REWARDS = """
import time
from pathlib import Path

HERE = Path(__file__).parent


def low(completion_ids, **columns):
    with (HERE / "calls.txt").open("a") as file:
        file.write("called\\n")
    return [sum(token < 48 for token in ids) / len(ids) for ids in completion_ids]


def same(completions, **columns):
    return [float(n > 3)] * len(completions) if (n := columns["n"][0]) != 5 else [0.0, 1.0, 2.0]


def broken(completions, n, **columns):
    if (HERE / "mended").exists():
        return [0.5, 0.0, 1.0]
    if n[0] == 0:
        raise ValueError("no such thing")
    if n[0] == 1:
        time.sleep(60)
    return {2: [float("nan"), 1.0, 0.0], 3: [float("inf"), None, 1.0]}.get(n[0], [1.0, 0.0, 0.5])
"""


class Numbers:
    """A tokenizer whose tokens are their numbers."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return " ".join(str(each) for each in ids if each != 2 or not skip_special_tokens)


Make = Callable[..., Player]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """A function from settings to a player in a stage's folder; questions n = 0, 1, ... of which a
    step asks the first four.
    """
    (tmp_path / "reward.py").write_text(REWARDS)
    with ExitStack() as stack:

        def player(reward: str = "low", **given: Any) -> Player:
            function = {"function": f"{tmp_path}/reward.py:{reward}", "limit_s": 2.0}
            base = {"data": "none.jsonl", "group": 3, "completion_tokens": 6}
            settings = Grpo.model_validate(base | {"rewards": [function]} | given)
            precision = Precision(torch.float32, torch.float32, "for the test")
            model = join_model(make_model("llama"), precision)
            training = Training(
                model=model,
                optimizer=make_optimizer(model.module, settings.optimizer),
                settings=settings,
                folder=tmp_path / "stage",
                seed=0,
                stage=0,
                total_steps=8,
                token_budget=64,
                epoch_of=lambda step: step / 4,
            )
            training.folder.mkdir(exist_ok=True)
            questions = [
                Question(Task(n, f"{n}?", {"n": n}, place=f"rows:{n}"), [3 + n, 4, 5])
                for n in range(9)
            ]
            return Player(
                training=training,
                settings=settings,
                scorer=stack.enter_context(Scorer(settings.rewards, workers=1)),
                credit=make_credit(settings.credit),
                tokenizer=Numbers(),
                end_token_ids=[2],
                questions_of=lambda step: questions[:4],
                more=lambda step, asked, n: other_questions(questions, asked, n, "more", step),
                held_out=questions[6:],
            )

        yield player


def calls(player: Player) -> int:
    path = player.training.folder.parent / "calls.txt"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_what_is_kept_and_learned_from(make: Make) -> None:
    player = make(temperature=0.7)
    rollouts = player.rollouts_of(1)
    assert [(each.group, each.sample) for each in rollouts] == [
        (group, sample) for group in range(4) for sample in range(3)
    ]
    for n in range(4):
        group = rollouts[3 * n : 3 * n + 3]
        for each in group:
            expected = sum(token < 48 for token in each.ids) / len(each.ids)
            assert each.rewards == {"low": expected} and each.total == expected
            assert each.task == n and each.text == " ".join(str(i) for i in each.ids if i != 2)
        totals = np.array([each.total for each in group])
        expected_G = (totals - totals.mean()) / (totals.std(ddof=1) + 1e-4)
        assert np.allclose([each.advantage for each in group], expected_G)
    samples = to_samples(rollouts)
    for n, sample in enumerate(samples):
        assert sample.index == n
        assert sample.segments[0].tokens.tolist() == [3 + n, 4, 5]
        for segment, each in zip(sample.segments[1:], rollouts[3 * n :], strict=False):
            assert segment.parent == 0 and segment.trained.all()
            assert segment.tokens.tolist() == list(each.ids)
            assert np.array_equal(segment.constants["old"], each.logprobs)
            assert set(segment.constants["advantage"]) == {each.advantage}
    assert calls(player) == 4
    assert player.sampling_s > 0
    again = make(temperature=0.7)
    assert [each.as_line() for each in again.rollouts_of(1)] == [
        each.as_line() for each in rollouts
    ]
    assert calls(player) == 4 and again.sampling_s == 0
    assert [each.ids for each in again.rollouts_of(2)] != [each.ids for each in rollouts]


def test_a_part_that_was_scored_is_not_scored_again(make: Make) -> None:
    player = make()
    whole = [each.as_line() for each in player.rollouts_of(1)]
    path = rollouts_path(player.training.folder, "step", 1)
    lines = path.read_text().splitlines(keepends=True)
    path.unlink()
    partial_path(path).write_text("".join(lines[3:9]) + lines[9][:40])  # the last group is torn
    assert [each.as_line() for each in make().rollouts_of(1)] == whole
    assert calls(player) == 4 + 2
    assert not partial_path(path).exists()


def test_scores_of_other_completions_are_not_used(make: Make) -> None:
    player = make()
    rollouts = player.rollouts_of(1)
    path = rollouts_path(player.training.folder, "step", 1)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.unlink()
    for line in lines:
        line["ids"][0] += 1
    partial_path(path).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [each.as_line() for each in make().rollouts_of(1)] == [r.as_line() for r in rollouts]
    assert calls(player) == 8


def test_what_fails_leaves_the_update_and_the_baseline(make: Make) -> None:
    """Of question 0 the call raises, of 1 it hangs, of 2 one reward is NaN, of 3 one is infinite
    and one does not apply.
    """
    player = make("broken", max_failures=0.9)
    began = time.monotonic()
    rollouts = player.rollouts_of(1)
    assert time.monotonic() - began < 20
    failures = [[each.failure for each in rollouts[n : n + 3]] for n in (0, 3, 6, 9)]
    assert all("`broken` raised ValueError: no such thing" in str(each) for each in failures[0])
    assert all("took longer than 2 s" in str(each) for each in failures[1])
    assert "nan" in str(failures[2][0]) and failures[2][1:] == [None, None]
    assert "inf" in str(failures[3][0]) and "no reward applies" in str(failures[3][1])
    two = [each.advantage for each in rollouts[6:9]]
    assert two[0] is None and two[1] == pytest.approx(0.5 / (0.5**0.5 + 1e-4))
    assert rollouts[11].left_out == "fewer than two survivors" and rollouts[11].advantage is None
    (sample,) = to_samples(rollouts)
    assert sample.index == 2 and len(sample.segments) == 3
    row = player.summarise(rollouts)
    assert row["failed_share"] == pytest.approx(9 / 12) and row["used_share"] == pytest.approx(
        2 / 12
    )
    assert row["reward"] == pytest.approx(2 / 3)  # 1, 0 and 1: a failure is no zero


def test_too_many_failures_stop_the_stage_and_are_scored_again(make: Make) -> None:
    player = make("broken")
    with pytest.raises(UserError) as stopped:
        player.rollouts_of(1)
    assert "9 of 12 rollouts could not be scored (75%; `max_failures` is 0.5)" in str(stopped.value)
    assert "3 times: `broken` raised ValueError: no such thing" in stopped.value.message
    path = rollouts_path(player.training.folder, "step", 1)
    shown = [table.get("failure") for table in read_json_lines(partial_path(path))]
    assert sum(each is not None for each in shown) == 9
    assert read_rollouts(path) is None
    (player.training.folder.parent / "mended").touch()
    rollouts = player.rollouts_of(1)
    assert all(each.failure is None for each in rollouts)


def test_groups_without_spread_are_replaced(make: Make) -> None:
    kept = make("same").rollouts_of(1)
    assert all(each.used and each.advantage == 0 for each in kept) and len(kept) == 12
    player = make("same", no_spread={"rounds": 2})
    rollouts = player.rollouts_of(2)
    tasks = [each.task for each in rollouts[::3]]
    assert tasks[:4] == [0, 1, 2, 3] and sorted(tasks) == list(range(9))
    assert [each.group for each in rollouts] == [n // 3 for n in range(27)]
    assert {each.task for each in rollouts if each.used} == {5}
    assert {each.left_out for each in rollouts if not each.used} == {"no spread"}
    assert player.summarise(rollouts)["no_spread_share"] == pytest.approx(8 / 9)
    assert len(make("same", no_spread={"rounds": 1}).rollouts_of(3)) == 3 * 8


def test_answers_that_the_length_has_cut(make: Make) -> None:
    plain = make().rollouts_of(1)
    cut = [each.finish == "length" for each in plain]
    assert any(cut)
    masked = make(overlong="mask").rollouts_of(2)
    assert [each.advantage for each in masked if each.finish == "length"].count(None) == 0
    assert [each.used for each in masked] == [each.finish != "length" for each in masked]
    lowered = make(overlong={"penalty": 0.25}).rollouts_of(3)
    for each in lowered:
        expected = each.rewards["low"] - 0.25 * (each.finish == "length")
        assert each.total == pytest.approx(expected)


def test_the_reference_is_the_start_of_the_stage(make: Make) -> None:
    player = make(beta=0.1, temperature=0.5)
    player.reference = open_start(player.training)
    before = player.rollouts_of(1)
    for each in before:  # nothing has been trained: what sampled is what is compared with
        assert each.reference is not None
        assert np.abs(each.reference - plain_logprobs(player, each)).max() < 1e-4
    with torch.no_grad():
        for parameter in player.training.model.module.parameters():
            parameter.mul_(1.05)
    weights = {n: p.clone() for n, p in player.training.model.trainable()}
    after = player.rollouts_of(2)
    for each in after:
        assert each.reference is not None
        assert np.abs(each.reference - plain_logprobs(player, each)).max() > 1e-3
    assert all(torch.equal(p, weights[n]) for n, p in player.training.model.trainable())
    constants = to_samples(after)[0].segments[1].constants
    assert set(constants) == {"old", "advantage", "reference"}
    with player.reference.in_place():
        for each in after:
            assert np.abs(each.reference - plain_logprobs(player, each)).max() < 1e-4


@torch.no_grad()
def plain_logprobs(player: Player, rollout: Any) -> np.ndarray:
    """Log-probabilities by transformers' own forward."""
    model = player.training.model.causal
    ids = torch.tensor([[*rollout.prompt_ids, *rollout.ids]])
    model.set_attn_implementation("sdpa")
    logprobs = model(input_ids=ids).logits[0].log_softmax(-1)
    model.set_attn_implementation("hone_forest")
    begin = len(rollout.prompt_ids)
    return np.array([float(logprobs[begin + n - 1, i]) for n, i in enumerate(rollout.ids)])


def test_held_out_tasks_are_kept_too(make: Make) -> None:
    player = make(data="none.jsonl", evaluation={"share": 0.5})
    row = player.evaluate(4)
    assert row["samples"] == row["rollouts"] == 3 and row["reward"] == row["reward/low"]
    assert calls(player) == 3
    kept = read_rollouts(rollouts_path(player.training.folder, "evaluation", 4)) or []
    assert [each.task for each in kept] == [6, 7, 8]
    assert make(evaluation={"share": 0.5}).evaluate(4) == row and calls(player) == 3
    greedy = [list(each.ids) for each in kept]
    player.evaluate(8)
    again = read_rollouts(rollouts_path(player.training.folder, "evaluation", 8)) or []
    assert [list(each.ids) for each in again] == greedy


def test_memory_that_does_not_suffice_for_so_many(make: Make) -> None:
    """A model that cannot compute more than 8 new tokens at once, as its hook says."""
    player = make(sequences_at_once=12)
    told: list[str] = []
    kept: list[list[tuple[float, int]]] = []
    player.training.warn = told.append
    player.keep_smaller = lambda smaller: kept.append(list(smaller))

    def refuse(module: Any, args: Any, kwargs: Any) -> None:
        ids = kwargs["input_ids"]
        if ids.shape[1] in (16, 24, 32):  # a row of new tokens is filled up to a multiple of 8
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    base = player.training.model.causal.base_model
    hook = base.register_forward_pre_hook(refuse, with_kwargs=True)
    rollouts = player.rollouts_of(1)
    hook.remove()
    assert kept == [[(1, 6)]] and "at most 6 are sampled at once" in told[0]
    assert player.sequences_at(1) == 6 and player.sequences_at(0.5) == 12
    expected = make(sequences_at_once=6).rollouts_of(2)
    assert len(expected) == len(rollouts) == 12
    with pytest.raises(UserError, match="not even one completion can be sampled"):
        player.sample_fewer(2, 1, "no memory")


def test_a_stop_never_leaves_the_weights_of_the_start_in_place() -> None:
    """What a stop saves are the weights that are trained."""
    code, lines, _ = run_script(
        """
        import torch
        from hone.frozen_start import FrozenStart

        class Model:
            device = torch.device("cpu")
            weight = torch.nn.Parameter(torch.ones(1))

            def trainable(self):
                return [("weight", self.weight)]

        start = FrozenStart(Model(), {"weight": torch.zeros(1)})
        try:
            with start.in_place():
                ready()
                end = time.monotonic() + 0.5
                while time.monotonic() < end:
                    pass
                say(f"there {Model.weight.item():.0f}")
                signals.check_stop()
                say("went on")
        except signals.StopRequested:
            say(f"back {Model.weight.item():.0f}")
        """,
        signal.SIGTERM,
    )
    assert (code, lines) == (0, ["there 0", "back 1"])
