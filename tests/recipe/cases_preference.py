"""The cases of the stage `dpo`: its own fields, and its data, which are pairs or have labels."""

from hone.recipe.preference import LOSS_NAMES
from tests.recipe.cases import Case, case

# The sides of a row as messages, and not as texts.
MESSAGES = ("columns.prompt=asked", "columns.chosen=good", "columns.rejected=bad")
KTO = "dpo.loss=kto"

DATA: dict[str, Case] = {
    "path": case("path=other.jsonl"),
    "split": case("split=test", start="path=acme/tiny"),
    "format": case("format=unpaired", "format=messages", differs="error"),
    **{
        f"columns.{name}": case(f"columns.{name}=reply", differs="error")
        for name in ("text", "messages", "conversations", "instruction", "input", "output")
    },
    "columns.prompt": case("columns.prompt=question"),
    "columns.chosen": case("columns.chosen=better"),
    "columns.rejected": case("columns.rejected=worse"),
    "columns.completion": case("columns.completion=answer", start=KTO),
    "columns.label": case("columns.label=verdict", start=KTO),
    "columns.system": case("columns.system=persona", start=MESSAGES),
    "columns.tools": case("columns.tools=functions", start=(*MESSAGES, "template=tools.jinja")),
    "template": case(
        "template=chatml", "template=alpaca", "template=brackets.jinja", start=MESSAGES
    ),
    "on_bad_row": case("on_bad_row=skip", start="path=broken.jsonl", differs="error"),
}

STAGE: dict[str, Case] = {
    "max_grad_norm": case("max_grad_norm=0.01", "max_grad_norm=null", start="beta=3.0"),
    "max_tokens": case("max_tokens=20", differs="weights printed"),
    "overlong": case("overlong=keep_end", "overlong=drop", start="max_tokens=20"),
    "loss": case(
        *(f"loss={name}" for name in LOSS_NAMES if name != "sigmoid"),
        "loss={sigmoid: 1, sft: 0.2}",
        "loss={sigmoid: 2}",
        differs="weights metrics printed",
    ),
    "beta": case("beta=0.5", differs="weights printed"),
    "label_smoothing": case("label_smoothing=0.3", start="loss=robust"),
    "gamma": case("gamma=3.0", start="loss=simpo"),
    "chosen_penalty": case("chosen_penalty=5.0", start="loss={dpop: 1, apo_down: 1}"),
    "desirable_weight": case("desirable_weight=2.0", start="loss=kto"),
    "undesirable_weight": case("undesirable_weight=2.0", start="loss=kto"),
}

# Settings that would have no effect where they stand, and losses that there are not.
REFUSED: dict[tuple[str, ...], str] = {
    ("dpo.loss=sigmod",): 'found "sigmod"; did you mean "sigmoid"?',
    ("dpo.loss={sigmod: 1}",): 'dpo.loss: one of its keys names no loss; did you mean "sigmoid"?',
    ("dpo.loss={}",): "expected at least one loss with its weight",
    ("dpo.loss={hinge: -1}",): "dpo.loss.hinge: expected a number above 0",
    ("dpo.loss={kto: 1, sft: 1}",): "kto learns from single completions and the others from pairs",
    ("dpo.loss=kto", "dpo.batch.samples=1"): "expected at least 2",
    ("dpo.label_smoothing=0.1",): "with the loss sigmoid; robust, conservative have it",
    ("dpo.loss=ipo", "dpo.gamma=1.0"): "`gamma` has no effect with the loss ipo; simpo has it",
    ("dpo.loss=sft", "dpo.beta=0.2"): "`beta` has no effect with the loss sft; sigmoid, hinge,",
    ("dpo.loss=robust", "dpo.label_smoothing=0.5"): "above 0 and below 0.5",
    ("dpo.evaluation.early_stopping={metric: reward}",): (
        "`evaluation.early_stopping.metric` is reward, which the evaluations of this method do not "
        "measure; expected loss or accuracy"
    ),
    ("dpo.data.format=text",): "this stage learns from pairs",
    ("dpo.train_on=all",): 'unknown key "train_on"',
}
