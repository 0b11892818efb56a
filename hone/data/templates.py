"""Chat templates: which one is used, and a small Jinja environment that renders it.

Used by `chat.py` only. The environment follows what transformers gives to templates
(`raise_exception`, `strftime_now`, `tojson`, `{% generation %}`, loop controls, the sandbox), with
two differences: the date can be fixed, and the borders of generation blocks can be marked in the
output. Templates come with models and are not trusted.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hone.data.rows import RowError
from hone.errors import UserError, nearest

CHATML_HINT = "use ChatML: data: {path: ..., template: chatml}"
BLOCK_BEGIN, BLOCK_END = "\ufdd0", "\ufdd1"  # Unicode noncharacters: never part of exchanged text
CHATML = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
"""For vocabularies with `<|im_end|>`; `make_chatml` adapts it to others."""


def find_template(tokenizer: Any, name: str, writes_beginning: bool) -> str:
    """The Jinja source that `name` stands for: `auto`, `chatml`, a file, or the source itself.

    `auto` is the tokenizer's own template, ChatML where it has none. `writes_beginning`: whether
    ChatML is to write the beginning token (what the tokenizer itself does with plain text). Raises
    UserError.
    """
    if name == "auto":
        own = tokenizer.chat_template
        if own is None:
            return make_chatml(tokenizer, writes_beginning)
        return own if isinstance(own, str) else _default_of(own)
    if name == "chatml":
        return make_chatml(tokenizer, writes_beginning)
    if "{%" in name or "{{" in name:
        return name
    return _read_template(Path(name).expanduser())


def make_chatml(tokenizer: Any, writes_beginning: bool) -> str:
    """ChatML in terms of the tokens there are: a turn ends with `<|im_end|>`, or with the
    end-of-sequence token.
    """
    source = CHATML
    if "<|im_end|>" not in tokenizer.get_vocab():
        if tokenizer.eos_token is None:
            raise UserError(
                "ChatML needs an end token; the tokenizer has neither `<|im_end|>` nor eos_token",
                hint="set eos_token in the model's tokenizer_config.json",
            )
        source = source.replace("'<|im_end|>'", "eos_token")
    return "{{- bos_token -}}\n" + source if writes_beginning else source


def _default_of(templates: Mapping[str, str]) -> str:
    if "default" in templates:
        return templates["default"]
    raise UserError(
        "the tokenizer has several chat templates and none is the default: "
        + ", ".join(sorted(templates)),
        hint="save the one to use in a file and name it: data: {path: ..., template: chat.jinja}",
    )


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        files = [str(file) for file in path.parent.glob("*.jinja*")] if path.parent.is_dir() else []
        close = nearest(str(path), ["auto", "chatml", *files])
        meant = f"did you mean `{close}`?" if close else CHATML_HINT
        raise UserError(
            f"there is no chat template `{path}`; expected `auto`, `chatml` or a Jinja file",
            hint=meant,
            exit_code=2,
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"the chat template `{path}` is not UTF-8 text", exit_code=2) from None


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
        self._variables = {**special_tokens, "tools": None, "documents": None}
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

    def render(self, messages: Sequence[Mapping[str, Any]], prompt: bool = False) -> str:
        """The text of the conversation; `prompt` adds the beginning of the next answer. Raises
        RowError.
        """
        return self._render(messages, add_generation_prompt=prompt)

    def render_blocks(self, messages: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
        """The character ranges that the template marks with `{% generation %}`, in order."""
        marked = self._render(messages, add_generation_prompt=False, mark_generation=True)
        ranges: list[tuple[int, int]] = []
        begin, length = 0, 0
        for piece in marked.replace(BLOCK_END, BLOCK_BEGIN + BLOCK_END).split(BLOCK_BEGIN):
            if piece.startswith(BLOCK_END):
                ranges.append((begin, length))
            begin = length
            length += len(piece.removeprefix(BLOCK_END))
        return ranges

    def _render(self, messages: Sequence[Mapping[str, Any]], **flags: bool) -> str:
        try:
            return self._template.render(
                messages=[dict(m) for m in messages], **self._variables, **flags
            )
        except Exception as fault:  # a template is a foreign program: it may fail in any way
            reason = str(fault) or type(fault).__name__
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
