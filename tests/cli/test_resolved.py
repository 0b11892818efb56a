"""`hone run --dry-run`: the printed recipe is a recipe, and says where each value is from."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from hone.cli.commands import invoke
from hone.cli.resolved import resolved_lines

pytestmark = pytest.mark.quick


def test_lines_are_yaml_of_the_same_values() -> None:
    resolved = {
        "model": {"config": {"hidden_size": 64}, "tokenizer": "a: b # c"},
        "stages": [
            {"sft": {"betas": [0.9, 0.999], "warmup": 0, "empty": {}, "none": None, "no": []}},
            {"sft": {"targets": "all", "learning_rate": 2e-05, "text": "1e-5"}},
        ],
        "matrix": [[1, 2], [3]],
    }
    lines = resolved_lines(resolved, {"stages[0].sft.warmup": "recipe.yaml:4"})
    assert YAML(typ="safe", pure=True).load("\n".join(lines)) == resolved
    assert [line.split("  # ")[1] for line in lines if "warmup" in line] == ["recipe.yaml:4"]


def test_a_dry_run_prints_origins_and_makes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HONE_TEST_MODEL", "acme/secret")
    (tmp_path / "chat.jsonl").write_text("{}\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: ${HONE_TEST_MODEL}\nstages:\n  - sft:\n      data: chat.jsonl\n")
    runs = tmp_path / "runs"
    arguments = ["run", str(recipe), "sft.steps=7", "--dry-run", "--runs", str(runs)]
    assert invoke(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    origins = {line.split()[0]: line.partition("  # ")[2] for line in lines if "  # " in line}
    assert origins["model:"] == "recipe.yaml:1"
    assert origins["steps:"] == "command line"
    assert origins["schedule:"] == "default"
    assert origins["path:"] == "recipe.yaml:4"
    assert origins["rank:"] == "default"
    assert "acme/secret" not in "\n".join(lines)
    assert not runs.exists()
    assert invoke([*arguments, "sft.profile=chat"]) == 0
    rank = next(line for line in capsys.readouterr().out.splitlines() if " rank: 8 " in line)
    assert rank.endswith("  # profile chat")
    again = tmp_path / "again.yaml"
    again.write_text("\n".join(lines))
    assert invoke(["run", str(again), "--dry-run", "--json"]) == 0
    assert '"steps": 7' in capsys.readouterr().out
