"""Answers from a saved result: load it again, render the prompt as training did, generate.

`load_artifact` opens a result, a base model or a checkpoint; `Artifact.generate_text` is used by
`hone generate`, `hone chat` and evaluation. Generation itself is transformers' own.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel

from hone.adapters import open_adapter
from hone.concealing import reveal
from hone.data.chat import Ids, Mask, Renderer
from hone.errors import UserError
from hone.hub import find_model
from hone.model_files import ADAPTER_CONFIG, NOTHING, Trust
from hone.models import load_tokenizer, read_quantised, read_weights
from hone.quantisation import read_quantisation
from hone.signals import check_stop

PROMPTS_AT_ONCE = 32
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
    """A model with its renderer, ready to answer."""

    module: PreTrainedModel | PeftModel
    renderer: Renderer
    rendering: Rendering

    def generate_text(
        self,
        prompts: Sequence[str | list[dict[str, Any]]],
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str]:
        """Answers in the order of the prompts: texts (rendered as the model was trained) or
        conversations.
        """
        ids = [self._prompt_ids(prompt) for prompt in prompts]
        answers = self.generate(ids, max_new_tokens, temperature, seed)
        decode = self.renderer.tokenizer.decode
        return [decode(answer, skip_special_tokens=True).strip() for answer in answers]

    def generate(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[list[int]]:
        """Token ids of the answers, end token left out; greedy at temperature 0, else drawn from
        `seed`.
        """
        ends = set(self.rendering.end_token_ids)
        config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            **({"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {}),
            eos_token_id=sorted(ends),
            pad_token_id=min(ends),
        )
        # Prompts of like length share a batch; the order of answers is that of the prompts.
        order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
        answers: dict[int, list[int]] = {}
        torch.manual_seed(seed)
        for begin in range(0, len(order), PROMPTS_AT_ONCE):
            check_stop()
            chosen = order[begin : begin + PROMPTS_AT_ONCE]
            rows = self._generate_batch([prompts[index] for index in chosen], config)
            for index, row in zip(chosen, rows, strict=True):
                stop = next((n for n, token in enumerate(row) if token in ends), len(row))
                answers[index] = row[:stop]
        return [answers[index] for index in range(len(prompts))]

    def _generate_batch(
        self, prompts: list[list[int]], config: GenerationConfig
    ) -> list[list[int]]:
        width = max(len(prompt) for prompt in prompts)
        padded = [[config.pad_token_id] * (width - len(p)) + p for p in prompts]
        mask = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
        device = next(self.module.parameters()).device
        with torch.no_grad():
            out = self.module.generate(
                input_ids=torch.tensor(padded, device=device),
                attention_mask=torch.tensor(mask, device=device),
                generation_config=config,
            )
        rows: list[list[int]] = out[:, width:].tolist()
        return rows

    def tokens(self, prompt: str, answer: str) -> tuple[Ids, Mask]:
        """(ids, trained) of a prompt and a given answer, rendered as the model was trained."""
        if self.rendering.plain:
            return self.renderer.prompt_completion(prompt, answer)
        user, assistant = {"role": "user", "content": prompt}, {"role": "assistant"}
        return self.renderer.prompt_completion([user], [assistant | {"content": answer}])

    def _prompt_ids(self, prompt: str | list[dict[str, Any]]) -> list[int]:
        if isinstance(prompt, str) and not self.rendering.plain:
            prompt = [{"role": "user", "content": prompt}]
        return self.renderer.prompt(prompt)


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
    folder = Path(source)
    base = base_of_adapter(folder) if folder.is_dir() else None
    module: PreTrainedModel | PeftModel = read_base(base or source, folder, device, dtype, trust)
    if base:
        module = open_adapter(module, folder, trust)
    module.eval().to(device)
    tokenizer = load_tokenizer(source, trust)
    rendering = _read_rendering(folder)
    renderer = Renderer(
        tokenizer,
        rendering.template if rendering else "auto",
        date=rendering.date if rendering else None,
    )
    if rendering is None:
        plain = tokenizer.chat_template is None
        rendering = Rendering(plain, renderer.template, renderer.date, renderer.end_token_ids)
    return Artifact(module, renderer, rendering)


def _read_rendering(folder: Path) -> Rendering | None:
    path = folder / RENDERING
    if not path.is_file():
        return None
    stored = json.loads(path.read_text())
    stored.pop("schema")
    return Rendering(**stored)
