"""Credit: how much better or worse each completion of a group was than what one may expect.

Rewards to advantages, one function a way of doing it, and one literal table of them. Called by the
stage that plays groups. Left out: what is done with the advantages (losses/policy.py), and groups
with fewer than two completions, from which nothing can be learned.

Shapes: G, the completions of one group that have a reward.
"""

from collections.abc import Callable

import numpy as np

from hone.errors import UserError, nearest
from hone.own_code import load_function

Credit = Callable[[np.ndarray], np.ndarray]

SMALLEST_SPREAD = 1e-4  # as in TRL: groups of nearly equal rewards are not blown up


def group(rewards_G: np.ndarray) -> np.ndarray:
    """GRPO: (r - mean(r)) / std(r), with the spread of a sample (G - 1 in its denominator).

    arXiv:2402.03300, section 4.1.2.
    """
    spread = float(rewards_G.std(ddof=1))
    return mean(rewards_G) / (spread + SMALLEST_SPREAD)


def mean(rewards_G: np.ndarray) -> np.ndarray:
    """Dr. GRPO: r - mean(r), so that easy and hard prompts weigh the same. arXiv:2503.20783,
    section 3.2.
    """
    return rewards_G - float(rewards_G.mean())


def leave_one_out(rewards_G: np.ndarray) -> np.ndarray:
    """RLOO: r minus the mean of the other rewards of the group. arXiv:2402.14740."""
    others_G = (float(rewards_G.sum()) - rewards_G) / (len(rewards_G) - 1)
    return rewards_G - others_G


CREDIT: dict[str, Credit] = {"group": group, "mean": mean, "leave_one_out": leave_one_out}


def make_credit(name: str) -> Credit:
    """The credit of that name, or a person's own where it is `file.py:function` (absolute, or from
    the working directory). All take and give fp64, for groups of at least two.

    Raises UserError for a name that there is not; what an own one makes is checked when it is used.
    """
    if name in CREDIT:
        return CREDIT[name]
    if ":" not in name:
        close = nearest(name, CREDIT)
        raise UserError(
            f'credit: there is no "{name}"' + (f'; did you mean "{close}"?' if close else ""),
            hint=f"one of {', '.join(CREDIT)}, or your own as file.py:function",
            exit_code=2,
        )
    return _checked(name, load_function(name, "credit"))


def _checked(name: str, function: Credit) -> Credit:
    """An own credit, whose mistakes are told as such."""

    def credit(rewards_G: np.ndarray) -> np.ndarray:
        try:
            advantages_G = np.asarray(function(rewards_G.copy()), dtype=np.float64)
        except Exception as error:
            raise UserError(
                f"the credit `{name}` failed on rewards {rewards_G.tolist()}: "
                f"{type(error).__name__}: {error}",
                hint="it takes an array of rewards and gives an array of advantages",
            ) from error
        if advantages_G.shape != rewards_G.shape or not np.isfinite(advantages_G).all():
            raise UserError(
                f"the credit `{name}` made {advantages_G.tolist()} of rewards "
                f"{rewards_G.tolist()}; expected {len(rewards_G)} finite numbers",
                hint="a group may have any number of rewards from 2 on, and all may be equal",
            )
        return advantages_G

    return credit
