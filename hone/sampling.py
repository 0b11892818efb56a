"""Answers from a saved result: load it again, render the prompt as training did, generate.

`load_artifact` opens a result, a base model or a checkpoint; `Artifact.generate_text` is used by
`hone generate`, `hone chat` and evaluation. How tokens are drawn: `sampler.py`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from hone.adapters import open_adapter
from hone.attention import plain_attention
from hone.choosing import SamplingSettings, cut_at_stop, settled
from hone.concealing import reveal
from hone.data.chat import Ids, Mask, Renderer
from hone.data.tools import Tools
from hone.device import Precision
from hone.errors import UserError
from hone.groups import SEQUENCES_AT_ONCE, Request
from hone.hub import find_model
from hone.model_files import ADAPTER_CONFIG, NOTHING, Trust
from hone.models import (
    LanguageModel,
    check_adapted,
    join_model,
    load_tokenizer,
    read_quantised,
    read_weights,
)
from hone.quantisation import read_quantisation
from hone.sampler import make_sampler
from hone.vocabulary import use_fast_rows, with_rows

RENDERING = (
    "hone.json"  # beside the weights: how prompts are rendered and which tokens end an answer
)


@dataclass(frozen=True)
class Rendering:
    """How prompts of a result are rendered: `plain` text as it stands, or as a user's message
    through the template.
    """

    plain: bool
    template: str
    date: str | None
    end_token_ids: list[int]

    def write(self, folder: Path) -> None:
        """Write `RENDERING` into `folder`."""
        text = json.dumps({"schema": 1, **vars(self)}, indent=1)
        (folder / RENDERING).write_text(text)


@dataclass(frozen=True)
class Artifact:
    """A model with its renderer, ready to answer. Its module computes as transformers' own do."""

    model: LanguageModel
    renderer: Renderer
    rendering: Rendering

    @property
    def module(self) -> PreTrainedModel | PeftModel:
        """The model itself, wrapped by PEFT where it has an adapter."""
        return self.model.module

    def generate_text(
        self,
        prompts: Sequence[str | list[dict[str, Any]]],
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
        **more: Any,
    ) -> list[str]:
        """Answers in the order of the prompts: texts (rendered as the model was trained) or
        conversations. more: as in `generate`; a stop string and what follows it are left out.
        """
        ids = [self.prompt_ids(prompt) for prompt in prompts]
        answers = self.generate(ids, max_new_tokens, temperature, seed, **more)
        return [self.text(answer, more.get("stop", ())).strip() for answer in answers]

    def stream_text(
        self, prompt: str | list[dict[str, Any]], tell: Callable[[str], None], **settings: Any
    ) -> str:
        """What `generate_text` answers to one prompt, told in pieces as it is drawn."""
        drawn: list[int] = []
        told = ""

        def listen(token: int) -> None:
            nonlocal told
            if token in self.rendering.end_token_ids:
                return
            drawn.append(token)
            text = settled(self.text(drawn, stop).lstrip(), stop)
            if text.startswith(told):  # a tokenizer may write earlier tokens otherwise later
                tell(text[len(told) :])
                told = text

        stop = settings.get("stop", ())
        (ids,) = self.generate([self.prompt_ids(prompt)], listen=listen, **settings)
        answer = self.text(ids, stop).strip()
        if answer.startswith(told):
            tell(answer[len(told) :])
        return answer

    def generate(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
        listen: Callable[[int], None] | None = None,
        first: int = 0,
        at_once: int = SEQUENCES_AT_ONCE,
        **more: Any,
    ) -> list[list[int]]:
        """Token ids of the answers, end token left out; greedy at temperature 0, else drawn from
        `seed` and the number of the prompt.

        listen: is given every token as it is drawn. first: the number of the first prompt, where
        these are a part of many. at_once: answers that are computed together. more: top_p, top_k,
        min_p, repetition_penalty and stop, as in `SamplingSettings`, which raises UserError for
        values that mean nothing.
        """
        settings = SamplingSettings(max_new_tokens, temperature, **more)
        ends = self.rendering.end_token_ids
        # Prompts of like length are computed together; the order of answers is that of the prompts.
        order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
        requests = [Request(prompts[n], [(seed, "generate", first + n)], listen) for n in order]
        sampler = make_sampler(self.model, ends, self.renderer.tokenizer, at_once)
        answers: dict[int, list[int]] = {}
        for number, (completion,) in sampler.sample(requests, settings):
            ended = completion.finish == "end"
            answers[order[number]] = completion.ids[:-1] if ended else completion.ids
        return [answers[index] for index in range(len(prompts))]

    def text(self, ids: list[int], stop: Sequence[str] = ()) -> str:
        """Tokens as text, without special ones, and without a stop string and what follows it."""
        text = self.renderer.tokenizer.decode(ids, skip_special_tokens=True)
        return cut_at_stop(text, stop)

    def tokens(self, prompt: str, answer: str) -> tuple[Ids, Mask]:
        """(ids, trained) of a prompt and a given answer, rendered as the model was trained."""
        if self.rendering.plain:
            return self.renderer.prompt_completion(prompt, answer)
        user, assistant = {"role": "user", "content": prompt}, {"role": "assistant"}
        return self.renderer.prompt_completion([user], [assistant | {"content": answer}])

    def prompt_ids(
        self, prompt: str | list[dict[str, Any]], tools: Tools | None = None
    ) -> list[int]:
        """What the model continues: a text, rendered as it was trained, or a conversation."""
        if isinstance(prompt, str) and not self.rendering.plain:
            prompt = [{"role": "user", "content": prompt}]
        return self.renderer.prompt(prompt, tools)


def base_of_adapter(folder: Path) -> str | None:
    """The base model that an adapter folder stands on; None where `folder` holds a whole model.

    Raises UserError where the base is not there.
    """
    path = folder / ADAPTER_CONFIG
    if not path.exists():
        return None
    try:
        base = json.loads(path.read_text())["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        base = None
    if not isinstance(base, str) or not base:
        raise UserError(
            f'the adapter "{folder}" does not say what it stands on',
            hint=f"name its base model in {path}: base_model_name_or_path",
            exit_code=2,
        )
    try:
        find_model(reveal(base))
    except UserError as error:
        raise UserError(
            f'the adapter "{folder}" stands on the base model "{base}", which cannot be found: '
            f"{error.message}",
            hint=f"put it back there, or correct base_model_name_or_path in {path}",
            exit_code=2,
        ) from error
    return reveal(base)


def read_base(
    source: str,
    adapter: Path,
    device: torch.device,
    dtype: torch.dtype,
    trust: Trust = NOTHING,
) -> PreTrainedModel:
    """The base of an adapter's folder, packed as it was while the adapter was trained."""
    bits = read_quantisation(adapter)
    if bits:
        return read_quantised(source, bits, dtype, device, trust)
    return read_weights(source, dtype, trust)


def load_artifact(
    source: str, device: torch.device, dtype: torch.dtype = torch.float32, trust: Trust = NOTHING
) -> Artifact:
    """Open a model folder, an adapter folder or a Hub id for generation."""
    model = load_trained_model(source, device, dtype, trust)
    return Artifact(model, *load_rendering(source, trust))


def load_rendering(source: str, trust: Trust = NOTHING) -> tuple[Renderer, Rendering]:
    """How a model folder or a Hub id renders prompts, without its weights."""
    tokenizer = load_tokenizer(source, trust)
    rendering = _read_rendering(Path(source))
    renderer = Renderer(
        tokenizer,
        rendering.template if rendering else "auto",
        date=rendering.date if rendering else None,
    )
    if rendering is None:
        plain = tokenizer.chat_template is None
        rendering = Rendering(plain, renderer.template, renderer.date, renderer.end_token_ids)
    return renderer, rendering


def load_trained_model(
    source: str, device: torch.device, dtype: torch.dtype, trust: Trust = NOTHING
) -> LanguageModel:
    """A model folder, an adapter folder or a Hub id in evaluation mode, probed as for training;
    outside of sampling its attention is transformers' own.
    """
    folder = Path(source)
    base = base_of_adapter(folder) if folder.is_dir() else None
    module = read_base(base or source, folder, device, dtype, trust).to(device)
    model = join_model(module, Precision(dtype, dtype, "for answers"))
    if base:
        model.module = open_adapter(module, folder, trust)
        model.module.eval()
        use_fast_rows(model.module)
        model.head = with_rows(model.head, model.causal)
        check_adapted(model)
    model.causal.set_attn_implementation(plain_attention(model.causal))
    return model


def _read_rendering(folder: Path) -> Rendering | None:
    path = folder / RENDERING
    if not path.is_file():
        return None
    stored = json.loads(path.read_text())
    stored.pop("schema")
    return Rendering(**stored)
