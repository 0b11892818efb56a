"""How many held-out questions a saved result answers exactly.

`python -m hone.evaluate RUN --stage N --questions FILE` loads the result in this fresh process and
prints JSON; `ask_in_fresh_process` starts it. Rows of the file: {"prompt", "answer", "kind"}. Left
out: every other measure.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Z_95 = 1.959964  # the normal distribution's 97.5 % quantile


@dataclass(frozen=True)
class Score:
    """correct of total answers were exactly right; low and high bound the true share (95 %)."""

    correct: int
    total: int
    low: float
    high: float

    @property
    def share(self) -> float:
        """The share of exactly right answers."""
        return self.correct / self.total


def wilson(correct: int, total: int) -> Score:
    """A score with its interval (Wilson 1927, doi:10.1080/01621459.1927.10502953)."""
    share, square = correct / total, Z_95**2
    middle = (share + square / (2 * total)) / (1 + square / total)
    half = Z_95 * math.sqrt(share * (1 - share) / total + square / (4 * total**2))
    half /= 1 + square / total
    return Score(correct, total, max(0.0, middle - half), min(1.0, middle + half))


def is_exact(answer: str, expected: str) -> bool:
    """True where the answer is the expected one, white space around it aside."""
    return answer.strip() == expected.strip()


def score_by_kind(rows: Sequence[dict[str, Any]], answers: Sequence[str]) -> dict[str, Score]:
    """The score of each kind of question, then of `all`."""
    right: dict[str, list[bool]] = {}
    for row, answer in zip(rows, answers, strict=True):
        right.setdefault(row["kind"], []).append(is_exact(answer, row["answer"]))
    right["all"] = [one for kind in right.values() for one in kind]
    return {kind: wilson(sum(marks), len(marks)) for kind, marks in right.items()}


@dataclass(frozen=True)
class Evaluation:
    """The answers to all questions, in their order, and the scores by kind."""

    answers: list[str]
    scores: dict[str, Score]


def ask_in_fresh_process(
    run: Path, stage: int, questions: Path, max_new_tokens: int = 24
) -> Evaluation:
    """Load the result of a run's stage (from 0) in a process of its own, and ask it everything."""
    words = [str(run), "--stage", str(stage), "--questions", str(questions)]
    command = [sys.executable, "-m", "hone.evaluate", *words, "--max-tokens", str(max_new_tokens)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    scores = {kind: Score(**score) for kind, score in found["scores"].items()}
    return Evaluation(found["answers"], scores)


def main() -> None:
    """Answer the questions and print the evaluation as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--stage", type=int, required=True)
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--max-tokens", type=int, default=24)
    given = parser.parse_args()
    from hone.device import use_threads
    from hone.runs import Run
    from hone.stages.run import load_result

    run = Run(given.run.resolve())
    use_threads(run.read_lock_json()["threads"])
    rows = [json.loads(line) for line in given.questions.read_text().splitlines()]
    prompts = [row["prompt"] for row in rows]
    answers = load_result(run, given.stage).generate_text(prompts, max_new_tokens=given.max_tokens)
    scores = {kind: asdict(score) for kind, score in score_by_kind(rows, answers).items()}
    print(json.dumps({"answers": answers, "scores": scores}))


if __name__ == "__main__":
    main()
