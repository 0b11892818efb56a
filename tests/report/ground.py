"""A small run of three stages with all that a report shows, and a browser to look at it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from hone import runs
from hone.files import write_json
from hone.recipe.load import load_recipe
from hone.runs import Run, create_run
from hone.verify.examine import as_json
from hone.verify.verdicts import FAILED, NOT_APPLICABLE, PASSED, Part, Verdict
from tests.preferences import write_preferences
from tests.workbench import NEW_MODEL, work, write_data

RECIPE = (
    NEW_MODEL
    + """
stages:
  - sft:
      data: chat.jsonl
      steps: 64
      batch: {samples: 2}
      adapter: {rank: 4}
      checkpoint: {every: 30}
      evaluation: {share: 0.1, every: 30}
  - dpo:
      data: preferences.jsonl
      steps: 4
      batch: {samples: 4}
      evaluation: {share: 0.2, every: 2}
  - grpo:
      data: prompts.jsonl
      rewards: [reward.py:low, {function: reward.py:short, weight: 0.5}]
      steps: 3
      group: 4
      completion_tokens: 8
      max_failures: 0.9
      batch: {samples: 4}
      evaluation: {share: 0.2, every: 3}
"""
)

REWARDS = """
def low(completion_ids, number, **columns):
    if number[0] % 3 == 0:
        raise ValueError("<b>odd</b>")
    return [sum(token < 150 for token in ids) / len(ids) for ids in completion_ids]


def short(completion_ids, **columns):
    return [1 / len(ids) for ids in completion_ids]
"""

# What a person's data may hold; nothing of it may become part of the page.
ATTACK = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">"

BEFORE = {"mean": 0.5, "low": 0.4777, "high": 0.5888, "count": 4}
GAIN = {"mean": 0.25, "low": 0.1222, "high": 0.3444, "count": 4}
VERDICTS = [
    Verdict(
        *("loss", PASSED, 0.5215, 0.05, 16, "Held-out loss, before and after.", "", 1.5),
        (Part("1-sft", PASSED, 0.5215, 0.05, 16, ATTACK, {"low": 0.4111, "high": 0.6333}),),
    ),
    Verdict(
        *("rewards", PASSED, 0.25, 0.0, 4, "Mean reward, before and after.", "", 0.5),
        (Part("3-grpo reward", PASSED, 0.25, 0.0, 4, "", {"before": BEFORE, "gain": GAIN}),),
    ),
    Verdict("forgetting", FAILED, 1.25, 1.0, 40, "Loss on other data.", "rose by 1.25 nats"),
    Verdict("memory", NOT_APPLICABLE, None, None, None, "Peaks, measured.", "too little to save"),
]


def train(folder: Path) -> Run:
    """The run, stopped and gone on with on the way; its verdicts are given."""
    write_data(folder)
    write_preferences(folder)
    (folder / "reward.py").write_text(REWARDS)
    prompts = (f'{{"prompt": "{n} plus {n} is", "number": {n}}}\n' for n in range(20))
    (folder / "prompts.jsonl").write_text("".join(prompts))
    (folder / "recipe.yaml").write_text(f"# {ATTACK}\n{RECIPE}")
    run = create_run(load_recipe(folder / "recipe.yaml"), "first", folder / "runs")
    work(run, until=(1, 40))
    work(run)
    (run.path / runs.VERDICTS).parent.mkdir()
    write_json(run.path / runs.VERDICTS, as_json(VERDICTS))
    return run


def find_browser() -> str:
    """A Chromium of the system's; where there is none the test is left out, saying so."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("there is no Chromium to look at the page with: apt-get install chromium")


def browse(page: Path, *options: str, size: tuple[int, int] = (1280, 2400)) -> tuple[str, str]:
    """(what a browser printed, what its console said) of a page, without any network.

    options: `--dump-dom` prints the page as it became, `--screenshot=FILE` draws it.
    """
    command = [find_browser(), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += ["--hide-scrollbars", "--proxy-server=127.0.0.1:9", "--enable-logging=stderr"]
    command += [f"--window-size={size[0]},{size[1]}", f"--user-data-dir={page.parent / 'profile'}"]
    command += ["--virtual-time-budget=2000", *options, page.resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    said = re.findall(r".*:CONSOLE[:(].*", done.stderr)
    return done.stdout, "\n".join(said)
