"""Credit against its formulas one reward at a time, and a person's own."""

from pathlib import Path

import numpy as np
import pytest

from hone.credit import CREDIT, make_credit
from hone.errors import UserError
from hone.own_code import load_function

pytestmark = pytest.mark.quick

REWARDS = np.array([0.0, 1.0, 0.25, 1.0, -2.0])

OWN = """
import numpy as np

SCALE = 2.0

def doubled(rewards):
    rewards -= rewards.mean()
    return rewards * SCALE

def as_list(rewards):
    return [float(reward) for reward in rewards]

def short(rewards):
    return rewards[1:]

def infinite(rewards):
    return rewards / 0

def broken(rewards):
    return rewards["first"]

def words(rewards):
    return ["good"] * len(rewards)
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    return path


def spread(rewards: list[float]) -> float:
    middle = sum(rewards) / len(rewards)
    return (sum((r - middle) ** 2 for r in rewards) / (len(rewards) - 1)) ** 0.5


def test_each_credit_by_hand() -> None:
    rewards = REWARDS.tolist()
    middle = sum(rewards) / len(rewards)
    by_hand = {
        "group": [(r - middle) / (spread(rewards) + 1e-4) for r in rewards],
        "mean": [r - middle for r in rewards],
        "leave_one_out": [
            r - sum(rewards[:n] + rewards[n + 1 :]) / (len(rewards) - 1)
            for n, r in enumerate(rewards)
        ],
    }
    assert by_hand.keys() == CREDIT.keys()
    for name, expected in by_hand.items():
        np.testing.assert_allclose(make_credit(name)(REWARDS), expected, rtol=1e-12)


@pytest.mark.parametrize("name", CREDIT)
def test_a_group_without_spread_has_no_credit(name: str) -> None:
    np.testing.assert_allclose(make_credit(name)(np.full(4, 0.3)), 0, atol=1e-10)


@pytest.mark.parametrize("name", CREDIT)
@pytest.mark.parametrize("size", [2, 3])
def test_credit_adds_up_to_nothing_and_leaves_the_rewards(name: str, size: int) -> None:
    rewards = REWARDS[:size].copy()
    assert make_credit(name)(rewards).sum() == pytest.approx(0, abs=1e-12)
    assert rewards.tolist() == REWARDS[:size].tolist()


def test_an_own_credit(own: Path) -> None:
    rewards = REWARDS.copy()
    found = make_credit(f"{own}:doubled")(rewards)
    np.testing.assert_allclose(found, 2 * CREDIT["mean"](REWARDS))
    assert rewards.tolist() == REWARDS.tolist()  # it works on a copy
    assert make_credit(f"{own}:as_list")(rewards).dtype == np.float64


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("short", "expected 5 finite numbers"),
        ("broken", "IndexError"),
        ("words", "ValueError"),
    ],
)
def test_mistakes_of_an_own_credit_are_told(own: Path, name: str, words: str) -> None:
    credit = make_credit(f"{own}:{name}")
    with pytest.raises(UserError, match=words) as caught:
        credit(REWARDS)
    assert f"mine.py:{name}" in caught.value.message


def test_an_own_credit_that_is_not_finite(own: Path) -> None:
    credit = make_credit(f"{own}:infinite")
    with np.errstate(divide="ignore", invalid="ignore"), pytest.raises(UserError, match="finite"):
        credit(REWARDS)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("groups", 'did you mean "group"'),
        ("{folder}/yours.py:doubled", "no Python file"),
        ("{folder}/mine.py:double", "did you mean `doubled`"),
        ("{folder}/mine.py:SCALE", "expected a function"),
    ],
)
def test_a_name_that_there_is_not(own: Path, name: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        make_credit(name.format(folder=own.parent))
    assert caught.value.exit_code == 2


def test_a_file_that_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(UserError, match=r"bad\.py.* cannot be imported: ModuleNotFoundError"):
        load_function(f"{tmp_path / 'bad.py'}:mine", "credit")
