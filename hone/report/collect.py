"""What a run's directory says about it, gathered for the page.

Only files of the run are read, and nothing is computed on the model: figures about the result come
from verify/verify.json and verify/answers.json, curves from what training wrote. Called by
`write.py`. Left out: how any of it looks (the templates), and hiding `${NAME}` (write.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hone.files import read_json
from hone.metrics import Row, read_metrics, read_new_rows
from hone.quarantine import read_quarantine
from hone.report import words
from hone.report.charts import Mark
from hone.report.examples import Examples, collect_answers, collect_rollouts
from hone.report.proof import Proof, collect_proof
from hone.runs import Run

MOST_EVENTS = 200
MOST_RECIPE = 20_000  # characters of recipe.yaml

# What counts as a stage's progress, the first that its held-out rows have.
HEADLINES = {"reward": "held-out reward", "loss": "held-out loss", "accuracy": "held-out accuracy"}


@dataclass(frozen=True)
class Headline:
    """How a measure began and ended, as training saw it."""

    label: str
    before: float
    after: float


@dataclass(frozen=True)
class StageReport:
    """A stage of the recipe, begun or not. number: from 1. folder: its own. settings: the recipe's,
    with defaults. locked: its part of lock.json.
    """

    number: int
    method: str
    folder: Path
    settings: dict[str, Any]
    locked: dict[str, Any]

    @property
    def name(self) -> str:
        """As its folder is called: 1-sft."""
        return self.folder.name

    @property
    def done(self) -> bool:
        """Its result is there."""
        return (self.folder / "model").is_dir()

    @property
    def begun(self) -> bool:
        """It has a folder."""
        return self.folder.is_dir()

    @cached_property
    def rows(self) -> list[Row]:
        """All rows that count."""
        return read_metrics(self.folder / "metrics.jsonl")

    @property
    def training(self) -> list[Row]:
        """The rows of steps."""
        return [row for row in self.rows if "split" not in row]

    @property
    def held_out(self) -> list[Row]:
        """The rows of evaluations."""
        return [row for row in self.rows if row.get("split") == "evaluation"]

    @property
    def steps(self) -> int:
        """Steps that are done."""
        return int(self.training[-1]["step"]) if self.training else 0

    @cached_property
    def resumed(self) -> list[int]:
        """The steps after which the stage was gone on with."""
        rows, _ = read_new_rows(self.folder / "metrics.jsonl", 0)
        return [int(row["resumed_from"]) for row in rows if "resumed_from" in row]

    @cached_property
    def quarantined(self) -> list[dict[str, Any]]:
        """The steps that made no update, because a number was not finite."""
        return read_quarantine(self.folder)

    @property
    def marks(self) -> list[Mark]:
        """What the curves show besides lines."""
        resumed = [Mark(step, f"resumed after step {step:,}", "resumed") for step in self.resumed]
        skipped = [
            Mark(line["step"], f"step {line['step']:,} made no update", "skipped")
            for line in self.quarantined
        ]
        return resumed + skipped

    @property
    def headline(self) -> Headline | None:
        """The first and last held-out measure; in training where nothing is held out."""
        for rows, prefix in ((self.held_out, "held-out "), (self.training, "")):
            for name in HEADLINES:
                found = [float(row[name]) for row in rows if row.get(name) is not None]
                if len(found) > 1:
                    return Headline(prefix + name, found[0], found[-1])
        return None

    @property
    def seconds(self) -> float:
        """What its steps took, over all attempts."""
        return float(sum(row.get("step_s") or 0.0 for row in self.training))

    @cached_property
    def told(self) -> list[str]:
        """What the stage said as it began: samples, parameters, precision, layout, disk."""
        begin, end = f"{self.number} {self.method}: ", f"{self.number} {self.method}: step "
        log = self.folder / "log.txt"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        found = (line for line in lines if line.startswith(begin) and not line.startswith(end))
        return list(dict.fromkeys(line.removeprefix(begin) for line in found))

    @property
    def facts(self) -> list[tuple[str, str]]:
        """(what, in words) of its settings and of what it took."""
        settings = self.settings
        named = [
            ("Data", _data_in_words(self)),
            ("Trained", _trained_in_words(settings.get("adapter"))),
            ("Loss", words.value(settings["loss"]) if settings.get("loss") else ""),
            ("Rewards", _rewards_in_words(settings.get("rewards") or [])),
            ("Completions", f"{settings['group']} of each prompt" if "group" in settings else ""),
            ("Batch", words.value(settings.get("batch"))),
            ("Learning rate", _rate_in_words(settings)),
            ("Steps", _steps_in_words(self)),
            ("Tokens", _tokens_in_words(self.training)),
            ("Time", words.duration(self.seconds) if self.training else ""),
        ]
        return [(what, text) for what, text in named if text and text != words.NONE]

    @property
    def files(self) -> list[dict[str, Any]]:
        """{path, size, sha256} of the data files it was trained on, as they are locked."""
        parts = [part for part in self.locked.values() if isinstance(part, dict)]
        return [file for part in parts for file in part.get("sources", [])]


@dataclass(frozen=True)
class Happening:
    """A line of the chronicle. weight: `plain`, `note` or `bad`."""

    time: str
    what: str
    text: str
    weight: str = "plain"


@dataclass(frozen=True)
class Report:
    """A run, ready for the page."""

    name: str
    status: dict[str, Any]
    base: str
    recipe: str
    settings: dict[str, Any]
    lock: dict[str, Any]
    stages: list[StageReport]
    proof: Proof | None
    happenings: list[Happening]
    left_out_happenings: int = 0
    examples: list[Examples] = field(default_factory=list)

    @property
    def warnings(self) -> list[Happening]:
        """What a person should look at."""
        return [each for each in self.happenings if each.weight != "plain"]


def collect(run: Run) -> Report:
    """Read a run. Raises UserError where a file of it cannot be read."""
    settings, status = run.resolved(), run.status()
    # As it stands on the disk: `${NAME}` stays a name.
    lock = read_json(run.path / "lock.json") or {}
    stages = _stages(run, settings, lock)
    happenings = _happenings(run, stages)
    recipe = run.path / "recipe.yaml"
    text = recipe.read_text(errors="replace") if recipe.exists() else ""
    return Report(
        name=run.name,
        status=status,
        base=_base_in_words(settings.get("model")),
        recipe=words.shortened(text, MOST_RECIPE),
        settings={key: each for key, each in settings.items() if key != "stages"},
        lock=lock,
        stages=stages,
        proof=collect_proof(run.path),
        happenings=happenings[-MOST_EVENTS:],
        left_out_happenings=max(0, len(happenings) - MOST_EVENTS),
        examples=[*collect_answers(run.path), *collect_rollouts(run)],
    )


def _stages(run: Run, settings: dict[str, Any], lock: dict[str, Any]) -> list[StageReport]:
    found = []
    for index, stage in enumerate(settings.get("stages", [])):
        method, given = next((key, each) for key, each in stage.items() if each is not None)
        locked = lock.get("stages", {}).get(str(index + 1), {})
        folder = run.stage_folder(index, method)
        found.append(StageReport(index + 1, method, folder, given, locked))
    return found


# In words


def _base_in_words(model: Any) -> str:
    made = isinstance(model, dict) and "architecture" in model
    return f"A new {model['architecture']} model" if made else words.value(model)


def _data_in_words(stage: StageReport) -> str:
    sets = stage.settings.get("data") or stage.settings.get("environment") or ""
    paths = [words.value(each) for each in (sets if isinstance(sets, list) else [sets])]
    environment = stage.settings.get("environment")
    if isinstance(environment, dict) and environment.get("data"):
        paths = [f"{environment['type']}, {words.value(environment['data'])}"]
    rows = sum(file.get("rows") or 0 for file in stage.locked.get("data", {}).get("sources", []))
    return " + ".join(paths) + (f", {rows:,} rows" if rows else "")


def _trained_in_words(adapter: Any) -> str:
    if not isinstance(adapter, dict) or adapter.get("type") == "full":
        return "all weights"
    names = ("rank", "alpha", "bits", "dropout")
    told = [f"{name} {words.number(adapter[name])}" for name in names if adapter.get(name)]
    flags = [name for name in ("rslora", "dora") if adapter.get(name)]
    return ", ".join([str(adapter.get("type")), *told, *flags])


def _rewards_in_words(rewards: list[dict[str, Any]]) -> str:
    return ", ".join(
        f"{reward['function']}" + (f" x {weight:g}" if (weight := reward["weight"]) != 1 else "")
        for reward in rewards
    )


def _rate_in_words(settings: dict[str, Any]) -> str:
    rate, schedule = settings.get("learning_rate"), settings.get("schedule")
    return words.number(rate) + (f", {words.value(schedule)}" if schedule else "")


def _steps_in_words(stage: StageReport) -> str:
    if not stage.training:
        return ""
    last = stage.training[-1]
    skipped = sum(row.get("skipped", 0) for row in stage.training if row.get("samples") != 0)
    empty = sum(row.get("samples") == 0 for row in stage.training)
    told = [f"{stage.steps:,}"]
    told += [f"epoch {last['epoch']:.3g}"] if "epoch" in last else []
    told += [f"{skipped:,} without an update"] if skipped else []
    told += [f"{empty:,} without anything to learn from"] if empty else []
    return ", ".join(told)


def _tokens_in_words(rows: Sequence[Row]) -> str:
    read, trained = (sum(row.get(key) or 0 for row in rows) for key in ("tokens", "trained_tokens"))
    return f"{read:,}, {trained:,} of them trained" if read else ""


# What happened


def _happenings(run: Run, stages: Sequence[StageReport]) -> list[Happening]:
    """The events in order; what stages keep elsewhere behind them."""
    told = [_happening(event) for event in run.events()]
    for stage in stages:
        for line in stage.quarantined:
            text = f"{stage.name}, step {line['step']:,}: {len(line.get('samples', []))} samples"
            told.append(Happening("", "quarantined", text, "bad"))
        for at, budget in stage.locked.get("smaller_budgets", []):
            text = f"{stage.name}: {budget:,} tokens at once from step {at:g}, memory ran out"
            told.append(Happening("", "smaller budget", text, "note"))
        for step in stage.resumed:
            told.append(Happening("", "resumed", f"{stage.name}, after step {step:,}", "note"))
    return told


def _happening(event: dict[str, Any]) -> Happening:
    kind = str(event.get("event", ""))
    text, weight = "", "plain"
    match kind:
        case "attempt":
            number = event.get("attempt", 1)
            text = f"attempt {number}"
            weight = "note" if number != 1 else "plain"
        case "stage":
            text = f"{event.get('stage')}-{event.get('method')}"
        case "verified":
            text = "all checks that apply passed" if event.get("passed") else "a check failed"
            weight = "plain" if event.get("passed") else "bad"
        case "warning":
            text, weight = str(event.get("message", "")), "note"
        case "failed" | "stopped":
            text, weight = str(event.get("message") or ""), "bad"
        case "created" | "succeeded":
            pass
        case _:
            rest = {key: each for key, each in event.items() if key not in ("time", "event")}
            text, weight = words.value(rest), "note"
    what = kind.replace("_", " ")
    return Happening(words.moment(event.get("time")), what, words.shortened(text), weight)
