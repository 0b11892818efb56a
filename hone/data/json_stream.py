"""Objects out of a large JSON file, one at a time, without holding the file in memory.

Used by `sources.py` for `.json` files: an array of objects, or an object with a single list. The
standard library's decoder does the reading, on a window that grows until a whole value is in it.
JSON Lines are read elsewhere.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

PIECE = 1 << 20  # characters read at a time
TAIL = 16  # a fault so close to the window's end may be a number or a word that goes on behind it
SPACE = re.compile(r"[ \t\r\n]*")


class JsonFault(Exception):
    """The text is not what was expected; `line` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message


class JsonWindow:
    """A moving window on a JSON text that knows the line it stands on."""

    def __init__(self, file: TextIO, piece: int = PIECE) -> None:
        self.file = file
        self.piece = piece
        self.text = ""
        self.position = 0
        self.line = 1
        self.ended = False

    def peek(self) -> str:
        """The next character that is not white space, "" at the end of the file."""
        while True:
            found = SPACE.match(self.text, self.position)
            assert found, "a pattern that may be empty always matches"
            self._move_to(found.end())
            if self.position < len(self.text):
                return self.text[self.position]
            if self.ended:
                return ""
            self._read_more()

    def take(self, expected: str) -> None:
        """Step over one of the characters in `expected`."""
        found = self.peek()
        if not found or found not in expected:
            what = f"`{found}`" if found else "the end of the file"
            raise JsonFault(
                self.line, f"expected {' or '.join(f'`{c}`' for c in expected)}, found {what}"
            )
        self._move_to(self.position + 1)

    def value(self) -> Any:
        """Read one whole JSON value."""
        self.peek()
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self.text, self.position)
            except json.JSONDecodeError as fault:
                if self.ended or not self._may_go_on(fault):
                    line = self.line + self.text.count("\n", self.position, fault.pos)
                    raise JsonFault(line, f"not valid JSON: {fault.msg}") from None
            except RecursionError:
                raise JsonFault(self.line, "not readable: nested too deeply") from None
            except ValueError as fault:  # a number of more digits than Python takes
                raise JsonFault(self.line, f"not readable: {fault}") from None
            else:
                if self.ended or end < len(self.text):
                    self._move_to(end)
                    return value
            self._read_more()

    def _may_go_on(self, fault: json.JSONDecodeError) -> bool:
        return fault.msg.startswith("Unterminated string") or fault.pos >= len(self.text) - TAIL

    def _move_to(self, position: int) -> None:
        self.line += self.text.count("\n", self.position, position)
        self.position = position

    def _read_more(self) -> None:
        rest = self.text[self.position :]
        more = self.file.read(max(self.piece, len(rest)))
        self.text, self.position, self.ended = rest + more, 0, not more


def read_objects(file: TextIO, piece: int = PIECE) -> Iterator[tuple[int, Any]]:
    """Yield (line, value) for each element of the array, or of the single list in the object, that
    the file holds.

    Raises JsonFault where the text cannot be read; what comes after such a place is lost.
    """
    window = JsonWindow(file, piece)
    if window.peek() == "[":
        yield from _elements(window)
    else:
        yield from _single_list(window)
    if window.peek():
        raise JsonFault(window.line, "there is text after the end of the JSON value")


def _elements(window: JsonWindow) -> Iterator[tuple[int, Any]]:
    window.take("[")
    if window.peek() == "]":
        window.take("]")
        return
    while True:
        window.peek()
        yield window.line, window.value()
        last = window.peek() == "]"
        window.take(",]")
        if last:
            return


def _single_list(window: JsonWindow) -> Iterator[tuple[int, Any]]:
    start, lists = window.line, 0
    window.take("[{")
    last = window.peek() == "}"
    if last:
        window.take("}")
    while not last:
        window.value()
        window.take(":")
        if window.peek() == "[":
            lists += 1
            if lists > 1:
                raise JsonFault(
                    window.line,
                    "expected an object with a single list of rows, found a second list",
                )
            yield from _elements(window)
        else:
            window.value()
        last = window.peek() == "}"
        window.take(",}")
    if lists == 0:
        raise JsonFault(
            start, "expected an array of rows or an object with one list of rows, found no list"
        )
