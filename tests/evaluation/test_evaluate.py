"""Questions put to a model and judged: against plain forwards of one text at a time."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from hone.choosing import SamplingSettings
from hone.cli.arguments import data_of
from hone.data.chat import CHATML
from hone.environments import make_environment
from hone.errors import UserError
from hone.evaluation.answered import Answered, Evaluated, perplexity, summarise
from hone.evaluation.evaluate import GREEDY, Wanted, evaluate, make_wanted, usual_measures
from hone.evaluation.examples import Question, questions_of, read_questions
from hone.evaluation.measures import MEASURES, make_regex
from hone.recipe.rewards import Arithmetic, Reward
from hone.sampling import Artifact, load_artifact
from tests.evaluation.ground import logprobs_alone, rendered, sums, write_model, write_rows

SHORT = SamplingSettings(8, temperature=0.0)


@pytest.fixture(scope="module", params=[True, False], ids=["text", "chat"])
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("model")
    made = load_artifact(str(write_model(folder, request.param)), torch.device("cpu"))
    assert made.rendering.plain == request.param
    return made


def questions(folder: Path, rows: list[dict], *columns: str) -> list[Question]:
    path = write_rows(folder / "rows.jsonl", rows)
    return read_questions(data_of(str(path), "auto", columns))


def test_answers_do_not_depend_on_what_is_answered_beside_them(
    artifact: Artifact, tmp_path: Path
) -> None:
    asked = questions(tmp_path, sums(21))
    wanted = make_wanted(["exact", "f1", "numeric"])
    together = evaluate(artifact, asked, wanted, SHORT)
    alone = evaluate(artifact, asked, wanted, SHORT, batch=1)
    assert together == alone
    assert len(set(together.answers)) > 5
    prompts = [question.prompt for question in asked]
    assert together.answers == artifact.generate_text(prompts, max_new_tokens=8)
    assert together.scores("f1") == [
        MEASURES["f1"](answer, row["completion"])
        for answer, row in zip(together.answers, sums(21), strict=True)
    ]


def test_drawn_answers_belong_to_their_questions(artifact: Artifact, tmp_path: Path) -> None:
    asked = questions(tmp_path, [{"prompt": "Hello", "completion": "x"}] * 12)
    drawn = SamplingSettings(6, temperature=1.5)
    wanted = make_wanted(["exact"])
    by_five, by_twelve = (
        evaluate(artifact, asked, wanted, drawn, seed=3, batch=batch) for batch in (5, 12)
    )
    assert by_five.answers == by_twelve.answers
    assert len(set(by_five.answers)) > 6
    assert evaluate(artifact, asked, wanted, drawn, seed=4).answers != by_five.answers


def test_perplexity_is_that_of_one_text_at_a_time(artifact: Artifact, tmp_path: Path) -> None:
    rows = sums(19)
    found = evaluate(artifact, questions(tmp_path, rows), make_wanted(["perplexity"]), batch=7)
    alone = [
        logprobs_alone(artifact, *rendered(artifact, row["prompt"], row["completion"], end=True))
        for row in rows
    ]
    assert [row.tokens for row in found.rows] == [len(each) for each in alone]
    assert found.scores("loss") == pytest.approx([-np.mean(each) for each in alone], rel=1e-5)
    everything = [value for each in alone for value in each]
    measure = found.measures["perplexity"]
    assert measure.mean == pytest.approx(math.exp(-np.mean(everything)), rel=1e-5)
    assert measure.low < measure.mean < measure.high and measure.count == 19
    assert found.answers == [None] * 19  # nothing was generated


def test_perplexity_of_plain_text_is_of_every_token_but_the_first(
    artifact: Artifact, tmp_path: Path
) -> None:
    texts = ["The capital of France is Paris.", "I am fine.", "abc" * 20]
    rows = [{"text": text} for text in texts]
    found = evaluate(artifact, questions(tmp_path, rows), make_wanted(["perplexity"]))
    tokenizer = artifact.renderer.tokenizer
    for row, text in zip(found.rows, texts, strict=True):
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        alone = logprobs_alone(artifact, ids[:1], ids[1:])
        assert row.tokens == len(alone)
        assert row.scores["loss"] == pytest.approx(-np.mean(alone), rel=1e-5)


def test_the_choice_is_that_of_one_choice_at_a_time(artifact: Artifact, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"What is {n}?", "choices": ["a", "the answer", "42" * size], "answer": n % 3}
        for n in range(23)
        for size in [n % 4 + 1]
    ]
    found = evaluate(artifact, questions(tmp_path, rows), make_wanted(["choice"]), batch=5)
    right, normalised = [], []
    for row, answered in zip(rows, found.rows, strict=True):
        alone = [
            sum(logprobs_alone(artifact, *rendered(artifact, row["prompt"], choice, end=False)))
            for choice in row["choices"]
        ]
        assert answered.logprobs == pytest.approx(alone, rel=1e-4)
        right.append(float(int(np.argmax(alone)) == row["answer"]))
        per_character = [x / len(choice) for x, choice in zip(alone, row["choices"], strict=True)]
        normalised.append(float(int(np.argmax(per_character)) == row["answer"]))
    assert found.scores("choice") == right
    assert found.scores("choice_normalised") == normalised
    assert right != normalised and 0 < sum(right) < 23
    assert found.measures["choice"].mean == np.mean(right)


def test_the_preferred_answer_is_the_likelier_one(artifact: Artifact, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{n}?", "chosen": "x" * (n % 5 + 1), "rejected": "no" * (n % 3 + 1)}
        for n in range(40)
    ]
    found = evaluate(artifact, questions(tmp_path, rows), make_wanted(["preference"]))
    expected = []
    for row, answered in zip(rows, found.rows, strict=True):
        alone = [
            sum(logprobs_alone(artifact, *rendered(artifact, row["prompt"], row[side], end=True)))
            for side in ("chosen", "rejected")
        ]
        assert answered.logprobs == pytest.approx(alone, rel=1e-4)
        expected.append(float(alone[0] > alone[1]))
    assert found.scores("preference") == expected
    assert 0 < sum(expected) < 40


def test_rewards_of_an_environment_and_of_a_function(tmp_path: Path, artifact: Artifact) -> None:
    (tmp_path / "reward.py").write_text(
        "def short(completions, **columns):\n"
        "    texts = [c if isinstance(c, str) else c[0]['content'] for c in completions]\n"
        "    return [None if 'a' in text else 1 / (1 + len(text)) for text in texts]\n"
    )
    settings = Arithmetic(evaluation_tasks=6, weights={"format": 0.5}, messages=False)
    environment = make_environment(settings)
    asked = questions_of(environment)
    own = Reward(function=f"{tmp_path / 'reward.py'}:short", weight=2.0)
    wanted = make_wanted(["reward"], rewards=[settings, own])
    found = evaluate(artifact, asked, wanted, SHORT, batch=4)
    for question, row in zip(asked, found.rows, strict=True):
        rewards = environment.score(question.task(), row.answer or "")
        assert row.scores["reward/correct"] == rewards["correct"]
        short = None if "a" in row.answer else 1 / (1 + len(row.answer))
        assert row.scores["reward/short"] == short
        total = rewards["correct"] + 0.5 * rewards["format"] + 2 * (short or 0)
        assert row.scores["reward"] == pytest.approx(total)


def test_an_answer_that_cannot_be_scored_is_counted(tmp_path: Path, artifact: Artifact) -> None:
    (tmp_path / "broken.py").write_text(
        "def one(prompts, **columns):\n"
        "    if '3' in prompts[0]:\n"
        "        raise ValueError('three')\n"
        "    return [1.0]\n"
    )
    rows = [{"prompt": f"{n}?", "answer": "x"} for n in range(5)]
    wanted = make_wanted(["reward"], rewards=[Reward(function=f"{tmp_path / 'broken.py'}:one")])
    found = evaluate(artifact, questions(tmp_path, rows), wanted, SHORT)
    assert found.failures == 1
    assert found.rows[3].failure == "`one` raised ValueError: three"
    assert found.scores("reward") == [1, 1, 1, None, 1]
    assert (found.measures["reward"].mean, found.measures["reward"].count) == (1, 4)


def test_measures_by_column(artifact: Artifact, tmp_path: Path) -> None:
    rows = sums(12)
    asked = questions(tmp_path, rows)
    wanted = Wanted({"digits": make_regex(r"\d"), "f1": MEASURES["f1"]})
    found = evaluate(artifact, asked, wanted, SHORT, by=["kind"])
    for kind in ("small", "large"):
        scores = [s for s, row in zip(found.scores("f1"), rows, strict=True) if row["kind"] == kind]
        assert found.by["kind"][kind]["f1"].mean == pytest.approx(np.mean(scores))
        assert found.by["kind"][kind]["f1"].count == len(scores)


def test_it_goes_on_where_it_was(artifact: Artifact, tmp_path: Path) -> None:
    asked = questions(tmp_path, sums(11))
    wanted, drawn = make_wanted(["exact", "perplexity"]), SamplingSettings(6, temperature=1.0)
    kept: list[Answered] = []
    whole = evaluate(artifact, asked, wanted, drawn, batch=4, keep=kept.extend)
    assert kept == whole.rows
    after: list[Answered] = []
    resumed = evaluate(artifact, asked, wanted, drawn, batch=4, done=kept[:8], keep=after.extend)
    assert resumed == whole and after == kept[8:]


@pytest.mark.parametrize("names", [["exact"], ["perplexity"]])
def test_what_cannot_be_rendered_is_named(tmp_path: Path, names: list[str]) -> None:
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    folder = write_model(tmp_path, plain=False, template=strict + CHATML)
    artifact = load_artifact(str(folder), torch.device("cpu"))
    answer = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "x"}]
    rows = [{"messages": answer}, {"messages": [{"role": "system", "content": "y"}, *answer]}]
    with pytest.raises(UserError, match=r"rows.jsonl:2: .*no system"):
        evaluate(artifact, questions(tmp_path, rows), make_wanted(names), SHORT)


def test_choices_need_a_prompt(tmp_path: Path, artifact: Artifact) -> None:
    rows = [{"prompt": "", "choices": ["a b c", "d e"], "answer": 0}]
    asked = questions(tmp_path, rows)
    if artifact.rendering.plain:
        with pytest.raises(UserError, match=r"rows.jsonl:1: no token of the prompt stands"):
            evaluate(artifact, asked, make_wanted(["choice"]))
        with pytest.raises(UserError, match=r"rows.jsonl:1: the prompt is empty"):
            evaluate(artifact, asked, make_wanted(["exact"]))
    else:
        assert len(evaluate(artifact, asked, make_wanted(["choice"])).rows) == 1


@pytest.mark.quick
def test_a_row_is_the_same_after_it_was_written() -> None:
    row = Answered(
        3,
        "a.jsonl:4",
        [{"role": "user", "content": "é?"}],
        ("1", "2"),
        "1",
        {"exact": 1.0, "reward": None},
        7,
        ("1", "2"),
        (-1.25, -0.1),
        "`f` raised",
        {"kind": "x"},
    )
    assert Answered.from_json(json.loads(row.as_line())) == row
    assert json.loads(Answered(0, "a:1").as_line()) == {"index": 0, "place": "a:1"}


@pytest.mark.quick
def test_the_interval_of_a_perplexity_is_of_samples() -> None:
    same = perplexity([(2.0, 10), (2.0, 90)])
    assert (same.mean, same.low, same.high) == pytest.approx((math.exp(2),) * 3)
    measure = perplexity([(1.0, 10), (3.0, 30)])
    assert measure.mean == pytest.approx(math.exp((10 + 90) / 40))
    assert (measure.low, measure.high) == pytest.approx((math.exp(1), math.exp(3)))


@pytest.mark.quick
def test_what_is_measured_where_nobody_says() -> None:
    pair = Question(0, "", "?", sides=("a", "b"), pair=True)
    choice = Question(0, "", "?", sides=("a", "b"))
    assert usual_measures([pair]) == ["preference"]
    assert usual_measures([choice]) == ["choice"]
    assert usual_measures([Question(0, "", None)]) == ["perplexity"]
    assert usual_measures([Question(0, "", "?", ("a",))]) == ["exact"]


@pytest.mark.quick
@pytest.mark.parametrize(
    ("names", "question", "message"),
    [
        (["exact"], Question(0, "a:1", None), r"a:1: plain text has no prompt"),
        (["exact"], Question(0, "a:1", "?"), r"a:1: the row has no right answer"),
        (["f1"], Question(0, "a:1", "?", (" ",)), r"a:1: the right answer is blank"),
        (["numeric"], Question(0, "a:1", "?", ("x",)), r"a:1: the right answer is `x`.*number"),
        (["choice"], Question(0, "a:1", "?", ("x",)), r"a:1: the row has no choices"),
        (["preference"], Question(0, "a:1", "?", ("x",)), r"a:1: the row is no pair"),
        (["perplexity"], Question(0, "a:1", "?"), r"a:1: the row has no text whose perplexity"),
        (["exakt"], Question(0, "a:1", "?"), r"no measure `exakt`.*did you mean `exact`"),
        (["reward"], Question(0, "a:1", "?"), r"`reward` needs something that scores"),
    ],
)
def test_questions_that_cannot_be_judged_so(
    names: list[str], question: Question, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(None, [question], make_wanted(names), GREEDY)  # type: ignore[arg-type]


@pytest.mark.quick
def test_nothing_is_measured_of_no_rows() -> None:
    assert summarise([]) == Evaluated([], {}, {})
