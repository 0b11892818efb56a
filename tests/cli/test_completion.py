"""What the shell offers after TAB, through the real command as each shell's script calls it."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hone.cli.commands import invoke
from hone.errors import UserError
from hone.recipe.load import load_recipe
from tests.recipe.test_load import SMALL, write

LIMIT_S = 0.5


def environment(shell: str, line: str) -> dict[str, str]:
    """What the script of a shell sets when TAB is pressed at the end of `line`."""
    asked = {"_HONE_COMPLETE": f"complete_{shell}"}
    if shell == "bash":
        words = [word for word in re.split(r"(=)|\s+", line) if word]  # bash breaks words at "="
        if line.endswith(" "):
            words.append("")
        return asked | {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    return asked | {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}


def offers(printed: str, shell: str) -> list[str]:
    """The words in what the command prints for a shell."""
    if shell == "zsh":
        return re.findall(r'"([^"]*)"(?::"[^"]*")?', printed)
    return [offer.split("\t")[0] for offer in printed.splitlines() if offer]


def completed(folder: Path, line: str, shell: str) -> list[str]:
    """The words that are offered, by the real command."""
    done = subprocess.run(
        [sys.executable, "-m", "hone"],
        cwd=folder,
        env={**os.environ, **environment(shell, line)},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return offers(done.stdout, shell)


Complete = Callable[..., list[str]]


@pytest.fixture
def complete(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Complete:
    """As `completed`, in this process."""

    def ask(line: str, shell: str = "zsh") -> list[str]:
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            for name, value in environment(shell, line).items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit):
                invoke([])
        return offers(capsys.readouterr().out, shell)

    return ask


TWO = """\
model: acme/base
stages: [{pretrain: {data: chat.jsonl}}, {sft: {data: chat.jsonl}}, {sft: {data: chat.jsonl}}]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, SMALL)
    (tmp_path / "two.yaml").write_text(TWO)
    (tmp_path / "broken.yaml").write_text("a: [")
    return tmp_path


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_keys_and_names_in_every_shell(folder: Path, shell: str) -> None:
    offered = completed(folder, "hone run recipe.yaml sft.", shell)
    assert {"sft.steps=", "sft.learning_rate=", "sft.adapter.", "sft.profile="} <= set(offered)
    assert completed(folder, "hone check recipe.yaml sft.ba", shell) == [
        "sft.batch.samples=",
        "sft.batch.tokens=",
    ]
    assert completed(folder, "hone recipe show c", shell)[:2] == ["chat", "code"]
    assert completed(folder, "hone init --profile ins", shell) == ["instruction"]


def test_the_stages_are_those_of_the_recipe(complete: Complete) -> None:
    assert complete("hone run recipe.yaml s") == ["seed=", "sft."]
    offered = complete("hone run two.yaml ")
    assert {"pretrain.", "sft[0].", "sft[1].", "model=", "seed="} <= set(offered)
    assert "sft." not in offered
    assert complete("hone run two.yaml sft[1].adapter.ra") == ["sft[1].adapter.rank="]
    for recipe in ("broken.yaml", "gone.yaml"):
        assert {"pretrain.", "sft."} <= set(complete(f"hone run {recipe} "))


@pytest.mark.parametrize(
    ("typed", "values"),
    [
        ("sft.schedule=", ["cosine", "linear", "constant"]),
        ("sft.schedule=co", ["cosine", "constant"]),
        ("sft.optimizer.type=s", ["sgd"]),
        ("sft.gradient_checkpointing=", ["true", "false"]),
        ("sft.profile=c", ["chat", "code"]),
        ("device=", ["auto", "cpu", "cuda"]),
        ("sft.steps=", []),
        ("sft.nonsense=", []),
    ],
)
def test_values(complete: Complete, typed: str, values: list[str]) -> None:
    key = typed.partition("=")[0]
    whole = [f"{key}={value}" for value in values]
    assert complete(f"hone run recipe.yaml {typed}", "fish") == whole
    assert complete(f"hone run recipe.yaml {typed}", "bash") == values
    after_another = f"hone run recipe.yaml seed=3 {typed}"
    assert complete(after_another, "bash") == values


def test_after_a_value_keys_are_offered_again(complete: Complete) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "sft." in complete("hone run recipe.yaml sft.schedule=cosine ", shell)


def test_every_key_that_is_offered_is_known(folder: Path, complete: Complete) -> None:
    """Each one leads to a field: an override of it is refused for its value, never for its key."""
    offered, found = complete("hone run recipe.yaml sft."), []
    while offered:
        key = offered.pop()
        if key.endswith("."):
            inner = complete(f"hone run recipe.yaml {key}")
            assert inner, key
            offered += inner
        else:
            found.append(key)
    assert len(found) > 30
    for key in found:
        try:
            load_recipe(folder / "recipe.yaml", [f"{key}[[3]]"])
        except UserError as error:
            unknown = "unknown key" in error.message and "with type" not in error.message
            assert not unknown, error.message


def test_the_script_for_bash_works_in_bash(folder: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    program = folder / "hone"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m hone "$@"\n')
    program.chmod(0o755)
    script = f"""
export PATH="{folder}:$PATH"
eval "$(_HONE_COMPLETE=source_bash hone)"
complete -p hone
COMP_WORDS=(hone run recipe.yaml sft.sched) COMP_CWORD=3
_hone_completion hone
printf '%s\\n' "${{COMPREPLY[@]}}"
COMP_WORDS=(hone run recipe.yaml sft.schedule = lin) COMP_CWORD=5
_hone_completion hone
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        [bash, "--norc", "-c", script], cwd=folder, capture_output=True, text=True
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[1:] == ["sft.schedule=", "linear"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(folder: Path, shell: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hone"],
        env={**os.environ, "_HONE_COMPLETE": f"source_{shell}"},
        capture_output=True,
        text=True,
    )
    assert f"_HONE_COMPLETE=complete_{shell}" in done.stdout
    assert "hone" in done.stdout and done.stderr == ""


@pytest.mark.parametrize("line", ["hone run recipe.yaml sft.", "hone recipe show ", "hone show f"])
def test_completion_is_there_at_once_and_without_torch(folder: Path, line: str) -> None:
    """Processor time, the fastest of three: completion waits for nothing."""
    times = []
    for _ in range(3):
        with (folder / "imports").open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-X", "importtime", "-m", "hone"],
                cwd=folder,
                env={**os.environ, **environment("zsh", line)},
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        times.append(usage.ru_utime + usage.ru_stime)
    rows = (folder / "imports").read_text().splitlines()
    imported = {row.rpartition("|")[2].strip() for row in rows}
    assert "hone.cli.completion" in imported
    assert imported.isdisjoint({"torch", "transformers", "datasets", "pyarrow"})
    assert min(times) < LIMIT_S
