"""The table of commands is complete, listing it imports nothing, every command has its help."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hone.cli
from hone.cli.commands import COMMANDS, GROUPS, invoke, load_command

pytestmark = pytest.mark.quick

CLI_FOLDER = Path(hone.cli.__file__).parent

# The files of the folder that are no commands.
OTHERS = {"__init__", "commands", "arguments", "output", "failures"}
OTHERS |= {"completion", "init_answers", "resolved"}

# They do something, or print JSON anyway; whatever lists or shows has `--json`.
WITHOUT_JSON = {"init", "resume", "remove", "report", "chat", "recipe schema"}

HEAVY = ("torch", "transformers", "datasets", "pyarrow", "pydantic", "ruamel", "rich", "numpy")


def run_python(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


def test_every_file_of_a_command_is_in_the_table() -> None:
    files = {path.stem for path in CLI_FOLDER.glob("*.py")} - OTHERS
    named = {
        command.function.split(":")[0].removeprefix("hone.cli.") for command in COMMANDS.values()
    }
    assert files == named
    assert {words.split()[0] for words in COMMANDS if " " in words} == set(GROUPS)


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_has_help_with_an_example(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke([*words.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert COMMANDS[words].summary in text
    assert "Example:" in text
    assert f"  hone {words}" in text.partition("Example:")[2]


@pytest.mark.parametrize("words", COMMANDS)
def test_the_summary_in_the_table_is_the_first_line_of_the_help(words: str) -> None:
    text = load_command(words).help
    assert text is not None
    assert text.splitlines()[0] == COMMANDS[words].summary


@pytest.mark.parametrize("words", COMMANDS)
def test_every_option_and_argument_has_help(words: str) -> None:
    for parameter in load_command(words).params:
        assert getattr(parameter, "help", None), f"{words}: {parameter.name}"


def test_what_lists_or_shows_has_json() -> None:
    def has_json(words: str) -> bool:
        return any("--json" in parameter.opts for parameter in load_command(words).params)

    assert {words for words in COMMANDS if not has_json(words)} == WITHOUT_JSON


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["--help"]) == 0
    text = capsys.readouterr().out
    for words, command in COMMANDS.items():
        word = words.split()[0]
        assert f"\n  {word} " in text
        if word == words:
            assert command.summary in text
    assert invoke(["data", "--help"]) == 0
    assert COMMANDS["data show"].summary in capsys.readouterr().out


def test_help_imports_neither_commands_nor_what_is_heavy() -> None:
    names = {path.stem for path in CLI_FOLDER.glob("*.py")} - {"commands", "failures"}
    unwanted = {*HEAVY, *(f"hone.cli.{name}" for name in names)}
    script = f"""
import sys
from hone.cli import main
assert main(["--help"]) == 0
print("loaded:", sorted(set(sys.modules) & {unwanted!r}))
"""
    done = run_python(script)
    assert done.stdout.endswith("loaded: []\n"), done.stdout + done.stderr


@pytest.mark.parametrize("words", COMMANDS)
def test_loading_a_command_imports_nothing_below_the_torch_line(words: str) -> None:
    command = COMMANDS[words]
    module = ast.parse(
        (CLI_FOLDER / f"{command.function.split(':')[0].split('.')[-1]}.py").read_text()
    )
    imported = {
        name
        for node in module.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
    }
    allowed = ("hone.cli.", "hone.errors", "hone.signals", "typer")
    others = {name for name in imported if not str(name).startswith(allowed)}
    assert {str(name).split(".")[0] for name in others} <= sys.stdlib_module_names, others


def test_no_command_prints_help_and_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["data"]):
        assert invoke(words) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("Usage: hone")
        assert captured.out == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--version"], ["version"]):
        assert invoke(words) == 0
        assert capsys.readouterr().out.startswith(f"hone {hone.__version__}\n")


def test_the_shell_completes_commands_and_runs(tmp_path: Path) -> None:
    for name in ("first", "fifth", "other"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "recipe.resolved.json").write_text("{}")

    def completed(line: str) -> list[str]:
        asked = {
            "_HONE_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split(" ")) - 1),
        }
        done = subprocess.run(
            [sys.executable, "-m", "hone"],
            cwd=tmp_path,
            env={**os.environ, **asked},
            capture_output=True,
            text=True,
        )
        return sorted(done.stdout.split())

    assert completed("hone re") == ["recipe", "remove", "report", "reproduce", "resume"]
    assert completed("hone data s") == ["show", "split", "stats"]
    assert completed("hone show fi") == ["fifth", "first"]
    assert "--dry-run" in completed("hone run --d")
