"""Which evaluation was the best, when training ends early, and the best weights put back.

Called by `fit.py` after each evaluation and by the stages at the end. All state is in the
checkpoint, so that a resumed stage ends where an uninterrupted one would have ended.
"""

import math
from dataclasses import replace

from hone.checkpoints import CheckpointState, find_fault, step_folder
from hone.metrics import Row
from hone.models import load_trained
from hone.recipe.data import Stopping
from hone.training import Training


def judge_evaluation(state: CheckpointState, row: Row, rule: Stopping | None) -> CheckpointState:
    """The state after an evaluation: the best so far, and whether training ends.

    Without a rule the lowest loss is the best, or the highest reward where there is no loss. Before
    step 1 there is nothing to keep.
    """
    if row["step"] == 0:
        return state
    metric = rule.metric if rule else "loss" if "loss" in row else "reward"
    value, best, higher = row[metric], state.best_value, metric != "loss"
    gain = math.inf if best is None else (value - best if higher else best - value)
    if gain > (rule.min_change if rule else 0.0):
        return replace(state, best_step=row["step"], best_value=value, without_gain=0)
    waited = state.without_gain + 1
    ends = rule is not None and waited >= rule.patience
    return replace(state, without_gain=waited, stopped_early=ends)


def restore_best(training: Training, state: CheckpointState) -> int | None:
    """Put the weights of the best evaluation back, where the recipe wishes it; returns its step."""
    rule = training.early_stopping
    if rule is None or not rule.restore_best or state.best_step in (None, state.step):
        return None
    best = step_folder(training.checkpoints, state.best_step)
    if fault := find_fault(best):
        training.warn(f"the best checkpoint {best.name} is not whole ({fault}): the last is used")
        return None
    load_trained(training.model, best)
    return state.best_step
