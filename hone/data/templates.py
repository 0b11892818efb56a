"""A chat template: a small Jinja environment that renders conversations with it.

Used by `chat.py`, `turns.py` and `tools.py`; which template it is, `builtin_templates.py` says. The
environment follows what transformers gives to templates (`raise_exception`, `strftime_now`,
`tojson`, `tools`, `{% generation %}`, loop controls, the sandbox), with two differences: the date
can be fixed, and the borders of generation blocks can be marked in the output. Templates come with
models and are not trusted.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hone.data.rows import RowError, printable
from hone.errors import UserError

CHATML_HINT = "use ChatML: data: {path: ..., template: chatml}"
BLOCK_BEGIN, BLOCK_END = "\ufdd0", "\ufdd1"  # Unicode noncharacters: never part of exchanged text


class ChatTemplate:
    """A compiled template. `date` (YYYY-MM-DD) is what `strftime_now` tells, None where the
    template never asks.
    """

    def __init__(
        self, source: str, special_tokens: Mapping[str, Any], date: str | None = None
    ) -> None:
        self.source = source
        self.date = _checked_date(date) if "strftime_now" in source else None
        self.has_blocks = "endgeneration" in source
        self._variables = {**special_tokens, "documents": None}
        environment = _make_environment()
        environment.globals["strftime_now"] = self._format_date
        try:
            self._template = environment.from_string(source)
            self._template.globals = dict(self._template.globals)  # read faster than a chain
        except jinja2.TemplateSyntaxError as fault:
            raise UserError(
                f"the chat template is not valid Jinja: {fault.message} (line {fault.lineno})",
                hint=CHATML_HINT,
            ) from fault

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The text of the conversation; `prompt` adds the beginning of the next answer. Raises
        RowError.
        """
        return self._render(messages, tools=tools, add_generation_prompt=prompt)

    def render_blocks(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[tuple[int, int]]:
        """The character ranges that the template marks with `{% generation %}`, in order."""
        marked = self._render(
            messages, tools=tools, add_generation_prompt=False, mark_generation=True
        )
        ranges: list[tuple[int, int]] = []
        begin, length = 0, 0
        for piece in marked.replace(BLOCK_END, BLOCK_BEGIN + BLOCK_END).split(BLOCK_BEGIN):
            if piece.startswith(BLOCK_END):
                ranges.append((begin, length))
            begin = length
            length += len(piece.removeprefix(BLOCK_END))
        return ranges

    def _render(self, messages: Sequence[Mapping[str, Any]], **settings: Any) -> str:
        try:
            return self._template.render(
                messages=[dict(m) for m in messages], **self._variables, **settings
            )
        except Exception as fault:  # a template is a foreign program: it may fail in any way
            reason = printable(fault) or type(fault).__name__
            message = f"the chat template refuses this conversation: {reason}"
            raise RowError(message, hint=CHATML_HINT) from fault

    def _format_date(self, format: str) -> str:
        assert self.date, "a template that calls strftime_now names it"
        return datetime.date.fromisoformat(self.date).strftime(format)


def _checked_date(date: str | None) -> str:
    if date is None:
        return datetime.date.today().isoformat()
    try:
        return datetime.date.fromisoformat(date).isoformat()
    except ValueError:
        raise UserError(
            f"the date is `{date}`; expected the form 2025-01-31", exit_code=2
        ) from None


def _make_environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols]
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.filters["tojson"] = _to_json
    return environment


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


class GenerationBlock(Extension):
    """`{% generation %}` renders its body, between two marks when `mark_generation` is set."""

    tags = {"generation"}  # noqa: RUF012 (an instance variable in the base class)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return [_mark(BLOCK_BEGIN, line), nodes.Scope(body, lineno=line), _mark(BLOCK_END, line)]


def _mark(text: str, line: int) -> nodes.Node:
    output = nodes.Output([nodes.TemplateData(text, lineno=line)], lineno=line)
    return nodes.If(
        nodes.Name("mark_generation", "load", lineno=line), [output], [], [], lineno=line
    )
