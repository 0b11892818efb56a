"""What a person sees while a stage works: a bar, or a line now and then; and log.txt always."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from hone.files import append_line, room_permitting
from hone.metrics import Row

LINES_EVERY_S = 10.0  # between lines where the console is no terminal


class StageProgress:
    """The bar of one piece of work with `total` units; also writes its lines to the stage's log."""

    def __init__(self, console: Console, log: Path | None, title: str, total: int | None) -> None:
        self.console = console
        self.log = log
        self.title = title
        self.total = total
        self.shown_at = 0.0
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task(title, total=total, text="")

    def __enter__(self) -> "StageProgress":
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def advance_to(self, done: int, total: int | None = None) -> None:
        """Show `done` of `total` units."""
        self.bar.update(self.task, completed=done, total=total or self.total)

    @contextmanager
    def beside(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar below this one for work that comes first; gives what shows how much is done."""
        task = self.bar.add_task(title, total=total, text="")

        def advance(done: int) -> None:
            self.bar.update(task, completed=done)
            now = time.monotonic()
            if not self.console.is_terminal and now - self.shown_at >= LINES_EVERY_S:
                self.shown_at = now
                self.say(f"{title}: {done:,} of {total:,}")

        self.shown_at = time.monotonic()
        try:
            yield advance
        finally:
            self.bar.remove_task(task)

    def write_log(self, text: str) -> None:
        """A line for the log alone, where the disk has room for it."""
        if self.log:
            with room_permitting():
                append_line(self.log, text)

    def say(self, text: str) -> None:
        """A line for the person and the log."""
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)
        self.write_log(text)

    def step(self, row: Row) -> None:
        """Show a row of metrics; evaluations always get a line of their own."""
        if row.get("split") == "evaluation":
            told = f"held-out {_measured(row)}"
            if "margin" in row:  # the share of pairs that are told apart, not of tokens
                told += f", accuracy {row['accuracy']:.1%}"
            self.say(f"{self.title} step {row['step']}: {told}")
            return
        text = f"{_measured(row)}  {row['tokens_per_s']:,.0f} tokens/s"
        self.bar.update(self.task, completed=row["step"], text=text)
        line = f"{self.title} step {row['step']}/{self.total}: {text}"
        self.write_log(line)
        now = time.monotonic()
        last = row["step"] == self.total
        if not self.console.is_terminal and (last or now - self.shown_at >= LINES_EVERY_S):
            self.shown_at = now
            self.console.print(line, highlight=False, soft_wrap=True, markup=False)


def _measured(row: Row) -> str:
    """What a row is judged by: the loss, and the reward where there is one."""
    found = [(name, row.get(name)) for name in ("loss", "reward")]
    return "  ".join(f"{name} {value:.4f}" for name, value in found if value is not None)
