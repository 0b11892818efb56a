"""What a check says of its parts."""

import pytest

from hone.verify.verdicts import (
    FAILED,
    PASSED,
    NotApplicableError,
    Part,
    join_parts,
    not_applicable,
)

pytestmark = pytest.mark.quick


def test_one_part_that_fails_is_what_is_shown() -> None:
    parts = [Part("1-sft", PASSED, 0.9, 0.3, 10), Part("2-dpo", FAILED, 0.1, 0.3, 8, "too few")]
    found = join_parts([*parts, not_applicable("3-grpo", "no such thing")])
    assert not found.passed
    assert (found.value, found.n, found.reason) == (0.1, 8, "2-dpo: too few")
    assert join_parts(parts[:1]).passed


def test_where_no_part_applies_it_is_said_of_which_why() -> None:
    parts = [not_applicable(of, "whole weights") for of in ("1-pretrain", "2-sft")]
    with pytest.raises(NotApplicableError) as caught:
        join_parts([*parts, not_applicable("3-grpo", "it has no loss")])
    assert str(caught.value) == "1-pretrain, 2-sft: whole weights; 3-grpo: it has no loss"
