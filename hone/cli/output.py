"""How commands print: data to stdout, everything else to stderr.

Tables are plain columns, so that they read the same in a terminal, a pipe and a log.
"""

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

PIPE_WIDTH = 120  # columns where stdout is no terminal


def make_console() -> "Console":
    """The console of messages and progress bars, on stderr; NO_COLOR and pipes are respected."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def say(console: "Console", text: str) -> None:
    """Print a line as it is: no markup, no wrapping."""
    console.print(text, markup=False, soft_wrap=True)


def print_rich(renderable: "RenderableType") -> None:
    """Print what rich draws to stdout, coloured where that is a terminal."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else PIPE_WIDTH
    Console(highlight=False, width=width).print(renderable)


def print_json(value: Any) -> None:
    """Print a value to stdout as indented JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(rows: Sequence[Sequence[str]], *, indent: str = "") -> None:
    """Print rows of cells to stdout in aligned columns; the first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print((indent + "  ".join(cells)).rstrip())


def age(moment: str) -> str:
    """How long ago an ISO moment was, in its largest unit: "3 h"."""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
    return duration(max(0.0, seconds))


def duration(seconds: float) -> str:
    """Seconds in the largest unit that fits: "12 s", "3 min", "5 h", "2 d"."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def size(num_bytes: int) -> str:
    """Bytes in the largest unit that fits: "1.2 GB"."""
    for unit, large in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= large:
            return f"{num_bytes / large:.3g} {unit}"
    return f"{num_bytes} bytes"


def number(value: object) -> str:
    """A figure as it is read: four significant digits, thousands apart, "-" for none."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else "-"
