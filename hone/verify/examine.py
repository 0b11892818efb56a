"""All checks of a run, one after the other, and verify.json.

Called by `hone verify`, which a run with `verify:` starts in a fresh process at its end. Every
verdict comes from the files of the run.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hone.architecture import first_line
from hone.device import make_deterministic, use_threads
from hone.errors import UserError
from hone.files import write_json
from hone.runs import VERDICTS, Run
from hone.verify import (
    artifacts,
    forgetting,
    learning,
    loss,
    masks,
    memory,
    merged,
    parameters,
    rewards,
    stages,
)
from hone.verify import (
    resume as resuming,
)
from hone.verify.answers import write_answers
from hone.verify.subject import Subject
from hone.verify.verdicts import (
    FAILED,
    NOT_APPLICABLE,
    Found,
    NotApplicableError,
    Verdict,
    status_of,
)


@dataclass(frozen=True)
class Check:
    """A check of a run. how: what is computed, in a sentence."""

    how: str
    make: Callable[[Subject], Found]


# In the order in which they are made; the names are those of `recipe/verify.py`.
CHECKS: dict[str, Check] = {
    "artifacts": Check(artifacts.HOW, artifacts.check_artifacts),
    "loss": Check(loss.HOW, loss.check_loss),
    "learning": Check(learning.HOW, learning.check_learning),
    "parameters": Check(parameters.HOW, parameters.check_parameters),
    "memory": Check(memory.HOW, memory.check_memory),
    "stages": Check(stages.HOW, stages.check_stages),
    "masks": Check(masks.HOW, masks.check_masks),
    "merged": Check(merged.HOW, merged.check_merged),
    "forgetting": Check(forgetting.HOW, forgetting.check_forgetting),
    "rewards": Check(rewards.HOW, rewards.check_rewards),
    "resume": Check(resuming.HOW, resuming.check_resume),
}


def verify(
    run: Run, told: Callable[[str], None] = lambda text: None, resume: bool = False
) -> list[Verdict]:
    """Make all checks of a run and write verify.json; `told` hears the name of each before it is
    made. resume: also replay a slice of the run with a kill in the middle.

    Raises UserError for a run that has not all its results.
    """
    use_threads(run.read_lock_json()["threads"])
    subject = Subject(run, told)
    make_deterministic(subject.device)
    verdicts = list(make_checks(subject, resume))
    (run.path / VERDICTS).parent.mkdir(exist_ok=True)
    write_json(run.path / VERDICTS, as_json(verdicts))
    run.event("verified", passed=passes(verdicts))
    write_answers(subject)
    return verdicts


def make_checks(subject: Subject, resume: bool) -> Iterator[Verdict]:
    """The verdicts in the order of `CHECKS`."""
    left_out = dict.fromkeys(subject.settings.leave_out, "left out by the recipe")
    if not resume:
        left_out["resume"] = "made only when asked for: hone verify RUN --resume"
    for name, check in CHECKS.items():
        if name in left_out:
            yield Verdict(name, NOT_APPLICABLE, None, None, None, check.how, left_out[name])
            continue
        subject.told(name)
        yield make_check(name, check, subject)


def make_check(name: str, check: Check, subject: Subject) -> Verdict:
    """Make a check and time it; one that cannot be made has failed."""
    began = time.perf_counter()
    try:
        found = check.make(subject)
        status = status_of(found.passed)
    except NotApplicableError as reason:
        found, status = Found(False, reason=str(reason)), NOT_APPLICABLE
    except UserError as error:
        found, status = Found(False, reason=error.message), FAILED
    except Exception as error:  # broken results may fail in any way, and that is what was asked
        found = Found(False, reason=f"{type(error).__name__}: {first_line(error)}")
        status = FAILED
    seconds = round(time.perf_counter() - began, 2)
    return Verdict(
        name,
        status,
        found.value,
        found.threshold,
        found.n,
        check.how,
        found.reason,
        seconds,
        found.parts,
    )


def passes(verdicts: list[Verdict]) -> bool:
    """True where no check failed."""
    return all(verdict.status != FAILED for verdict in verdicts)


def as_json(verdicts: list[Verdict]) -> dict[str, Any]:
    """What verify.json holds."""
    checks = [verdict.as_json() for verdict in verdicts]
    return {"schema": 1, "passed": passes(verdicts), "checks": checks}
