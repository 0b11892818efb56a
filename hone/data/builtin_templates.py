"""Which chat template is used: the tokenizer's own, one of those written here, or a file.

Used by `chat.py` and `tokenizer_training.py`. Each template of this file is made for one tokenizer,
in terms of the tokens it has, so that its source can be saved with the model and used by
transformers as it is.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hone.data.templates import CHATML_HINT
from hone.errors import UserError, nearest

CHATML = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
"""For vocabularies with `<|im_end|>`; `make_chatml` adapts it to others."""

ALPACA = """\
{%- set task = 'Below is an instruction that describes a task' -%}
{%- set wish = 'Write a response that appropriately completes the request.' -%}
{%- set rest = messages -%}
{%- set opening = none -%}
{%- if messages and messages[0]['role'] == 'system' -%}
{%- set rest = messages[1:] -%}
{%- set opening = messages[0]['content'] -%}
{%- endif -%}
{%- for message in rest -%}
{%- if message['role'] != ('user' if loop.index0 is even else 'assistant') -%}
{{- raise_exception('Alpaca knows questions and answers in turns; a turn of role '
    + message['role'] + ' has no place here') -}}
{%- elif message['role'] == 'user' -%}
{%- if not loop.first -%}
{{- '\\n\\n' -}}
{%- elif opening is not none -%}
{{- opening + '\\n\\n' -}}
{%- elif message['input'] -%}
{{- task + ', paired with an input that provides further context. ' + wish + '\\n\\n' -}}
{%- else -%}
{{- task + '. ' + wish + '\\n\\n' -}}
{%- endif -%}
{%- if message['input'] -%}
{{- '### Instruction:\\n' + message['instruction'] -}}
{{- '\\n\\n### Input:\\n' + message['input'] + '\\n\\n' -}}
{%- else -%}
{{- '### Instruction:\\n' + message['content'] + '\\n\\n' -}}
{%- endif -%}
{{- '### Response:' -}}
{%- else -%}
{{- message['content'] + eos_token -}}
{%- endif -%}
{%- endfor -%}
"""
"""The format of Stanford Alpaca (github.com/tatsu-lab/stanford_alpaca); a system turn stands in
place of its first sentences, later exchanges follow without them. The answer begins right behind
`### Response:`, so a prompt needs nothing added.
"""

LLAMA = """\
{%- for message in messages -%}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' -}}
{{- message['content'] | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""
"""The headers of Llama 3."""
LLAMA_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def find_template(tokenizer: Any, name: str, writes_beginning: bool) -> str:
    """The Jinja source that `name` stands for: `auto`, a name in `BUILT_IN`, a file, or the source
    itself.

    `auto` is the tokenizer's own template, ChatML where it has none. `writes_beginning`: whether
    built-in ones are to write the beginning token (what the tokenizer itself does with plain text).
    Raises UserError.
    """
    if name == "auto" and tokenizer.chat_template is not None:
        own = tokenizer.chat_template
        return own if isinstance(own, str) else _default_of(own)
    make = BUILT_IN.get("chatml" if name == "auto" else name)
    if make:
        source = make(tokenizer)
        return "{{- bos_token -}}\n" + source if writes_beginning else source
    if "{%" in name or "{{" in name:
        return name
    return _read_template(Path(name).expanduser())


def make_chatml(tokenizer: Any) -> str:
    """ChatML in terms of the tokens there are: a turn ends with `<|im_end|>`, or with the
    end-of-sequence token.
    """
    if "<|im_end|>" in tokenizer.get_vocab():
        return CHATML
    if tokenizer.eos_token is None:
        raise UserError(
            "ChatML needs an end token; the tokenizer has neither `<|im_end|>` nor eos_token",
            hint="set eos_token in the model's tokenizer_config.json",
        )
    return CHATML.replace("'<|im_end|>'", "eos_token")


def make_alpaca(tokenizer: Any) -> str:
    """Alpaca's headings; an answer ends with the end-of-sequence token."""
    if tokenizer.eos_token is None:
        raise UserError(
            "Alpaca's format ends an answer with the end-of-sequence token, and the tokenizer has "
            "none",
            hint="set eos_token in the model's tokenizer_config.json",
        )
    return ALPACA


def make_llama(tokenizer: Any) -> str:
    """Llama 3's headers, for a vocabulary that has their tokens."""
    there = {token.content for token in tokenizer.added_tokens_decoder.values()}
    missing = [token for token in LLAMA_TOKENS if token not in there]
    if missing:
        names = ", ".join(f'"{token}"' for token in missing)
        raise UserError(
            f"the template `llama` needs tokens that the tokenizer does not have: {names}",
            hint=f"add them and train them: sft: {{add_tokens: [{names}], ...}}; or {CHATML_HINT}",
        )
    return LLAMA


BUILT_IN: dict[str, Callable[[Any], str]] = {
    "chatml": make_chatml,
    "alpaca": make_alpaca,
    "llama": make_llama,
}


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
        close = nearest(str(path), ["auto", *BUILT_IN, *files])
        meant = f"did you mean `{close}`?" if close else CHATML_HINT
        names = ", ".join(f"`{name}`" for name in ("auto", *BUILT_IN))
        raise UserError(
            f"there is no chat template `{path}`; expected {names} or a Jinja file",
            hint=meant,
            exit_code=2,
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"the chat template `{path}` is not UTF-8 text", exit_code=2) from None
