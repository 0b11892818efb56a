"""Which class does the work of which method: the one table of stages."""

from typing import Any

from hone.stages.policy import PolicyStage
from hone.stages.preference import PreferenceStage
from hone.stages.supervised import SupervisedStage
from hone.stages.work import StageWork

WORK: dict[str, type[StageWork[Any]]] = {
    "pretrain": SupervisedStage,
    "sft": SupervisedStage,
    "dpo": PreferenceStage,
    "grpo": PolicyStage,
}
