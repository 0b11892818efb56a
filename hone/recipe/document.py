"""YAML text to plain values, with the line of each.

Called by `load.py` for the recipe and by `overrides.py` for the value of an override. ruamel.yaml
parses (YAML 1.2: `1e-5` is a number, `yes` is text); the values are made here, because its own
loader keeps lines for mappings and lists only. Dates and tags that make objects are left out.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from hone.recipe.faults import Fault, KeyPath, Origin, Origins, quoted

_TAG = "tag:yaml.org,2002:"
_MOST_VALUES = 20_000  # more come only from aliases of aliases, or from a file that is no recipe
_SNIPPET = 70
_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_TAG_NOUNS = {"int": "whole number", "float": "number", "bool": "truth value"}


@dataclass
class Document:
    """What was read: plain values, the origin of each by its path, and what was wrong."""

    value: Any = None
    origins: Origins = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


class _Unreadable(Exception):
    """Ends the reading of a document; `line` is None where the parser does not know it."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.line = line


def read_document(text: str, origin: Origin, path: KeyPath = ()) -> Document:
    """Reads one YAML document that stands at `path` of the recipe; never raises on bad text.

    Lines are counted only where `origin` has one (1: the text is a whole file).
    """
    document = Document()
    try:
        root = _compose(text)
        if root is None:
            document.origins[path] = origin
        else:
            _Reader(origin, document).read(root, path, origin)
    except _Unreadable as unreadable:
        where = _at(origin, unreadable.line)
        document.faults.append(Fault(where, path, unreadable.message))
        document.value = None
    return document


def _at(origin: Origin, line: int | None) -> Origin:
    """The origin of a line (from 1) in the text that begins at `origin`."""
    return Origin(origin.source, line, origin.order) if origin.line is not None else origin


def _compose(text: str) -> Node | None:
    try:
        root: Node | None = YAML(typ="safe", pure=True).compose(text)
        return root
    except ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        message = f"not valid YAML: column {column} holds the character U+{error.character:04X}"
        fault = _Unreadable(f"{message}; expected plain text", line)
    except MarkedYAMLError as error:
        fault = _syntax_fault(text, error)
    except YAMLError as error:
        fault = _Unreadable(f"not valid YAML: {str(error).splitlines()[0]}")
    except RecursionError:
        fault = _Unreadable("not a recipe: nested too deeply")
    except (ValueError, OverflowError, LookupError, TypeError, AttributeError, AssertionError):
        # The parser's own mistakes on odd escapes and directives.
        fault = _Unreadable("not valid YAML; expected plain keys, numbers and text")
    raise fault


def _syntax_fault(text: str, error: MarkedYAMLError) -> _Unreadable:
    """The parser's complaint with the line it is about and a mark below its column."""
    mark = error.problem_mark or error.context_mark
    problem = _plain_problem(str(error.problem or error.context or "cannot be read"))
    if mark is None:
        return _Unreadable(f"not valid YAML: {problem}")
    lines = re.split(r"\r\n|[\n\r\x85\u2028\u2029]", text)
    source = lines[mark.line] if mark.line < len(lines) else ""
    message = f"not valid YAML: column {mark.column + 1}: {problem}"
    if source.isprintable() and mark.column < _SNIPPET and source.strip():
        message += f"\n    {source[:_SNIPPET]}\n    {' ' * mark.column}^"
    return _Unreadable(message, mark.line + 1)


def _plain_problem(problem: str) -> str:
    """What the parser's words mean to somebody who has not read the YAML specification."""
    if "'\\t'" in problem or "tab" in problem:
        return "found a tab; expected spaces"
    if problem == "mapping values are not allowed here":
        return 'a key cannot begin here; check the indentation, or put quotes around text with ": "'
    if problem == "found unexpected end of stream":
        return "a quote is not closed"
    if problem.startswith("but found another document"):
        return 'found a second document after "---"; expected one'
    if problem.startswith("expected '<document start>'"):
        return "found more after the end of the mapping; expected one mapping"
    if problem.startswith("expected <block end>"):
        return "the indentation does not match the lines above"
    return problem.replace("'<stream end>'", "the end").replace("the node content", "a value")


class _Reader:
    """Walks the nodes of one document and fills it."""

    def __init__(self, origin: Origin, document: Document) -> None:
        self.origin = origin
        self.document = document
        self.open: set[int] = set()
        self.num_values = 0

    def read(self, node: Node, path: KeyPath, origin: Origin) -> None:
        """Puts the value of `node` and its origins into the document."""
        self.document.value = self.value(node, path, origin)

    def value(self, node: Node, path: KeyPath, origin: Origin) -> Any:
        line = node.start_mark.line + 1
        self.count(line)
        if id(node) in self.open:
            raise _Unreadable(
                "not a recipe: an alias (*) stands inside of its own anchor (&)", line
            )
        self.document.origins[path] = origin
        self.open.add(id(node))
        try:
            return self.content(node, path, origin)
        except RecursionError:
            raise _Unreadable("not a recipe: nested too deeply", line) from None
        finally:
            self.open.discard(id(node))

    def count(self, line: int) -> None:
        self.num_values += 1
        if self.num_values > _MOST_VALUES:
            raise _Unreadable(f"not a recipe: it has more than {_MOST_VALUES} values", line)

    def content(self, node: Node, path: KeyPath, origin: Origin) -> Any:
        if isinstance(node, MappingNode) and _kind(node) == "map":
            return self.mapping(node, path)
        if isinstance(node, SequenceNode) and _kind(node) == "seq":
            return [
                self.value(item, (*path, index), self.line_of(item))
                for index, item in enumerate(node.value)
            ]
        if isinstance(node, ScalarNode):
            try:
                return _scalar(node)
            except ValueError as error:
                self.document.faults.append(Fault(origin, path, str(error)))
                return None
        message = f"the tag {quoted(str(node.tag))} is not known; expected plain values"
        self.document.faults.append(Fault(origin, path, message))
        return None

    def mapping(self, node: MappingNode, path: KeyPath) -> dict[str, Any]:
        """The mapping's own keys, then those merged from elsewhere (`<<: *name`)."""
        found: dict[str, Any] = {}
        lines: dict[str, Origin] = {}
        for key_node, value_node in _own_pairs(node):
            key, origin = self.key(key_node, path), self.line_of(key_node)
            if key in lines:
                first = "" if origin.line is None else f" (first on line {lines[key].line})"
                message = f"the key {quoted(key)} is given twice{first}; expected once"
                self.document.faults.append(Fault(origin, (*path, key), message))
                continue
            lines[key] = origin
            found[key] = self.value(value_node, (*path, key), origin)
        for key_node, value_node in self.merged_pairs(node):
            key = self.key(key_node, path)
            if key not in found:
                found[key] = self.value(value_node, (*path, key), self.line_of(key_node))
        return found

    def key(self, node: Node, path: KeyPath) -> str:
        if not isinstance(node, ScalarNode):
            line = node.start_mark.line + 1
            raise _Unreadable(f"not a recipe: a key is a {_noun(node)}; expected text", line)
        return _text(node)

    def merged_pairs(self, node: MappingNode) -> Iterator[tuple[Node, Node]]:
        for key_node, source in node.value:
            if not _is_merge(key_node):
                continue
            for part in source.value if isinstance(source, SequenceNode) else [source]:
                line = key_node.start_mark.line + 1
                self.count(line)
                if not isinstance(part, MappingNode):
                    raise _Unreadable(f'"<<" names a {_noun(part)}; expected a mapping', line)
                if id(part) in self.open:
                    raise _Unreadable('"<<" names the mapping it stands in', line)
                yield from _own_pairs(part)
                yield from self.merged_pairs(part)

    def line_of(self, node: Node) -> Origin:
        return _at(self.origin, node.start_mark.line + 1)


def _own_pairs(node: MappingNode) -> list[tuple[Node, Node]]:
    return [(key, value) for key, value in node.value if not _is_merge(key)]


def _is_merge(key: Node) -> bool:
    return isinstance(key, ScalarNode) and _kind(key) == "merge"


def _kind(node: Node) -> str:
    return str(node.tag).removeprefix(_TAG)


def _noun(node: Node) -> str:
    if isinstance(node, ScalarNode):
        return "single value"
    return "mapping" if isinstance(node, MappingNode) else "list"


def _scalar(node: ScalarNode) -> Any:
    """The number, truth value, null or text of a node; raises ValueError for anything else."""
    kind, text = _kind(node), str(node.value)
    try:
        if kind == "null":
            return None
        if kind == "bool":
            return _TRUTH[text.lower()]
        if kind == "int":
            return _whole_number(text)
        if kind == "float":
            return float(
                text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan")
            )
    except (ValueError, KeyError):
        raise ValueError(f"found {quoted(text)}, which is no {_TAG_NOUNS[kind]}") from None
    if kind in ("str", "timestamp", "value"):
        return _text(node)
    raise ValueError(f"the tag {quoted(str(node.tag))} is not known; expected plain values")


def _whole_number(text: str) -> int:
    digits = text.replace("_", "").lower()
    with_base = digits.lstrip("+-")[:2] in ("0x", "0o", "0b")
    return int(digits, 0 if with_base else 10)


def _text(node: ScalarNode) -> str:
    """The node's text; an escaped half of a character (surrogate) becomes a question mark."""
    return str(node.value).encode("utf-8", "replace").decode("utf-8")
