"""The page says what the run's files say, and nothing that a person's data put there runs."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hone.cli.commands import invoke
from hone.files import read_json
from hone.metrics import read_metrics
from hone.recorded import list_rollout_files
from hone.report import words
from hone.report.write import write_report
from hone.runs import Run
from tests.report.ground import ATTACK, VERDICTS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SECTIONS = ["proof", "training", "curves", "answers", "surroundings", "events"]


class Reader(HTMLParser):
    """A page as a program reads it: its elements, its texts, and texts by the section's id."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.section = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "section":
            self.section = dict(attrs).get("id") or "overview"

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.section, []).append(data)

    def text(self, section: str) -> str:
        """All text of a section, white space made single."""
        return " ".join(" ".join(self.texts[section]).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of all elements of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(trained: Run) -> str:
    return write_report(trained).read_text()


@pytest.fixture(scope="module")
def read(page: str) -> Reader:
    return Reader(page)


def test_every_section_is_there(read: Reader) -> None:
    assert [each.get("id") for each in read.all("section") if each.get("id")] == SECTIONS
    links = {each["href"] for each in read.all("a")}
    anchors = {f"#{attributes['id']}" for _, attributes in read.elements if "id" in attributes}
    assert links <= anchors


def test_the_figures_are_those_of_the_files(trained: Run, read: Reader) -> None:
    """Compared with the files as `json` reads them."""
    overview, training = read.text("overview"), read.text("training")
    for stage, name in (("1-sft", "loss"), ("2-dpo", "loss"), ("3-grpo", "reward")):
        rows = read_metrics(trained.path / "stages" / stage / "metrics.jsonl")
        held_out = [row[name] for row in rows if row.get("split") == "evaluation"]
        assert f"{held_out[0]:.3g} → {held_out[-1]:.3g} held-out {name}" in overview
        tokens = sum(row.get("tokens", 0) for row in rows)
        assert f"{tokens:,}," in training
    lines = (trained.path / "stages/1-sft/log.txt").read_text().splitlines()
    told = next(line for line in lines if "held out" in line).partition(": ")[2]
    assert told in training and "chat.jsonl, 160 rows" in training
    assert "lora, rank 4" in training and "reward.py:short x 0.5" in training


def test_verdicts_are_told_with_their_figures(read: Reader) -> None:
    overview, proof = read.text("overview"), read.text("proof")
    assert "2 of 3 checks passed" in overview
    assert "0.4111 to 0.6333" in overview, "the interval of a part"
    assert "0.1222 to 0.3444" in overview, "that of a measure with the part's value"
    assert "before 0.5 (0.4777 to 0.5888)" in proof
    for verdict in VERDICTS:
        assert f"{verdict.name} {verdict.status.replace('_', ' ')}" in proof
        assert verdict.how in proof and verdict.reason in proof
        assert all(words.number(each) in proof for each in (verdict.value, verdict.n))


def test_curves_are_drawn_of_what_was_measured(trained: Run, read: Reader) -> None:
    text = read.text("curves")
    for title in ("Loss", "Learning rate", "Gradient norm", "Throughput", "Memory", "Reward"):
        assert title in text
    charts = [json.loads(str(each["data-chart"])) for each in read.all("figure")]
    rows = read_metrics(trained.path / "stages/1-sft/metrics.jsonl")
    held_out = [row for row in rows if row.get("split") == "evaluation"]
    drawn = next(series for series in charts[0] if series["label"] == "held out")
    assert [point[2:] for point in drawn["points"]] == [
        [row["step"], words.number(row["loss"])] for row in held_out
    ]
    marks = [each for each in read.all("path") if each.get("class") == "resumed"]
    assert marks and "resumed after step 40" in text


def test_answers_and_rollouts_are_those_that_were_given(trained: Run, read: Reader) -> None:
    text = read.text("answers")
    table = read_json(trained.path / "verify/answers.json")
    assert table is not None
    for stage in table["stages"]:
        for row in stage["rows"]:
            assert " ".join(words.shortened(row["after"]).split()) in text
    files = [each for each in list_rollout_files(trained.stage_folders()) if each.kind == "step"]
    rollouts = [each for file in files for each in file.read()]
    assert "`low` raised ValueError: <b>odd</b>" in text
    newest = [each for each in rollouts if each.step == files[-1].step and each.survives]
    assert any(words.number(each.total) in text for each in newest)


def test_surroundings_and_events_are_told(trained: Run, read: Reader) -> None:
    lock = read_json(trained.path / "lock.json")
    assert lock is not None
    surroundings, events = read.text("surroundings"), read.text("events")
    assert lock["versions"]["torch"] in surroundings and "threads 1" in surroundings
    for source in lock["stages"]["1"]["data"]["sources"]:
        assert source["sha256"] in surroundings
    assert "stopped after step 40, as asked" in events and "attempt 2" in events
    assert "1-sft, after step 40" in events and "succeeded" in events


def test_the_page_needs_nothing_else(page: str, read: Reader) -> None:
    allowed = {"xmlns"}
    for tag, attributes in read.elements:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base"), tag
        for name in set(attributes) & {"src", "href", "srcset", "data", "action"} - allowed:
            assert str(attributes[name]).startswith("#"), attributes
    style = page.partition("<style>")[2].partition("</style>")[0]
    assert "@import" not in style and "url(" not in style
    script = page.rpartition("<script>")[2].partition("</script>")[0]
    assert not re.search(r"https?:|fetch|XMLHttp|import\b|WebSocket|eval", script)
    policies = [each for each in read.all("meta") if "http-equiv" in each]
    assert str(policies[0]["content"]).startswith("default-src 'none'; ")


def test_texts_of_others_stay_texts(page: str, read: Reader) -> None:
    """The recipe's comment, a verdict's reason and a reward's message hold elements."""
    assert page.count("<script") == 1 and page.count("<img") == 0
    assert page.count("&lt;script&gt;") == 2
    assert ATTACK in " ".join(read.texts["training"]) and ATTACK in read.text("proof")
    assert "onerror" not in {name for _, attributes in read.elements for name in attributes}


def test_the_same_files_give_the_same_page(trained: Run, page: str, tmp_path: Path) -> None:
    assert write_report(trained, tmp_path / "again.html").read_text() == page
    assert list(tmp_path.iterdir()) == [tmp_path / "again.html"]


def test_prompts_answers_and_names_may_hold_anything(trained: Run, tmp_path: Path) -> None:
    """Elements, half a surrogate pair and reversed text in answers; an element names a metric."""
    copy = Run(tmp_path / "copy")
    shutil.copytree(trained.path, copy.path)
    row = {name: f"{ATTACK} \ud800 \u202e {name}" for name in ("prompt", "expected", "rejected")}
    row |= {"before": "</pre>" + ATTACK, "after": ATTACK * 500, "score_before": 0.5}
    stages = [{"stage": ATTACK, "rows": [row]}, {"stage": "2-dpo", "rows": [], "failure": ATTACK}]
    (copy.path / "verify/answers.json").write_text(json.dumps({"stages": stages}))
    metrics = copy.path / "stages/1-sft/metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    changed = [line | {ATTACK: n} for n, line in enumerate(lines)]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in changed))
    page = write_report(copy).read_text()
    assert page.count("<script") == 1 and page.count("<img") == 0
    text = Reader(page).text("answers")
    assert text.count(ATTACK) > 5 and "\u202e" not in page and "characters …" in text
    assert ATTACK in Reader(page).text("curves")


def test_the_command_says_where_it_is(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["report", str(trained.path)]
    assert invoke(given) == 0
    assert capsys.readouterr().out == f"{trained.path / 'report.html'}\n"
    assert invoke([*given, "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_bytes() == (trained.path / "report.html").read_bytes()
    capsys.readouterr()
    for wrong in (tmp_path, tmp_path / "none" / "page.html"):
        assert invoke([*given, "--out", str(wrong)]) == 2
        assert "hint:" in capsys.readouterr().err
