"""Ten optimizer steps against TRL's SFTTrainer: same model, initial adapter, samples and order.

The distance is the largest difference of a weight after the last step, against the largest movement
of a weight in TRL. Both sides take their own real way: Hone `fit`, TRL its trainer with a data set
of ids and completion masks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from hone.adapters import add_lora, use_fast_forward
from hone.checkpoints import CheckpointState
from hone.device import Precision
from hone.fit import Training, fit
from hone.losses import LOSSES, LossFunction, LossOutput
from hone.models import join_model
from hone.optim import make_optimizer
from hone.recipe.data import Data
from hone.recipe.schema import Sft
from hone.recipe.training import SGD, AdamW, BatchSize, Checkpoint, Lora, Optimizer
from hone.records import Sample, Segment
from tests.tiny import VOCABULARY, make_model, random_segment

STEPS = 10
BATCH = 8

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """One setting of both trainers.

    limit: the distance up to which both count as the same. rows: samples a forward in TRL, which
    accumulates up to `BATCH`. token_budget: tokens a forward in Hone.
    """

    optimizer: Optimizer
    learning_rate: float
    limit: float
    model: str = "llama"
    lora: bool = True
    max_grad_norm: float | None = None
    rows: int = BATCH
    token_budget: int = 10_000


CASES = {
    "sgd": Case(SGD(), 0.1, 1e-5),
    "sgd, accumulated": Case(SGD(), 0.1, 1e-5, rows=2, token_budget=1),
    "sgd with momentum, clipped": Case(SGD(momentum=0.9), 0.3, 1e-5, max_grad_norm=0.1),
    "adamw": Case(AdamW(), 2e-3, 1e-2),
    "adamw with decay, clipped, accumulated": Case(
        AdamW(betas=(0.8, 0.95), weight_decay=0.1),
        2e-3,
        1e-2,
        max_grad_norm=0.5,
        rows=4,
        token_budget=80,
    ),
    "full, sgd": Case(SGD(), 0.1, 1e-5, model="llama-tied", lora=False),
    "full, adamw": Case(AdamW(), 1e-3, 1e-2, model="qwen3", lora=False),
}

# What PEFT 0.21 still asks of transformers 5.23.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


def prompts_with_completions() -> list[Sample]:
    """Samples of all steps: one segment each, of which the second part is trained."""
    draw = np.random.default_rng(5)
    samples = []
    for n in range(STEPS * BATCH):
        prompt, completion = (int(length) for length in draw.integers(2, 14, 2))
        tokens = random_segment(draw, prompt + completion, -1, 0.0).tokens
        trained = np.arange(prompt + completion) >= prompt
        samples.append(Sample(n, (Segment(tokens, trained),)))
    return samples


def shifted(samples: list[Sample], by: int) -> list[Sample]:
    """The same samples with every mask moved by so many tokens."""
    return [
        Sample(s.index, (Segment(s.segments[0].tokens, np.roll(s.segments[0].trained, by)),))
        for s in samples
    ]


def mean_of_each_part(parts: int) -> LossFunction:
    """A wrong loss: every micro-batch counts the same, however many tokens it trains."""
    return lambda logprobs_P, batch: LossOutput(total=-logprobs_P.mean() / parts)


def make_start(case: Case, folder: Path) -> tuple[Path, Path]:
    """Folders of the base model and of the one initial adapter that both sides load."""
    make_model(case.model).save_pretrained(folder / "base")
    make_adapters(case.model, folder / "adapter")
    return folder / "base", folder / "adapter"


def make_adapters(model: str, folder: Path, seed: int = 0) -> None:
    """An adapter no part of which is at zero, so that all of them show."""
    adapted = add_lora(make_model(model, seed=0), Lora(rank=4, alpha=8))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    adapted.save_pretrained(folder)


def load(case: Case, start: tuple[Path, Path]) -> tuple[PreTrainedModel, Any]:
    """The model with its head, and the module whose weights are trained."""
    base = AutoModelForCausalLM.from_pretrained(start[0], dtype=torch.float32)
    if not case.lora:
        return base, base
    return base, PeftModel.from_pretrained(base, str(start[1]), is_trainable=True)


def trained_weights(module: torch.nn.Module) -> Weights:
    return {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}


def train_with_hone(
    case: Case,
    start: tuple[Path, Path],
    samples: list[Sample],
    folder: Path,
    loss: LossFunction = LOSSES["sft"],
    equip: Callable[[Training], None] = lambda _: None,
) -> Weights:
    """Weights after ten steps of `fit`; `equip` adds to what it gets, before step 1."""
    base, module = load(case, start)
    fp32 = Precision(torch.float32, torch.float32, "for the test")
    model = join_model(base, fp32, layout="forest")
    model.module = module
    if case.lora:
        assert use_fast_forward(module) > 0
    settings = Sft(
        data=Data(path="unused"),
        batch=BatchSize(samples=BATCH),
        steps=STEPS,
        learning_rate=case.learning_rate,
        schedule="constant",
        optimizer=case.optimizer,
        max_grad_norm=case.max_grad_norm,
        checkpoint=Checkpoint(every=10 * STEPS),
    )
    folder.mkdir()
    training = Training(
        model=model,
        optimizer=make_optimizer(module, case.optimizer),
        loss=loss,
        settings=settings,
        folder=folder,
        seed=0,
        stage=0,
        total_steps=STEPS,
        samples_of=lambda step: samples[(step - 1) * BATCH : step * BATCH],
        held_out=[],
        token_budget=case.token_budget,
        report=lambda row: None,
        epoch_of=lambda step: step / STEPS,
    )
    equip(training)
    assert fit(training, CheckpointState(step=0, evaluated=False)).step == STEPS
    return trained_weights(module)


def trl_optimizer(optimizer: Optimizer) -> dict[str, Any]:
    if isinstance(optimizer, SGD):
        return {"optim": "sgd", "optim_args": f"momentum={optimizer.momentum}"}
    return {
        "optim": "adamw_torch",
        "adam_beta1": optimizer.betas[0],
        "adam_beta2": optimizer.betas[1],
        "adam_epsilon": optimizer.epsilon,
        "weight_decay": optimizer.weight_decay,
    }


def train_with_trl(
    case: Case, start: tuple[Path, Path], samples: list[Sample], folder: Path
) -> tuple[Weights, Weights]:
    """Weights before and after ten steps of TRL's trainer."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    _, module = load(case, start)
    before = trained_weights(module)
    rows = [
        {
            "input_ids": s.segments[0].tokens.tolist(),
            "completion_mask": s.segments[0].trained.astype(int).tolist(),
        }
        for s in samples
    ]
    settings = SFTConfig(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=case.rows,
        gradient_accumulation_steps=BATCH // case.rows,
        train_sampling_strategy="sequential",
        learning_rate=case.learning_rate,
        lr_scheduler_type="constant",
        max_grad_norm=case.max_grad_norm or 0.0,
        completion_only_loss=True,
        bf16=False,
        activation_checkpointing=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        **trl_optimizer(case.optimizer),
    )
    trainer = SFTTrainer(
        model=module,
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    assert trainer.state.global_step == STEPS
    return before, trained_weights(module)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """The trainer asks for one; the samples are ids already."""
    words = {f"w{n}": n for n in range(VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w1"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="w0", eos_token="w2")


def distance(found: Weights, before: Weights, after: Weights) -> float:
    """The largest difference of a weight, against the largest movement of a weight."""
    assert found.keys() == after.keys() == before.keys()
    movement = max((after[name] - before[name]).abs().max() for name in after)
    assert movement > 1e-3, "nothing was trained"
    return float(max((found[name] - after[name]).abs().max() for name in after) / movement)


@dataclass(frozen=True)
class Reference:
    """What TRL made of one case: weights before and after; and what Hone needs to do the same."""

    case: Case
    start: tuple[Path, Path]
    samples: list[Sample]
    before: Weights
    after: Weights

    def distance_of_hone(
        self, folder: Path, samples: list[Sample] | None = None, **keywords: Any
    ) -> float:
        """Train with Hone, on other samples where they are given, and compare."""
        chosen = samples or self.samples
        found = train_with_hone(self.case, self.start, chosen, folder / "hone", **keywords)
        return distance(found, self.before, self.after)


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reference]:
    """TRL's result of a case, computed once."""

    @cache
    def reference_of(name: str) -> Reference:
        case, folder = CASES[name], tmp_path_factory.mktemp("trl")
        start, samples = make_start(case, folder), prompts_with_completions()
        return Reference(case, start, samples, *train_with_trl(case, start, samples, folder))

    return reference_of


@pytest.mark.parametrize("name", CASES)
def test_ten_steps_equal_trl(name, references, tmp_path):
    reference = references(name)
    assert reference.distance_of_hone(tmp_path) < reference.case.limit


@pytest.mark.parametrize("by", [-1, 1])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_mask_shifted_by_one_token_is_caught(name, by, references, tmp_path):
    """The negative control: the neighbours of the trained tokens give other weights."""
    reference = references(name)
    samples = shifted(reference.samples, by)
    assert reference.distance_of_hone(tmp_path, samples) > 10 * reference.case.limit


def test_a_mean_of_means_is_caught(references, tmp_path):
    """The negative control of the denominator: it counts over the whole step, not each part."""
    reference = references("sgd, accumulated")
    loss = mean_of_each_part(parts=BATCH)
    assert reference.distance_of_hone(tmp_path, loss=loss) > 10 * reference.case.limit
