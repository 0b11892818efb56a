"""`hone init`: from flags, from answers at a terminal, and what it never does."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hone.cli.commands import invoke
from hone.recipe.load import LoadedRecipe, json_schema, load_recipe

pytestmark = pytest.mark.quick

CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with data of each kind, which commands are called from; stdin is no terminal."""
    rows = {
        "chats": CHAT,
        "pairs": {"prompt": "a", "completion": "b"},
        "texts": {"text": "a"},
        "tasks": {"instruction": "a", "output": "b"},
        "shared": {"conversations": [{"from": "human", "value": "a"}]},
        "better": {"prompt": "a", "chosen": "b", "rejected": "c"},
        "judged": {"prompt": "a", "completion": "b", "label": True},
        "odd": {"foo": 1},
    }
    for name, row in rows.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.chdir(tmp_path)
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        yield tmp_path


def write_model(folder: Path, **tokenizer: object) -> None:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))


def made(*flags: str, file: str = "recipe.yaml") -> LoadedRecipe:
    """The recipe that `hone init` writes with these flags, as it is loaded."""
    assert invoke(["init", file, *flags]) == 0
    return load_recipe(Path(file))


MODEL = ("--model", "acme/base")
PREFERENCES = ("better", "judged")


@pytest.mark.parametrize(
    ("data", "method", "profile"),
    [
        ("chats.jsonl", "sft", "chat"),
        ("pairs.jsonl", "sft", "instruction"),
        ("texts.jsonl", "pretrain", None),
        ("acme/rows", "sft", None),
        ("tasks.jsonl", "sft", "instruction"),
        ("shared.jsonl", "sft", "chat"),
        ("better.jsonl", "dpo", None),
        ("judged.jsonl", "dpo", None),
    ],
)
def test_stage_and_profile_are_those_that_fit_the_data(
    here: Path, data: str, method: str, profile: str | None
) -> None:
    recipe = made(*MODEL, "--data", data).recipe
    assert recipe.stages[0].method == method
    assert recipe.verify is not None
    settings = recipe.stages[0].settings
    assert settings.profile == profile
    assert settings.data.path == (str(here / data) if "/" not in data else data)
    assert settings.evaluation is not None and settings.evaluation.share == 0.05


def test_the_loss_is_one_that_the_rows_can_have(here: Path) -> None:
    losses = [made(*MODEL, "--data", f"{name}.jsonl", file=f"{name}.yaml") for name in PREFERENCES]
    assert [each.recipe.stages[0].settings.loss for each in losses] == ["sigmoid", "kto"]


def test_flags_win_over_what_the_data_suggest(here: Path) -> None:
    flags = ["--data", "texts.jsonl", "--stage", "sft", "--profile", "code", "--steps", "7"]
    settings = made(*MODEL, *flags, "--evaluation-share", "0").recipe.stages[0].settings
    assert (settings.profile, settings.steps, settings.evaluation) == ("code", 7, None)
    flags = ["--data", "chats.jsonl", "--profile", "none", "--epochs", "2.5", "--force"]
    settings = made(*MODEL, *flags).recipe.stages[0].settings
    assert (settings.profile, settings.epochs) == (None, 2.5)


def test_every_comment_is_help_of_the_schema(here: Path) -> None:
    made(*MODEL, "--data", "chats.jsonl", "--steps", "9")
    schema = json_schema()
    texts = [json.dumps(schema, ensure_ascii=False).replace("\\n", " ")]
    body = Path("recipe.yaml").read_text().partition("\n\n")[2].splitlines()
    comments = [line.strip().removeprefix("# ") for line in body if line.strip().startswith("#")]
    assert len(comments) >= 8
    for comment in comments:
        assert json.dumps(comment, ensure_ascii=False)[1:-1] in texts[0]
    keys = [line for line in body if line.strip() and not line.strip().startswith("#")]
    helped = [above for above, line in zip(["", *body], body, strict=False) if line in keys]
    assert all(above.strip().startswith("#") for above in helped)


def test_what_is_printed_is_what_to_type_next(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(*MODEL, "--data", "chats.jsonl", file="my recipe.yaml")
    out = capsys.readouterr().out
    assert "hone check 'my recipe.yaml'" in out
    assert "hone run 'my recipe.yaml'" in out


def test_paths_are_written_as_the_recipes_folder_sees_them(here: Path) -> None:
    (here / "recipes").mkdir()
    write_model(here / "base")
    (here / "own.yaml").write_text("max_tokens: 9\n")
    (here / "a$b {x}.jsonl").write_text(json.dumps(CHAT) + "\n")
    flags = ["--model", "base", "--data", "a$b {x}.jsonl", "--profile", "own.yaml"]
    loaded = made(*flags, file="recipes/r.yaml")
    assert loaded.recipe.model == str(here / "base")
    settings = loaded.recipe.stages[0].settings
    assert settings.data.path == str(here / "a$b {x}.jsonl")
    assert settings.max_tokens == 9
    assert loaded.resolved["model"] == "../base"
    (here / "chat").mkdir()
    made("--model", "base", "--data", "chats.jsonl", "--profile", "chat", file="recipes/c.yaml")


def test_the_models_own_template_goes_before_the_profiles(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(here / "plain")
    write_model(here / "chatty", chat_template="{{ messages }}")
    for name, template in (("plain", "chatml"), ("chatty", "auto")):
        loaded = made("--model", name, "--data", "chats.jsonl", file=f"{name}.yaml")
        assert loaded.recipe.stages[0].settings.data.template == template
        assert ("template of its own" in capsys.readouterr().err) == (name == "chatty")


def test_rows_that_are_not_recognised_are_told(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(*MODEL, "--data", "odd.jsonl")
    assert "note: odd.jsonl: the rows have the columns `foo`" in capsys.readouterr().err
    (here / "empty.jsonl").touch()
    made(*MODEL, "--data", "empty.jsonl", "--force")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--model and --data not given, and nobody to ask"),
        (["--model", "a/b"], "--data not given"),
        (["--model", "a/b", "--yes"], "--data not given"),
        ([*MODEL, "--data", "chat.jsonl"], 'did you mean "chats.jsonl"?'),
        (["--model", "./gone", "--data", "chats.jsonl"], '"./gone" does not exist'),
        (["--model", ".", "--data", "chats.jsonl"], '"." has no config.json'),
        ([*MODEL, "--data", "chats.jsonl", "--stage", "stf"], 'did you mean "sft"?'),
        ([*MODEL, "--data", "chats.jsonl", "--stage", "grpo"], "recipes/grpo.yaml"),
        ([*MODEL, "--data", "chats.jsonl", "--profile", "caht"], 'did you mean "chat"?'),
        ([*MODEL, "--data", "chats.jsonl", "--evaluation-share", "1"], "below 1"),
        ([*MODEL, "--data", "chats.jsonl", "--steps", "0"], "steps: expected a whole number"),
        ([*MODEL, "--data", "chats.jsonl", "--steps", "3", "--epochs", "2"], "found both"),
        (
            [*MODEL, "--data", "texts.jsonl", "--profile", "chat"],
            'the profile "chat" has `adapter`, which a stage of the method pretrain does not have',
        ),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_left(
    here: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    before = sorted(here.iterdir())
    assert invoke(["init", *flags]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert ".trial" not in said
    assert sorted(here.iterdir()) == before


def test_a_file_is_never_overwritten_without_a_word(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "recipe.yaml").write_text("mine\n")
    for flags in ([], ["--yes"]):
        assert invoke(["init", *MODEL, "--data", "chats.jsonl", *flags]) == 2
        assert "--force" in capsys.readouterr().err
        assert (here / "recipe.yaml").read_text() == "mine\n"
    assert invoke(["init", *MODEL, "--data", "gone.jsonl", "--force"]) == 2
    assert (here / "recipe.yaml").read_text() == "mine\n"
    made(*MODEL, "--data", "chats.jsonl", "--force")
    assert invoke(["init", "gone/recipe.yaml", *MODEL, "--data", "chats.jsonl"]) == 2
    assert "mkdir -p gone" in capsys.readouterr().err
    (here / "folder").mkdir()
    assert invoke(["init", "folder", *MODEL, "--data", "chats.jsonl"]) == 2


def at_a_terminal(folder: Path, answers: str, *flags: str) -> tuple[int, str]:
    """The exit code and stderr of `hone init` with answers typed at a terminal."""
    controller, terminal = pty.openpty()
    try:
        os.write(controller, answers.encode())
        done = subprocess.run(
            [sys.executable, "-m", "hone", "init", *flags],
            cwd=folder,
            stdin=terminal,
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        os.close(controller)
        os.close(terminal)
    return done.returncode, done.stdout + done.stderr


def test_questions_at_a_terminal(here: Path) -> None:
    code, said = at_a_terminal(here, "acme/base\nchat.jsonl\nchats.jsonl\n\ncaht\ncode\n2\n0.1\n")
    assert code == 0, said
    assert 'did you mean "chats.jsonl"?' in said  # and asks again
    assert 'did you mean "chat"?' in said
    assert "expected a number of at least 0 and below 1" in said
    settings = load_recipe(here / "recipe.yaml").recipe.stages[0].settings
    assert (settings.profile, settings.data.path) == ("code", str(here / "chats.jsonl"))
    assert settings.evaluation is not None and settings.evaluation.share == 0.1
    written = (here / "recipe.yaml").read_text()
    code, said = at_a_terminal(here, "n\n")
    assert (code, (here / "recipe.yaml").read_text()) == (1, written)
    flags = [*MODEL, "--data", "texts.jsonl"]
    code, said = at_a_terminal(here, "y\n\n\n", *flags)
    assert code == 0, said
    assert load_recipe(here / "recipe.yaml").recipe.stages[0].method == "pretrain"
