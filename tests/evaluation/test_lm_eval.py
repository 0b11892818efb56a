"""The field's harness on a result of Hone: the same figures as `hone evaluate` on the same rows."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hone.choosing import SamplingSettings
from hone.cli.arguments import data_of
from hone.evaluation.evaluate import evaluate, make_wanted
from hone.evaluation.examples import read_questions
from hone.runs import Run
from hone.sampling import load_artifact
from tests.evaluation.ground import logprobs_alone, write_rows

CHOICES = """
task: hone_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: prompt
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
EXACT = """
task: hone_exact
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: prompt
doc_to_target: answer
target_delimiter: ""
generation_kwargs: {{until: [], max_gen_toks: 8, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""


@pytest.mark.e2e
def test_lm_eval_finds_what_hone_evaluate_finds(run: Run, tmp_path: Path) -> None:
    result = run.path / "stages/1-sft/model"
    artifact = load_artifact(str(result), torch.device("cpu"))
    choices = [
        {
            "prompt": f"What is {n}?",
            "choices": ["It", "It is 7.", "7" * (n % 4 + 1)],
            "answer": n % 3,
        }
        for n in range(40)
    ]
    short = SamplingSettings(8, temperature=0.0)
    prompts = [f"What is {n} plus {n % 7}?" for n in range(20)]
    answers = artifact.generate_text(prompts, max_new_tokens=8)
    exact = [
        {"prompt": prompt, "answer": answer if n % 2 else "another"}
        for n, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]
    (tmp_path / "tasks").mkdir()
    found = []
    for name, task, rows, measure in (
        ("choices", CHOICES, choices, "choice"),
        ("exact", EXACT, exact, "exact"),
    ):
        data = write_rows(tmp_path / f"{name}.jsonl", rows)
        (tmp_path / f"tasks/{name}.yaml").write_text(task.format(data=data))
        questions = read_questions(data_of(str(data), "auto", []))
        found.append(evaluate(artifact, questions, make_wanted([measure]), short))
    ours, answered = found

    measured, samples = lm_eval(tmp_path, run.path.parents[1] / "base", result)

    right, normalised = [], []
    for row, choice in zip(ours.rows, samples["choices"], strict=True):
        theirs = [float(logprob) for logprob, _ in choice["filtered_resps"]]
        # The harness counts white space at the end of the prompt with every choice.
        *before, newline = artifact.prompt_ids(choice["doc"]["prompt"])
        (shift,) = logprobs_alone(artifact, before, [newline])
        shifted = [logprob + shift for logprob in row.logprobs]
        assert shifted == pytest.approx(theirs, rel=1e-4)
        per_character = np.divide(shifted, [len(text) for text in row.choices])
        right.append(choice["acc"])
        normalised.append(choice["acc_norm"])
        assert choice["acc_norm"] == float(np.argmax(per_character) == choice["doc"]["answer"])
    assert right == ours.scores("choice")
    assert 0 < sum(normalised) < len(normalised)
    assert measured["hone_choices"]["acc,none"] == ours.measures["choice"].mean
    assert 0 < ours.measures["choice"].mean < 1
    assert [row["filtered_resps"][0].strip() for row in samples["exact"]] == answered.answers
    assert [row["exact_match"] for row in samples["exact"]] == answered.scores("exact")
    assert measured["hone_exact"]["exact_match,none"] == answered.measures["exact"].mean == 0.5


def lm_eval(
    folder: Path, base: Path, result: Path
) -> tuple[dict[str, dict[str, float]], dict[str, list[dict[str, Any]]]]:
    """(figures of each task, its rows), by the command of docs/evaluation.md."""
    model = f"pretrained={base},peft={result},tokenizer={result},dtype=float32"
    words = ["run", "--model", "hf", "--model_args", model, "--device", "cpu"]
    words += ["--include_path", "tasks", "--tasks", "hone_choices,hone_exact"]
    words += ["--apply_chat_template", "--batch_size", "8", "--output_path", "out"]
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", *words, "--log_samples"],
        cwd=folder,
        env={**os.environ, "HF_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (table,) = folder.glob("out/*/results_*.json")
    samples = {}
    for name in ("choices", "exact"):
        (file,) = folder.glob(f"out/*/samples_hone_{name}_*.jsonl")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        samples[name] = sorted(rows, key=lambda row: row["doc_id"])
    return json.loads(table.read_text())["results"], samples
