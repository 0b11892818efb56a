"""The table of commands and the groups that import a command when it is called.

Called by `hone.cli.main`. A command is a function with typed parameters and a help text that begins
with the summary given here; a new one is a file and a line. `hone --help` imports none of them.
"""

import io
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

import hone
from hone.cli.failures import report
from hone.errors import UserError, nearest
from hone.signals import stop_before_errors


class Command(NamedTuple):
    """Where a command's function is, and the first line of its help."""

    function: str
    summary: str


COMMANDS = {
    "quickstart": Command("hone.cli.quickstart:quickstart", "Train a small model from nothing."),
    "init": Command("hone.cli.init:init", "Write a recipe."),
    "check": Command("hone.cli.check:check", "Find what is wrong with a recipe."),
    "estimate": Command("hone.cli.estimate:estimate", "Estimate what a recipe takes."),
    "run": Command("hone.cli.run:run", "Train what a recipe says."),
    "resume": Command("hone.cli.resume:resume", "Go on with a run that was stopped or failed."),
    "runs": Command("hone.cli.runs:runs", "List the runs."),
    "show": Command("hone.cli.show:show", "Describe a run."),
    "rollouts": Command("hone.cli.rollouts:rollouts", "Show what a run's model has answered."),
    "verify": Command("hone.cli.verify:verify", "Prove what a run says about its model."),
    "evaluate": Command(
        "hone.cli.evaluate:evaluate", "Measure how well a model answers questions."
    ),
    "compare": Command("hone.cli.compare:compare", "Show two runs beside each other."),
    "report": Command("hone.cli.report:report", "Write all about a run on one page."),
    "reproduce": Command("hone.cli.reproduce:reproduce", "Make a run again and compare the bytes."),
    "remove": Command("hone.cli.remove:remove", "Delete runs."),
    "generate": Command("hone.cli.generate:generate", "Let a run's result answer prompts."),
    "chat": Command("hone.cli.chat:chat", "Talk to a run's result."),
    "track": Command("hone.cli.track:track", "Send a run's trackers what they do not have yet."),
    "data show": Command("hone.cli.data_show:show", "Print samples as the model will see them."),
    "recipe show": Command(
        "hone.cli.recipe_show:show", "Print a profile, or a recipe with all its values."
    ),
    "data prepare": Command("hone.cli.data_prepare:prepare", "Tokenise all data of a recipe."),
    "data list": Command("hone.cli.data_list:list_cache", "List the tokenised data in the cache."),
    "data stats": Command("hone.cli.data_stats:stats", "Count what is in data."),
    "data validate": Command("hone.cli.data_validate:validate", "Find rows that cannot be used."),
    "data split": Command(
        "hone.cli.data_split:split", "Split data into training and evaluation files."
    ),
    "recipe schema": Command("hone.cli.recipe_schema:schema", "Print a recipe's JSON Schema."),
    "info": Command("hone.cli.info:info", "Describe this machine and what is installed."),
    "doctor": Command("hone.cli.doctor:doctor", "Test the mathematics on a model of yours."),
    "version": Command("hone.cli.version:version", "Print the versions that matter."),
}

GROUPS = {"data": "Look at data, check and split them.", "recipe": "Look at recipes."}

HELP = """Take a base model and your data to a fine-tuned model that is proven.

\b
Example:
  hone quickstart                                  see it work, in minutes
  hone check recipe.yaml                           find mistakes in seconds
  hone run recipe.yaml sft.steps=50 --name first   train
  hone chat first                                  talk to the result
"""


def invoke(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; what goes wrong is printed to stderr."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given or os.environ.get("HONE_DEBUG", "") not in ("", "0")
    _print_what_can_be_printed()
    if not debug:
        _quiet_libraries()
    try:
        group = make_group()
        if "_HONE_COMPLETE" in os.environ:
            group.main(prog_name="hone")  # leaves by SystemExit
        words = [word for word in given if word != "--debug"]
        with stop_before_errors(), group.make_context("hone", words) as context:
            code = group.invoke(context)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except Exception as error:
        return report(error, debug=debug)


def load_command(words: str) -> TyperCommand:
    """Import the command that is called by `words` ("data show")."""
    module, function = COMMANDS[words].function.split(":")
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(words.split()[-1])(getattr(import_module(module), function))
    command = typer.main.get_command(app)
    assert isinstance(command, TyperCommand)
    return command


class LazyGroup(TyperGroup):
    """The commands whose words begin with `prefix`, none of them imported before it is called.

    `ctx` is a `typer.Context`, or the private class that typer's own signatures name.
    """

    prefix = ""

    def list_commands(self, ctx: Any) -> list[str]:
        """The next word of each command, in the table's order."""
        below = [words.removeprefix(self.prefix) for words in COMMANDS if self._has(words)]
        return list(dict.fromkeys(words.split()[0] for words in below))

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | None:
        """A stand-in with the summary: enough for help texts and completion."""
        if cmd_name not in self.list_commands(ctx):
            return None
        words = self.prefix + cmd_name
        summary = GROUPS[words] if words in GROUPS else COMMANDS[words].summary
        return TyperCommand(cmd_name, help=summary, rich_markup_mode=None)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command itself. Raises UserError with the nearest name."""
        names = self.list_commands(ctx)
        words = self.prefix + args[0]
        if args[0] in names:
            command = make_group(words) if words in GROUPS else load_command(words)
            return args[0], command, args[1:]
        if ctx.resilient_parsing:  # completion of a word that is not finished
            return None, None, args[1:]
        close = nearest(args[0], names)
        meant = f"did you mean `{close}`?" if close else f"there are {', '.join(names)}"
        message = f"no command `hone {words}`; {meant}"
        raise UserError(message, hint=f"hone {self.prefix}--help", exit_code=2)

    def _has(self, words: str) -> bool:
        return words.startswith(self.prefix)


def make_group(words: str = "") -> LazyGroup:
    """The group of all commands, or of those below `words`."""
    app = typer.Typer(
        cls=LazyGroup,
        help=GROUPS[words] if words else HELP,
        invoke_without_command=True,
        add_completion=not words,
        rich_markup_mode=None,
    )
    app.callback()(_help_without_command if words else _root)
    group = typer.main.get_command(app)
    assert isinstance(group, LazyGroup)
    group.prefix = f"{words} " if words else ""
    return group


def _print_version(value: bool) -> None:
    if value:
        print(f"hone {hone.__version__}")
        raise typer.Exit


def _help_without_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(2)


def _root(
    context: typer.Context,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show tracebacks; also after a command, or HONE_DEBUG=1."),
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    _help_without_command(context)


def _quiet_libraries() -> None:
    """What libraries tell developers is shown by --debug, `python -W` or their own settings."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def _print_what_can_be_printed() -> None:
    """A terminal that cannot show a character gets a question mark instead of a failure."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
