"""Numbers in texts as people and models write them."""

from decimal import Decimal

import pytest

from hone.environments.numbers import behind, ends_with_number, last_number, numbers_in

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("12-5=7", ["12", "5", "7"]),
        ("5 - 12 = -7", ["5", "12", "-7"]),
        ("(-3)*-4", ["-3", "-4"]),
        ("(1)-2", ["1", "2"]),
        ("1,234,567 and 12,34", ["1,234,567", "12", "34"]),
        ("$3.50, 6.02e23", ["3.50", "6.02e23"]),
        ("10kg of the 3rd x2", ["10", "3", "2"]),
        ("\N{MINUS SIGN}8", ["-8"]),
        ("So: 42.", ["42"]),
        ("none", []),
    ],
)
def test_numbers_are_found(text: str, found: list[str]) -> None:
    assert numbers_in(text) == found


def test_the_last_number_is_exact() -> None:
    assert last_number("0.1 + 0.2 = 0.3") == Decimal("0.3")
    assert last_number("it is 1,000") == 1000
    assert last_number("9" * 300) == int("9" * 300)
    assert last_number("9" * 100_000) is None
    assert last_number("1e9999 == 1e9999") == Decimal("1e9999")
    assert last_number("words") is None


def test_where_a_number_ends_the_text() -> None:
    assert ends_with_number("It is 5. ")
    assert not ends_with_number("5 apples")
    assert not ends_with_number("")


def test_what_stands_behind_a_marker() -> None:
    assert behind("a #### b #### c", "####") == " c"
    assert behind("no marker", "####") == ""
    assert behind("all of it", None) == "all of it"
