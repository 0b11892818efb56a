"""Every preference loss, and each of its gradient tensors, against TRL on the same batch.

TRL's DPOTrainer and KTOTrainer compute theirs with their own forward; what TRL keeps as a function
(CPO, SimPO, ORPO) or does not have (DPOP) is computed on log-probabilities of transformers' plain
forward, one sequence after another. The policy is far from the reference.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy, logsigmoid
from transformers import PreTrainedModel

from hone.adapters import use_fast_forward
from hone.annotate import annotate
from hone.device import Precision
from hone.forest import count_step, make_batch
from hone.losses import LossFunction, LossOutput
from hone.losses.preference import PAIR_LOSSES, make_pair_loss
from hone.losses.unpaired import kto, make_unpaired_loss
from hone.models import LanguageModel, join_model
from hone.recipe.data import Data
from hone.recipe.preference import LOSS_FACTS, LOSS_NAMES, Dpo
from hone.records import Sample
from hone.stages.mismatched import couple, mismatch
from hone.stages.reference import REFERENCE
from hone.training import Training
from tests.preferences import random_judged, random_pairs
from tests.test_trl_parity import make_adapters, tiny_tokenizer
from tests.tiny import make_model

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # of PEFT 0.21
)

LIMIT = 1e-5
KINDS = ("lora", "full")
Gradients = dict[str, torch.Tensor]


def settings(loss: str | dict[str, float], **parameters: float) -> Dpo:
    return Dpo(data=Data(path="unused"), loss=loss, **parameters)


# --- A policy, what it was, and pairs ------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """One kind of policy, adapters or full weights."""

    kind: str
    folder: Path

    def load(self, which: str) -> tuple[PreTrainedModel, Any]:
        """The base and the module that is trained, as `policy` or as `reference`."""
        base = make_model("llama")
        if self.kind == "lora":
            place = str(self.folder / which)
            return base, PeftModel.from_pretrained(base, place, is_trainable=True)
        if which == "policy":
            torch.manual_seed(1)
            with torch.no_grad():
                for parameter in base.parameters():
                    parameter.add_(0.02 * torch.randn_like(parameter))
        return base, base

    @property
    def judged(self) -> list[Sample]:
        """Labelled completions, of which the mismatched ones are likelier than they were."""
        return JUDGED[self.kind]

    @cache  # noqa: B019  # a test's bench lives as long as its module
    def training(self, which: str, layout: str = "forest", token_budget: int = 10_000) -> Training:
        """What Hone computes with; nothing is ever updated."""
        base, module = self.load(which)
        fp32 = Precision(torch.float32, torch.float32, "for the test")
        model = join_model(base, fp32, layout=layout)
        model.module = module
        if self.kind == "lora":
            assert use_fast_forward(module) > 0
        return Training(
            model=model,
            optimizer=torch.optim.SGD([p for p in module.parameters() if p.requires_grad]),
            settings=settings("sigmoid"),
            folder=self.folder,
            seed=0,
            stage=0,
            total_steps=1,
            token_budget=token_budget,
            epoch_of=float,
        )


@pytest.fixture(scope="module", params=KINDS)
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    for number, name in enumerate(("reference", "policy")):
        make_adapters("llama", folder / name, seed=number)
    return Bench(request.param, folder)


PAIRS = random_pairs(8)
JUDGED = {"lora": random_judged(8, seed=7), "full": random_judged(8, seed=2)}
NEGATIVE = random_judged(8, seed=1)  # the policy makes the mismatched ones less likely


@pytest.fixture(scope="module")
def known(bench: Bench) -> list[Sample]:
    """The pairs with the reference on their tokens."""
    return annotate(bench.training("reference"), PAIRS, 0, REFERENCE)


def gradients(module: torch.nn.Module) -> Gradients:
    found = {
        name.replace(".default", ""): parameter.grad.clone()
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }
    module.zero_grad(set_to_none=True)
    return found


def by_hone(
    model: LanguageModel, loss: LossFunction, samples: list[Sample], cuts: list[range] | None = None
) -> tuple[float, Gradients, dict[str, float]]:
    """Loss, gradients and metrics of one step, cut as given."""
    counts, total, metrics = count_step(samples), 0.0, dict[str, float]()
    model.module.train()
    for cut in cuts or [range(len(samples))]:
        batch = model.make_batch([samples[n] for n in cut], counts=counts, indices=cut)
        with model.laid_out(batch):
            output = loss(model.logprobs(batch), batch)
            output.total.backward()
        total += output.total.item()
        for name, value in output.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + float(value)
    return total, gradients(model.module), metrics


def assert_close(found: tuple[float, Gradients], expected: tuple[float, Gradients]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=LIMIT)
    assert distance(found[1], expected[1]) < LIMIT


def distance(found: Gradients, expected: Gradients) -> float:
    """The largest relative norm of the difference over all tensors."""
    assert found.keys() == expected.keys() and found
    assert all(each.norm() > 0 for each in expected.values()), "a tensor without a gradient"
    return max(float((found[n] - expected[n]).norm() / expected[n].norm()) for n in expected)


# --- TRL and the plain way -----------------------------------------------------------------------


def ids(sample: Sample, segment: int) -> list[int]:
    return sample.segments[segment].tokens.tolist()


def plain(model: torch.nn.Module, samples: list[Sample], segment: int) -> torch.Tensor:
    """(N,) log-probability of that completion, by one plain forward for each sequence."""
    sums = []
    for sample in samples:
        prompt, completion = ids(sample, 0), ids(sample, segment)
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0]
        here = logits[len(prompt) - 1 : -1]
        sums.append(-cross_entropy(here, torch.tensor(completion), reduction="sum"))
    return torch.stack(sums)


@pytest.fixture(scope="module")
def plain_reference(bench: Bench) -> list[torch.Tensor]:
    """(N,) of the chosen and of the rejected sides."""
    _, module = bench.load("reference")
    with torch.no_grad():
        return [plain(module.eval(), PAIRS, side) for side in (1, 2)]


def trl_settings(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "train_sampling_strategy": "sequential",
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "max_length": None,
        "precompute_ref_log_probs": True,  # it is given with the batch
    }


def rows_of_pairs(samples: list[Sample]) -> list[dict[str, list[int]]]:
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return [{name: ids(each, n) for n, name in enumerate(names)} for each in samples]


def rows_of_judged(samples: list[Sample], mixed: list[Sample]) -> list[dict[str, Any]]:
    return [
        {
            "prompt_ids": ids(each, 0),
            "completion_ids": ids(each, 1),
            "KL_completion_ids": ids(other, 1),
            "label": bool(each.segments[1].constants["label"][0]),
        }
        for each, other in zip(samples, mixed, strict=True)
    ]


@pytest.fixture(scope="module")
def trl(bench: Bench) -> Any:
    """TRL's trainer with the policy; its reference is given with the batch."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class OnIds(DPOTrainer):
        def _prepare_dataset(self, dataset: Dataset, *rest: Any, **more: Any) -> Dataset:
            return dataset

    return OnIds(
        model=bench.load("policy")[1],
        args=DPOConfig(**trl_settings(bench.folder / "trl")),
        train_dataset=Dataset.from_list(rows_of_pairs(PAIRS)),
        processing_class=tiny_tokenizer(),
    )


# The losses of TRL that add up to one of ours, with their weights.
E = 0.1
IN_TRL: dict[str, tuple[dict[str, float], dict[str, float]]] = {
    "sigmoid": ({"sigmoid": 1}, {}),
    "hinge": ({"hinge": 1}, {}),
    "ipo": ({"ipo": 1}, {}),
    "robust": ({"robust": 1}, {"label_smoothing": E}),
    # (1 - e) a + e b, where TRL has a, and ((1 - e) a - e b) / (1 - 2 e)
    "conservative": (
        {"sigmoid": 2 * (1 - E), "robust": -(1 - 2 * E)},
        {"label_smoothing": E},
    ),
    # with an endless tau, discopop is the mean of sigmoid and exponential
    "exponential": ({"discopop": 2, "sigmoid": -1}, {}),
    "sigmoid_norm": ({"sigmoid_norm": 1}, {}),
    "apo_zero": ({"apo_zero": 1}, {}),
    "apo_down": ({"apo_down": 1}, {}),
    "sft": ({"sft": 1}, {}),
}


def by_trl(
    trainer: Any,
    references: list[torch.Tensor],
    losses: dict[str, float],
    beta: float,
    label_smoothing: float = 0.0,
) -> tuple[float, Gradients]:
    trainer.loss_types, trainer.loss_weights = list(losses), list(losses.values())
    trainer.beta, trainer.label_smoothing = beta, label_smoothing
    trainer.args.discopop_tau = 1e12
    inputs = trainer.data_collator(rows_of_pairs(PAIRS))
    inputs |= {"ref_chosen_logps": references[0], "ref_rejected_logps": references[1]}
    loss = trainer.compute_loss(trainer.model.train(), inputs)
    loss.backward()
    return loss.item(), gradients(trainer.model)


@pytest.mark.parametrize("name", IN_TRL)
def test_a_loss_equals_that_of_the_trainer(name, bench, known, trl, plain_reference) -> None:
    losses, parameters = IN_TRL[name]
    own = {} if name == "sft" else {"beta": 0.3, **parameters}
    found = by_hone(bench.training("policy").model, make_pair_loss(settings(name, **own)), known)
    assert_close(found[:2], by_trl(trl, plain_reference, losses, 0.3, **parameters))


def test_a_weighted_sum_equals_that_of_the_trainer(bench, known, trl, plain_reference) -> None:
    losses = {"sigmoid": 0.8, "apo_zero": 1.5, "sft": 0.2}
    loss = make_pair_loss(settings(losses, beta=0.2))
    found = by_hone(bench.training("policy").model, loss, known)
    assert_close(found[:2], by_trl(trl, plain_reference, losses, 0.2))


def test_a_wrong_reference_is_caught(bench, known, trl, plain_reference) -> None:
    """The negative control: the policy's own values, and another pair's, give other gradients."""
    model = bench.training("policy").model
    loss = make_pair_loss(settings("sigmoid", beta=0.3))
    expected = by_trl(trl, plain_reference, {"sigmoid": 1}, 0.3)[1]
    wrong = annotate(bench.training("policy"), PAIRS, 0, REFERENCE)
    assert distance(by_hone(model, loss, wrong)[1], expected) > 100 * LIMIT
    exchanged = [plain_reference[1], plain_reference[0]]
    right = by_hone(model, loss, known)[1]
    assert distance(right, by_trl(trl, exchanged, {"sigmoid": 1}, 0.3)[1]) > 100 * LIMIT


# Of the plain log-probabilities: chosen and rejected sides, the reference's, and numbers of tokens.
Formula = Callable[[torch.Tensor, torch.Tensor, list[torch.Tensor], list[torch.Tensor]], Any]


def from_cpo(loss: str, **parameters: float) -> Formula:
    """TRL's function of sums (CPO) or means (SimPO) of log-probabilities."""
    from trl.experimental.cpo import CPOTrainer

    trainer: Any = SimpleNamespace(
        alpha=0.0, accelerator=SimpleNamespace(device="cpu"), label_smoothing=0.0, **parameters
    )
    trainer.loss_type = loss

    def formula(chosen: Any, rejected: Any, _: Any, tokens: Any) -> torch.Tensor:
        if loss == "simpo":
            return CPOTrainer.cpo_loss(trainer, chosen / tokens[0], rejected / tokens[1])[0].mean()
        losses = CPOTrainer.cpo_loss(trainer, chosen, rejected)[0]
        return losses.mean() - chosen.sum() / tokens[0].sum()

    return formula


def from_orpo(beta: float) -> Formula:
    from trl.experimental.orpo import ORPOTrainer

    trainer: Any = SimpleNamespace(beta=beta, accelerator=SimpleNamespace(device="cpu"))

    def formula(chosen: Any, rejected: Any, _: Any, tokens: Any) -> torch.Tensor:
        means = chosen / tokens[0], rejected / tokens[1]
        losses = ORPOTrainer.odds_ratio_loss(trainer, *means)[0]
        return -losses.mean() - chosen.sum() / tokens[0].sum()

    return formula


def dpop(beta: float, chosen_penalty: float) -> Formula:
    """Equation 3 of arXiv:2402.13228, one pair after another."""

    def formula(chosen: Any, rejected: Any, references: Any, _: Any) -> torch.Tensor:
        total = torch.zeros(())
        for n in range(len(chosen)):
            won, lost = chosen[n] - references[0][n], rejected[n] - references[1][n]
            penalty = references[0][n] - chosen[n]
            inside = won - lost - (chosen_penalty * penalty if penalty > 0 else 0.0)
            total = total - logsigmoid(beta * inside) / len(chosen)
        return total

    return formula


PLAIN: dict[str, tuple[Callable[..., Formula], dict[str, float]]] = {
    "cpo": (lambda **given: from_cpo("sigmoid", **given), {"beta": 0.3}),
    "simpo": (
        lambda beta, gamma: from_cpo("simpo", beta=beta, simpo_gamma=gamma),
        {"beta": 2.0, "gamma": 0.7},
    ),
    "orpo": (from_orpo, {"beta": 0.4}),
    "dpop": (dpop, {"beta": 0.1, "chosen_penalty": 3.0}),
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_loss_equals_that_of_plain_forwards(name, bench, known, plain_reference) -> None:
    make_formula, parameters = PLAIN[name]
    found = by_hone(
        bench.training("policy").model, make_pair_loss(settings(name, **parameters)), known
    )
    _, module = bench.load("policy")
    sides = [plain(module.train(), PAIRS, side) for side in (1, 2)]
    tokens = [torch.tensor([len(ids(s, side)) for s in PAIRS]) for side in (1, 2)]
    loss = make_formula(**parameters)(*sides, plain_reference, tokens)
    loss.backward()
    assert_close(found[:2], (loss.item(), gradients(module)))


@pytest.mark.parametrize("negative", [False, True])
def test_kto_equals_that_of_the_trainer(negative, bench) -> None:
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    class OnIds(KTOTrainer):
        def _prepare_dataset(self, dataset: Dataset, *rest: Any, **more: Any) -> Dataset:
            return dataset

    judged = NEGATIVE if negative else bench.judged
    mixed = mismatch(judged, max_tokens=100)
    with torch.no_grad():
        reference = bench.load("reference")[1].eval()
        of_rows, of_mixed = (plain(reference, samples, 1) for samples in (judged, mixed))
    own = {"beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.7}
    trainer = OnIds(
        model=bench.load("policy")[1],
        args=KTOConfig(**trl_settings(bench.folder / "kto"), **own),
        train_dataset=Dataset.from_list(rows_of_judged(judged, mixed)),
        processing_class=tiny_tokenizer(),
    )
    inputs = trainer.data_collator(rows_of_judged(judged, mixed))
    inputs |= {"ref_logps": of_rows, "ref_KL_logps": of_mixed}
    loss = trainer.compute_loss(trainer.model.train(), inputs)
    loss.backward()

    samples = coupled(bench, judged)
    divergence = samples[0].segments[1].constants["divergence"][0]
    assert divergence == pytest.approx(trainer._metrics["train"]["kl"][0], rel=LIMIT)
    assert divergence == 0 if negative else divergence > 0.4
    found = by_hone(
        bench.training("policy").model, make_unpaired_loss(settings("kto", **own)), samples
    )
    assert_close(found[:2], (loss.item(), gradients(trainer.model)))


def coupled(bench: Bench, samples: list[Sample], **changes: Any) -> list[Sample]:
    """Labelled completions as a step has them."""
    reference = bench.training("reference", **changes)
    known, others = (
        annotate(reference, each, 0, REFERENCE) for each in (samples, mismatch(samples, 100))
    )
    return couple(bench.training("policy", **changes), known, others, 1)


# --- Cuts and layouts ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*PAIR_LOSSES, "kto"])
def test_neither_cuts_nor_layout_change_a_loss(name, bench, known) -> None:
    """8 at once, 8 times one, two and six, and padded: the same loss, gradients and metrics."""
    unpaired = LOSS_FACTS[name].unpaired
    loss = make_unpaired_loss(settings(name)) if unpaired else make_pair_loss(settings(name))
    samples = coupled(bench, bench.judged) if unpaired else known
    forest = bench.training("policy").model
    whole = by_hone(forest, loss, samples)
    one_by_one = [range(n, n + 1) for n in range(8)]
    padded = bench.training("policy", layout="padded").model
    for other in (
        by_hone(forest, loss, samples, one_by_one),
        by_hone(forest, loss, samples, [range(2), range(2, 8)]),
        by_hone(padded, loss, samples),
    ):
        assert_close(other[:2], whole[:2])
        assert other[2] == pytest.approx(whole[2], rel=1e-4, abs=1e-5)


def test_the_reference_point_of_a_step_has_no_cuts(bench) -> None:
    samples, other = (coupled(bench, bench.judged, token_budget=budget) for budget in (10_000, 1))
    points = [s.segments[1].constants["divergence"][0] for s in (*samples, *other)]
    assert points == pytest.approx([points[0]] * 16, rel=1e-6)
    assert coupled(bench, bench.judged[:1])[0].segments[1].constants["divergence"][0] == 0.0


def test_a_pair_is_two_sequences(bench) -> None:
    """The shared prompt gives the loss and the gradients of a prompt for each side."""
    known = annotate(bench.training("reference"), PAIRS, 0, REFERENCE)
    whole = by_hone(bench.training("policy").model, make_pair_loss(settings("sigmoid")), known)
    _, module = bench.load("policy")
    with torch.no_grad():
        reference = bench.load("reference")[1].eval()
        before = [plain(reference, PAIRS, side) for side in (1, 2)]
    after = [plain(module.train(), PAIRS, side) for side in (1, 2)]
    margins = (after[0] - before[0]) - (after[1] - before[1])
    loss = torch.log1p(torch.exp(-0.1 * margins)).mean()
    loss.backward()
    assert_close(whole[:2], (loss.item(), gradients(module)))


# --- What is said of them ------------------------------------------------------------------------


def test_metrics_are_means_over_the_pairs(bench, known, plain_reference) -> None:
    model = bench.training("policy").model
    found = by_hone(model, make_pair_loss(settings("sigmoid", beta=0.3)), known)[2]
    _, module = bench.load("policy")
    with torch.no_grad():
        sides = [plain(module.eval(), PAIRS, side) for side in (1, 2)]
    rewards = [0.3 * (now - before) for now, before in zip(sides, plain_reference, strict=True)]
    expected = {
        "reward_chosen": rewards[0].mean(),
        "reward_rejected": rewards[1].mean(),
        "margin": (rewards[0] - rewards[1]).mean(),
        "accuracy": (rewards[0] > rewards[1]).float().mean(),
        "logprob_chosen": sides[0].mean(),
        "logprob_rejected": sides[1].mean(),
    }
    assert found == pytest.approx(
        {name: float(value) for name, value in expected.items()}, rel=1e-4
    )


def test_metrics_of_labelled_completions(bench) -> None:
    samples = coupled(bench, bench.judged)
    model = bench.training("policy").model
    found = by_hone(model, make_unpaired_loss(settings("kto", beta=0.3)), samples)[2]
    with torch.no_grad():
        now, before = (
            plain(bench.load(w)[1].eval(), bench.judged, 1) for w in ("policy", "reference")
        )
    wanted = torch.tensor([bool(s.segments[1].constants["label"][0]) for s in bench.judged])
    point = samples[0].segments[1].constants["divergence"][0]
    rewards = 0.3 * (now - before)
    expected = {
        "reward_chosen": rewards[wanted].mean(),
        "reward_rejected": rewards[~wanted].mean(),
        "margin": rewards[wanted].mean() - rewards[~wanted].mean(),
        "accuracy": ((now - before > point) == wanted).float().mean(),
        "logprob_chosen": now[wanted].mean(),
        "logprob_rejected": now[~wanted].mean(),
        "kl": torch.tensor(point),
    }
    assert found == pytest.approx(
        {name: float(value) for name, value in expected.items()}, rel=1e-4
    )
    wanted_only = coupled(bench, [s for s, each in zip(bench.judged, wanted, strict=True) if each])
    found = by_hone(model, make_unpaired_loss(settings("kto")), wanted_only)[2]
    assert "reward_rejected" not in found and "margin" not in found


def test_before_step_1_pairs_are_told_apart_by_chance(bench) -> None:
    training = bench.training("policy")
    samples = annotate(training, PAIRS, 0, REFERENCE)
    for batch in one_batch(samples):
        values = batch.constants[REFERENCE].float()
        output = make_pair_loss(settings("sigmoid"))(values, batch)
    assert output.metrics["accuracy"] == 0.5 and output.total.item() == pytest.approx(math.log(2))


def one_batch(samples: list[Sample]) -> Iterator[Any]:
    yield make_batch(samples, count_step(samples))


def test_orpo_is_finite_where_a_side_is_certain() -> None:
    """In fp32 a completion may have the probability 1, whose odds are infinite."""
    for batch in one_batch(PAIRS):
        logprobs = torch.zeros(len(batch.targets_P), requires_grad=True)
        output: LossOutput = make_pair_loss(settings("orpo"))(logprobs, batch)
        output.total.backward()
        assert output.total.isfinite() and logprobs.grad.isfinite().all()


def test_the_table_says_what_the_functions_take() -> None:
    """Names, parameters and whether a reference is read: as the functions themselves have it."""
    assert {*PAIR_LOSSES, "kto"} == set(LOSS_NAMES) == set(LOSS_FACTS)
    for name, function in PAIR_LOSSES.items():
        assert list(inspect.signature(function).parameters)[1:] == list(LOSS_FACTS[name].parameters)
        assert not LOSS_FACTS[name].unpaired
        for batch in one_batch(annotated(0.0)):
            other = make_batch(annotated(0.0), batch.counts)
            other.constants[REFERENCE] -= torch.arange(len(batch.targets_P)) / 100
            logprobs = torch.linspace(-2, -1, len(batch.targets_P))
            loss = make_pair_loss(settings(name))
            differs = loss(logprobs, batch).total != loss(logprobs, other).total
            assert differs == LOSS_FACTS[name].needs_reference, name
    own = list(inspect.signature(kto).parameters)[3:]
    assert own == list(LOSS_FACTS["kto"].parameters) and LOSS_FACTS["kto"].unpaired


def annotated(value: float) -> list[Sample]:
    """Pairs whose reference is the same everywhere."""

    def constant(segment: Any) -> Any:
        column = torch.full((len(segment.tokens),), value).numpy()
        return replace(segment, constants={REFERENCE: column})

    return [replace(s, segments=tuple(map(constant, s.segments))) for s in PAIRS]
