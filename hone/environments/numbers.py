"""Numbers in a text, and what stands behind a marker. For `arithmetic.py` and `answers.py`.

A number is written in digits: 7, -3.5, +12, 1,234,567 or 6.02e23. The sign belongs to it unless it
stands between two numbers (12-5); a unit may follow (10kg). The minus of typesetting counts as one.
Left out: fractions, percent, numbers in words.
"""

import re
from decimal import Decimal, InvalidOperation

_NUMBER = re.compile(
    r"(?:(?<![\w.)\]])[-+])?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,4})?"
)
LONGEST = 400  # characters of a number


def numbers_in(text: str) -> list[str]:
    """All numbers of a text, as they are written."""
    return _NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))


def last_number(text: str) -> Decimal | None:
    """The last number of a text; None where there is none."""
    found = numbers_in(text)
    return _value(found[-1]) if found else None


def first_number(text: str) -> Decimal | None:
    """The first number of a text; None where there is none."""
    found = numbers_in(text)
    return _value(found[0]) if found else None


def ends_with_number(text: str) -> bool:
    """True where nothing but a full stop or space comes after the last number."""
    found = numbers_in(text)
    plain = text.replace("\N{MINUS SIGN}", "-").rstrip().removesuffix(".").rstrip()
    return bool(found) and plain.endswith(found[-1])


def behind(text: str, marker: str | None) -> str:
    """What stands behind the last marker; "" where there is none. Without a marker the text."""
    if marker is None:
        return text
    return text.rpartition(marker)[2] if marker in text else ""


def _value(written: str) -> Decimal | None:
    if len(written) > LONGEST:
        return None
    try:
        return Decimal(written.replace(",", ""))
    except InvalidOperation:
        return None
