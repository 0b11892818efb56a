"""Measures of an answer against the expected text: numbers from 0 to 1, without a model.

`MEASURES` has those that need nothing else; `make_regex` makes one of a pattern. Called by whoever
judges answers. Where several answers are right, `best` takes the one that fits best. Left out:
stems and synonyms, and measures of a whole corpus.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from hone.environments.answers import normalised
from hone.environments.numbers import last_number
from hone.errors import UserError, nearest

Measuring = Callable[[str, str], float]
"""(answer, expected) to a number from 0 to 1."""

REGEX = "regex"
GROUP = "answer"  # of a pattern: what the answer says

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WORD = re.compile(r"[^\W_]+")


def exact(answer: str, expected: str) -> float:
    """1 where both are the same text, case included; a run of white space is one blank, and that at
    the ends is left out.
    """
    return float(answer.split() == expected.split())


def contains(answer: str, expected: str) -> float:
    """1 where the expected text stands in the answer as whole words; case, white space, quotation
    marks around it and a full stop behind it aside, as in `environment: {type: answers}`.
    """
    wanted = normalised(expected)
    found = re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", normalised(answer))
    return float(bool(wanted) and found is not None)


def numeric(answer: str, expected: str) -> float:
    """1 where the last numbers of both are the same decimal: 0.50 is 0.5, 1,000 is 1000."""
    wanted = last_number(expected)
    return float(wanted is not None and last_number(answer) == wanted)


def f1(answer: str, expected: str) -> float:
    """The harmonic mean of precision and recall of words (Rajpurkar et al. 2016, arXiv:1606.05250,
    section 6.1): lower case, without punctuation and the articles a, an, the; order is ignored.

    Where one side has no words left, 1 if the other has none either, as in SQuAD 2.0.
    """
    said, wanted = _squad_words(answer), _squad_words(expected)
    if not said or not wanted:
        return float(said == wanted)
    return _f_measure(_shared(said, wanted), len(said), len(wanted))


def rouge_1(answer: str, expected: str) -> float:
    """ROUGE-1: the F-measure of words; see `rouge_n`."""
    return rouge_n(answer, expected, 1)


def rouge_2(answer: str, expected: str) -> float:
    """ROUGE-2: the F-measure of pairs of words; see `rouge_n`."""
    return rouge_n(answer, expected, 2)


def rouge_n(answer: str, expected: str, n: int) -> float:
    """The F-measure of runs of n words, each counted as often as both sides have it (Lin 2004,
    https://aclanthology.org/W04-1013, section 2); precision and recall weigh the same.

    Words are runs of letters and digits in lower case, without stemming.
    """
    said, wanted = (_runs(_words(text), n) for text in (answer, expected))
    return _f_measure(_shared(said, wanted), len(said), len(wanted))


def rouge_l(answer: str, expected: str) -> float:
    """ROUGE-L: the F-measure of the longest common subsequence of words (Lin 2004, equations 2 to 4
    with beta = 1). Words as in `rouge_n`.
    """
    said, wanted = _words(answer), _words(expected)
    return _f_measure(_longest_common(said, wanted), len(said), len(wanted))


MEASURES: dict[str, Measuring] = {
    "exact": exact,
    "contains": contains,
    "numeric": numeric,
    "f1": f1,
    "rouge_1": rouge_1,
    "rouge_2": rouge_2,
    "rouge_l": rouge_l,
}


def make_regex(pattern: str) -> Measuring:
    r"""A measure of a regular expression, looked for anywhere in the answer; `.` is any character.

    With a group `answer`, what that matched has to be the expected text, as in `exact`; without it,
    the measure is 1 where the pattern is found. Example: r"####\s*(?P<answer>\S+)". Raises
    UserError for what is no pattern.
    """
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise UserError(
            f"`{pattern}` is no regular expression: {error}",
            hint=r"for example: --pattern '####\s*(?P<answer>\S+)'",
            exit_code=2,
        ) from None
    says = GROUP in compiled.groupindex

    def regex(answer: str, expected: str) -> float:
        found = compiled.search(answer)
        if found is None:
            return 0.0
        return exact(found[GROUP] or "", expected) if says else 1.0

    return regex


def find_measure(name: str, pattern: str | None = None) -> Measuring:
    """The measure of that name. pattern: what `regex` looks for. Raises UserError."""
    if name == REGEX:
        if pattern is None:
            raise UserError(
                "the measure `regex` needs a pattern",
                hint=r"for example: --pattern '####\s*(?P<answer>\S+)'",
                exit_code=2,
            )
        return make_regex(pattern)
    if name not in MEASURES:
        raise unknown_measure(name, [*MEASURES, REGEX])
    return MEASURES[name]


def unknown_measure(name: str, valid: Sequence[str]) -> UserError:
    """What is said of a measure that there is not."""
    close = nearest(name, valid)
    meant = f"; did you mean `{close}`?" if close else ""
    return UserError(
        f"there is no measure `{name}`; expected one of {', '.join(valid)}{meant}", exit_code=2
    )


def best(measure: Measuring, answer: str, expected: Sequence[str]) -> float:
    """The measure against the one of several right answers that fits best."""
    return max(measure(answer, each) for each in expected)


def _squad_words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _runs(words: list[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[begin:] for begin in range(n)), strict=False))


def _shared(one: Sequence[object], other: Sequence[object]) -> int:
    """How many both have, each counted as often as in the one that has fewer."""
    return (Counter(one) & Counter(other)).total()


def _f_measure(shared: int, said: int, wanted: int) -> float:
    """2PR / (P + R) with P = shared / said and R = shared / wanted; 0 where nothing is shared."""
    return 2 * shared / (said + wanted) if shared else 0.0


def _longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence, a row of the table at a time."""
    row = [0] * (len(other) + 1)
    for word in one:
        above = row
        row = [0]
        for place, each in enumerate(other):
            row.append(above[place] + 1 if word == each else max(row[place], above[place + 1]))
    return row[-1]
