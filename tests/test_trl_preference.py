"""Ten optimizer steps of preferences against TRL's trainers: same model, start, pairs and order.

As in `test_trl_parity.py`: the largest difference of a weight, against the largest movement of a
weight in TRL. TRL keeps its own reference (a copy of the adapter, or of the model); Hone computes
it before step 1 with the model that it then trains.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from hone.annotate import annotate
from hone.losses.preference import make_pair_loss
from hone.losses.unpaired import make_unpaired_loss
from hone.recipe.training import SGD, AdamW
from hone.records import Sample
from hone.stages.mismatched import couple, mismatch
from hone.stages.reference import REFERENCE
from hone.training import Training
from tests.preferences import random_judged, random_pairs
from tests.test_preference_losses import rows_of_judged, rows_of_pairs, settings, trl_settings
from tests.test_trl_parity import (
    BATCH,
    STEPS,
    Case,
    Reference,
    load,
    make_start,
    tiny_tokenizer,
    trained_weights,
    trl_optimizer,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # of PEFT 0.21
)

SUM = {"sigmoid": 1.0, "sft": 0.2}
CASES: dict[str, tuple[Case, Any]] = {
    "sgd": (Case(SGD(), 0.1, 1e-5), "sigmoid"),
    "a sum, sgd, accumulated": (Case(SGD(momentum=0.9), 0.1, 1e-5, token_budget=60), SUM),
    "adamw, clipped": (Case(AdamW(), 2e-3, 1e-2, max_grad_norm=0.5), "sigmoid"),
    "full, sgd": (Case(SGD(), 0.1, 1e-5, model="llama-tied", lora=False), "sigmoid"),
    "full, adamw": (Case(AdamW(), 1e-3, 1e-2, lora=False), "sigmoid"),
    "kto, sgd, accumulated": (Case(SGD(), 0.1, 1e-5, token_budget=60), "kto"),
    "kto, full, adamw": (Case(AdamW(), 1e-3, 1e-2, lora=False), "kto"),
}
BETA = 0.5


def train_with_trl(
    case: Case, start: tuple[Path, Path], samples: list[Sample], loss: Any, folder: Path
) -> tuple[Any, Any]:
    """Weights before and after ten steps of TRL's trainer."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

    base, config = (KTOTrainer, KTOConfig) if loss == "kto" else (DPOTrainer, DPOConfig)

    class OnIds(base):
        def _prepare_dataset(self, dataset: Dataset, *rest: Any, **more: Any) -> Dataset:
            return dataset

    _, module = load(case, start)
    before = trained_weights(module)
    batches = [samples[k : k + BATCH] for k in range(0, len(samples), BATCH)]
    if loss == "kto":
        rows = [row for each in batches for row in rows_of_judged(each, mismatch(each, 100))]
    else:
        rows = rows_of_pairs(samples)
    losses = (
        {} if isinstance(loss, str) else {"loss_type": [*loss], "loss_weights": [*SUM.values()]}
    )
    trainer = OnIds(
        model=module,
        args=config(
            **trl_settings(folder) | {"precompute_ref_log_probs": False},
            **losses,
            **trl_optimizer(case.optimizer),
            beta=BETA,
            max_steps=STEPS,
            learning_rate=case.learning_rate,
            lr_scheduler_type="constant",
            max_grad_norm=case.max_grad_norm or 0.0,
            save_strategy="no",
            logging_strategy="no",
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    assert trainer.state.global_step == STEPS
    after = trained_weights(module)
    return before, {name: after[name] for name in before}


def equipped(loss: Any, wrong: bool) -> Callable[[Training], None]:
    """The reference before step 1, and what couples the samples of a step in KTO.

    wrong: of another pair each.
    """

    def equip(training: Training) -> None:
        def of_step(step: int) -> list[Sample]:
            return list(samples_of(step))

        def known(samples: list[Sample]) -> list[Sample]:
            found = annotate(training, samples, 0, REFERENCE)
            if wrong:
                for sample in found:
                    for segment in sample.segments[1:]:
                        segment.constants[REFERENCE][:] = -3.0
            return found

        samples_of, steps = training.samples_of, range(1, STEPS + 1)
        own = {step: known(of_step(step)) for step in steps}
        training.samples_of = own.__getitem__
        if loss == "kto":
            mixed = {step: known(mismatch(of_step(step), 100)) for step in steps}
            training.prepare = lambda samples, moment: couple(
                training, samples, mixed[int(moment)], moment
            )

    return equip


def distance_of_hone(reference: Reference, loss: Any, folder: Path, wrong: bool = False) -> float:
    make_loss = make_unpaired_loss if loss == "kto" else make_pair_loss
    function = make_loss(settings(loss, beta=BETA))
    return reference.distance_of_hone(folder, loss=function, equip=equipped(loss, wrong))


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reference]:
    """TRL's result of a case, computed once."""

    @cache
    def reference_of(name: str) -> Reference:
        (case, loss), folder = CASES[name], tmp_path_factory.mktemp("trl")
        make_samples = random_judged if loss == "kto" else random_pairs
        start, samples = make_start(case, folder), make_samples(STEPS * BATCH, seed=3)
        made = train_with_trl(case, start, samples, loss, folder / "trl")
        return Reference(case, start, samples, *made)

    return reference_of


@pytest.mark.parametrize("name", CASES)
def test_ten_steps_equal_trl(name, references, tmp_path) -> None:
    case, loss = CASES[name]
    assert distance_of_hone(references(name), loss, tmp_path) < case.limit


@pytest.mark.parametrize("name", ["sgd", "kto, full, adamw"])
def test_a_wrong_reference_is_caught(name, references, tmp_path) -> None:
    case, loss = CASES[name]
    assert distance_of_hone(references(name), loss, tmp_path, wrong=True) > 10 * case.limit
