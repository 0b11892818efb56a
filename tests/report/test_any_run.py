"""The page of runs that have not begun, are working, have failed, are large, or hide something."""

import json
import math
import time
from pathlib import Path

import pytest

from hone.metrics import MetricsWriter
from hone.quarantine import quarantine
from hone.recipe.load import load_recipe
from hone.report.write import write_report
from hone.runs import Run, create_run

pytestmark = pytest.mark.quick

RECIPE = """\
model: {architecture: llama, tokenizer: acme/words}
stages:
  - pretrain: {data: text.jsonl, steps: 5000}
  - sft: {data: chat.jsonl, epochs: 3, adapter: {rank: 8}}
"""
LARGEST = 2_000_000  # bytes of a page


def make(folder: Path, recipe: str = RECIPE) -> Run:
    for name in ("text.jsonl", "chat.jsonl"):
        (folder / name).write_text("{}\n")
    (folder / "recipe.yaml").write_text(recipe)
    return create_run(load_recipe(folder / "recipe.yaml"), "first", folder / "runs")


def page_of(run: Run) -> str:
    return write_report(run).read_text()


def write_rows(run: Run, steps: int, **more: float) -> None:
    with MetricsWriter(run.stage_folder(0, "pretrain") / "metrics.jsonl") as writer:
        for step in range(1, steps + 1):
            loss = 7 * math.exp(-step / 800) + math.sin(step) / 9 if step % 997 else math.nan
            writer.write(
                {"step": step, "time_s": step * 0.1, "loss": loss, "learning_rate": 1 / step}
                | {"grad_norm": 1 + math.cos(step), "tokens": 100, "step_s": 0.1, **more}
                | {"tokens_per_s": 900 + step % 70, "peak_memory_bytes": 5_000_000 + step}
            )
            if step % 100 == 0:
                writer.write(
                    {"step": step, "split": "evaluation", "loss": 7 * math.exp(-step / 800)}
                )


def test_a_run_that_has_not_begun(tmp_path: Path) -> None:
    page = page_of(make(tmp_path))
    assert "It has not begun." in page and "Not finished" in page
    assert "<figure" not in page and "no step yet" in page and 'id="answers"' not in page


def test_a_run_that_works_and_one_whose_process_vanished(tmp_path: Path) -> None:
    run = make(tmp_path)
    with run.attempt():
        write_rows(run, 3)
        page = page_of(run)
        assert "It is running." in page and "how far it has come" in page
    run.write_status("running")
    assert "Its process vanished." in page_of(run)


def test_a_run_that_failed_says_why(tmp_path: Path) -> None:
    run = make(tmp_path)
    with pytest.raises(ValueError, match="<i>no</i>"), run.attempt():
        write_rows(run, 1)
        quarantine(run.stage_folder(0, "pretrain"), 1, math.nan, 1.0, samples=[{"index": 3}])
        run.event("warning", message="the disk is <b>full</b>")
        locked = {"token_budget": 64, "precision": "fp32", "layout": "forest"}
        run.update_lock_json({"stages": {"1": {**locked, "smaller_budgets": [[1, 32]]}}})
        raise ValueError("<i>no</i>")
    page = page_of(run)
    assert "It failed." in page and "ValueError: &lt;i&gt;no&lt;/i&gt;" in page
    assert "hone resume first" in page and "not begun" in page and "not finished" in page
    assert "the disk is &lt;b&gt;full&lt;/b&gt;" in page
    assert "32 tokens at once from step 1, memory ran out" in page
    assert "1-pretrain, step 1: 1 samples" in page and 'class="skipped"' in page


def test_a_long_run_is_thinned_but_its_extremes_stay(tmp_path: Path) -> None:
    run = make(tmp_path)
    write_rows(run, 5000, **{f"other_{n}": 0.0 for n in range(40)})
    began = time.perf_counter()
    page = page_of(run)
    assert time.perf_counter() - began < 10
    assert len(page.encode()) < LARGEST
    assert "5,000 steps, 8 min 20 s" in page and "training, mean of 209 steps" in page
    assert "held out" in page and "5,000,001" not in page


def test_what_stands_for_a_name_is_not_on_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_PLACE", str(tmp_path / "se<cret>"))
    (tmp_path / "se<cret>").mkdir()
    (tmp_path / "se<cret>" / "hidden.jsonl").write_text("{}\n")
    recipe = RECIPE.replace("text.jsonl", '"${SECRET_PLACE}/hidden.jsonl"')
    run = make(tmp_path, recipe)
    found = {"schema": 1, "passed": False, "checks": []}
    reason = f"no file {tmp_path}/se<cret>/hidden.jsonl"
    found["checks"] = [{"name": "masks", "status": "failed", "how": "", "reason": reason}]
    (run.path / "verify").mkdir()
    (run.path / "verify/verify.json").write_text(json.dumps(found))
    page = page_of(run)
    assert "no file ${SECRET_PLACE}/hidden.jsonl" in page
    assert "cret" not in page.replace("SECRET", "").replace("secret", "")
