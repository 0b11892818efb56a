"""How work is cut into micro-batches that fit into the memory, and cut smaller where one does not.

Used by `fit.py` and by whatever else computes over samples (`annotate.py`). A cut never changes the
result of a step; where memory runs out the smaller budget is kept before the work is done again, so
that a resumed run cuts as this one did.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from hone.architecture import first_line
from hone.errors import UserError
from hone.forest import plan_micro_batches
from hone.memory import is_out_of_memory, release_memory
from hone.records import Sample
from hone.training import EVALUATION, Training

Result = TypeVar("Result")


def plan_step(training: Training, samples: Sequence[Sample], moment: float) -> list[list[int]]:
    """How a step, or an evaluation, is cut into micro-batches: by its samples, the layout and the
    budget of that moment.
    """
    return cut(training, samples, training.budget_at(moment))


def cut(training: Training, samples: Sequence[Sample], token_budget: int) -> list[list[int]]:
    """Micro-batches of at most `token_budget` tokens, as the model's layout needs them."""
    layout = training.model.layout
    return plan_micro_batches(
        samples, token_budget, padded=layout != "forest", alone=layout == "alone"
    )


def in_memory(training: Training, moment: float, work: Callable[[], Result]) -> Result:
    """Do `work`; where memory runs out, cut smaller from this moment on and do it again from the
    start. `training.at_work` says what was computed then.
    """
    while True:
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = first_line(error)
        # Out of the handler nothing refers to the failed work's tensors any more.
        training.optimizer.zero_grad(set_to_none=True)
        release_memory(training.model.device)
        cut_smaller(training, moment, reason)


def cut_smaller(training: Training, moment: float, reason: str) -> None:
    """Halve the tokens computed at once until what has failed is cut; keep that, then go on."""
    failed, when = training.at_work, in_words(moment)
    tokens = sum(sample.num_tokens for sample in failed)
    if len(failed) < 2 or training.model.layout == "alone":
        raise UserError(
            f"{when}: {training.place_of(failed[0])}, {tokens:,} tokens long, does not fit "
            f"into the memory even alone: {reason}",
            hint="give the run more with `memory: {limit: ...}`, lower `max_tokens`, or set "
            "`gradient_checkpointing: true`",
        )
    smaller = training.budget_at(moment)
    while len(cut(training, failed, smaller)) == 1:
        smaller //= 2
    training.smaller_budgets.append((moment, smaller))
    training.keep_budgets(training.smaller_budgets)
    training.warn(
        f"{when}: {tokens:,} tokens at once do not fit into the memory; from here on at most "
        f"{smaller:,} are computed at once, and the work is done again"
    )


def in_words(moment: float) -> str:
    """A moment as people read it."""
    if moment < EVALUATION:
        return "before step 1"
    return (
        f"step {moment}" if moment % 1 == 0 else f"evaluation after step {int(moment - EVALUATION)}"
    )
