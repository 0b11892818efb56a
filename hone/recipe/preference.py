"""The stage `dpo`: which losses there are, what each one needs, and what a recipe may say.

The losses themselves are in `losses/`, by the same names. Part of `schema.py`, which is the tree.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, PositiveFloat, model_validator

from hone.errors import nearest
from hone.recipe.data import SampleKind
from hone.recipe.training import Adapter, DataStage, Lora

LossName = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "robust",
    "conservative",
    "exponential",
    "dpop",
    "sigmoid_norm",
    "apo_zero",
    "apo_down",
    "simpo",
    "cpo",
    "orpo",
    "sft",
    "kto",
]
LOSS_NAMES: tuple[LossName, ...] = get_args(LossName)


@dataclass(frozen=True)
class LossFacts:
    """What a preference loss is and needs.

    paper: where it is from. reward: what it makes larger for the chosen side than for the rejected
    one, before `beta`: the log-probability of a completion over that of the reference (`ratio`),
    the log-probability alone (`logprob`), or the mean of one of them over its tokens. parameters:
    those it has, with what they are where the recipe does not say. unpaired: it learns from single
    completions with a label, not from pairs.
    """

    paper: str
    reward: Literal["ratio", "mean_ratio", "logprob", "mean_logprob"]
    parameters: Mapping[str, float] = field(default_factory=dict)
    unpaired: bool = False

    @property
    def needs_reference(self) -> bool:
        """True where the policy at the start of the stage is compared with."""
        return self.reward in ("ratio", "mean_ratio")


LOSS_FACTS: dict[LossName, LossFacts] = {
    "sigmoid": LossFacts("DPO, arXiv:2305.18290", "ratio", {"beta": 0.1}),
    "hinge": LossFacts("SLiC-HF, arXiv:2305.10425, on ratios", "ratio", {"beta": 0.1}),
    "ipo": LossFacts("IPO, arXiv:2310.12036", "mean_ratio", {"beta": 0.1}),
    "robust": LossFacts(
        "robust DPO, arXiv:2403.00409", "ratio", {"beta": 0.1, "label_smoothing": 0.1}
    ),
    "conservative": LossFacts(
        "conservative DPO, ericmitchell.ai/cdpo.pdf", "ratio", {"beta": 0.1, "label_smoothing": 0.1}
    ),
    "exponential": LossFacts("GPO, arXiv:2402.05749", "ratio", {"beta": 0.1}),
    "dpop": LossFacts(
        "DPO-Positive, arXiv:2402.13228", "ratio", {"beta": 0.3, "chosen_penalty": 50.0}
    ),
    "sigmoid_norm": LossFacts(
        "length-normalised DPO, arXiv:2411.15124", "mean_ratio", {"beta": 5.0}
    ),
    "apo_zero": LossFacts("APO-zero, arXiv:2408.06266", "ratio", {"beta": 0.1}),
    "apo_down": LossFacts("APO-down, arXiv:2408.06266", "ratio", {"beta": 0.1}),
    "simpo": LossFacts("SimPO, arXiv:2405.14734", "mean_logprob", {"beta": 2.0, "gamma": 1.0}),
    "cpo": LossFacts("CPO, arXiv:2401.08417", "logprob", {"beta": 0.1}),
    "orpo": LossFacts("ORPO, arXiv:2403.07691", "mean_logprob", {"beta": 0.1}),
    "sft": LossFacts("the chosen side's negative log-likelihood", "mean_logprob"),
    "kto": LossFacts(
        "KTO, arXiv:2402.01306",
        "ratio",
        {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
        unpaired=True,
    ),
}
"""The one table of preference losses; each is a function of the same name in `losses/`."""

PARAMETERS = tuple(dict.fromkeys(name for each in LOSS_FACTS.values() for name in each.parameters))


def _known_losses(value: object) -> object:
    """Refuses a mapping without losses or with another name in it, with the nearest one."""
    if not isinstance(value, dict):
        return value
    if not value:
        raise ValueError("expected at least one loss with its weight, found an empty mapping")
    for unknown in [key for key in value if key not in LOSS_NAMES]:
        close = nearest(str(unknown), LOSS_NAMES)
        offer = f'did you mean "{close}"? ' if close else ""
        raise ValueError(f"one of its keys names no loss; {offer}There are {', '.join(LOSS_NAMES)}")
    return value


class Dpo(DataStage):
    """Learn from preferences: of two completions the chosen one, or which ones are desirable."""

    adapter: Adapter = Lora()
    """What is trained: `lora` adapters, `qlora` beside weights of few bits, or `full` weights."""
    learning_rate: Annotated[float, Field(ge=0)] = 5e-5
    """The highest learning rate, reached after the warm-up; full weights want about a tenth."""
    loss: Annotated[LossName | dict[LossName, PositiveFloat], BeforeValidator(_known_losses)] = (
        "sigmoid"
    )
    """The loss by name (`sigmoid` is DPO's), or several with their weights, which are added up."""
    beta: PositiveFloat | None = None
    """How much the reward weighs: a higher one keeps the policy closer to where it starts. Left
    out: 0.1, and 0.3 for `dpop`, 2 for `simpo`, 5 for `sigmoid_norm`."""
    label_smoothing: Annotated[float, Field(gt=0, lt=0.5)] | None = None
    """The share of pairs whose sides are taken to be exchanged, for `conservative` and `robust`;
    0.1 when left out."""
    gamma: Annotated[float, Field(ge=0)] | None = None
    """By how much the chosen side's reward is to be larger, for `simpo`; 1 when left out."""
    chosen_penalty: PositiveFloat | None = None
    """How much it costs that the chosen side becomes less likely, for `dpop`; 50 when left out."""
    desirable_weight: PositiveFloat | None = None
    """The weight of desirable completions, for `kto`; 1 when left out."""
    undesirable_weight: PositiveFloat | None = None
    """The weight of undesirable completions, for `kto`; 1 when left out."""

    @model_validator(mode="after")
    def one_kind_of_rows(self) -> "Dpo":
        if "kto" in self.losses and len(self.losses) > 1:
            raise ValueError(
                "`loss`: kto learns from single completions and the others from pairs; expected it "
                "alone"
            )
        if "kto" in self.losses and self.batch.samples == 1:
            raise ValueError(
                "kto compares a prompt with the completion of another sample of the step, and "
                "`batch.samples` is 1; expected at least 2"
            )
        return self

    @model_validator(mode="after")
    def parameters_are_used(self) -> "Dpo":
        for name in PARAMETERS:
            using = [loss for loss in LOSS_NAMES if name in LOSS_FACTS[loss].parameters]
            if getattr(self, name) is not None and not self.losses.keys() & set(using):
                raise ValueError(
                    f"`{name}` has no effect with the loss {' + '.join(self.losses)}; "
                    f"{', '.join(using)} {'has' if len(using) == 1 else 'have'} it"
                )
        return self

    @property
    def losses(self) -> dict[LossName, float]:
        """The chosen losses with their weights."""
        return self.loss if isinstance(self.loss, dict) else {self.loss: 1.0}

    @property
    def leading(self) -> LossName:
        """The loss whose reward the metrics show: of a sum the first one that compares."""
        return next((name for name in self.losses if name != "sft"), "sft")

    def parameters_of(self, loss: LossName) -> dict[str, float]:
        """The parameters of one of the losses: as the recipe says, or what they are without it."""
        given: dict[str, Any] = {name: getattr(self, name) for name in PARAMETERS}
        return {
            name: usual if given[name] is None else given[name]
            for name, usual in LOSS_FACTS[loss].parameters.items()
        }

    @property
    def needs_reference(self) -> bool:
        """True where one of the losses compares with the policy at the start of the stage."""
        return any(LOSS_FACTS[name].needs_reference for name in self.losses)

    @property
    def unpaired(self) -> bool:
        """True where it learns from single completions with a label, not from pairs."""
        return LOSS_FACTS[self.leading].unpaired

    @property
    def sample_kind(self) -> SampleKind:
        """Pairs, or single completions with a label, as the loss needs them."""
        return "unpaired" if self.unpaired else "pairs"
