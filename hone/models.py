"""A causal language model as the engine sees it: load, probe, log-probabilities of a batch, save.

`load_model` reads transformers' own files; `LanguageModel` joins the module with its layout and its
head. What is unusual about a model (attention rules, logit scales, positions) is found here, by
probing it against plain forwards of itself.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from peft import (
    PeftModel,
    load_peft_weights,
    set_peft_model_state_dict,
)
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from hone.architecture import check_fit, first_line, read_config
from hone.attention import (
    FOREST,
    UnsupportedAttention,
    attention_set,
    forest_layout,
    plain_attention,
)
from hone.device import Precision
from hone.errors import UserError
from hone.forest import ROW_MULTIPLE, Batch, count_step, make_batch
from hone.hub import find_model
from hone.logprobs import Head, Scores, compute_scores
from hone.memory import is_out_of_memory, usable_memory_bytes
from hone.model_files import (
    CONFIG,
    NOTHING,
    Trust,
    check_config_file,
    check_tokenizer_files,
    check_weight_files,
    code_refused,
    declares_code,
    uses_pickle,
)
from hone.quantisation import quantise, write_quantisation
from hone.recipe.training import TrainingStage
from hone.records import Sample, Segment
from hone.stacking import is_stacked, restore_new, save_stacked

# Relative distance of log-probabilities up to which two ways of computing them count as the same.
# fp64 models still compute norms and positions in fp32.
PROBE_LIMIT = {torch.float64: 1e-5, torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 1e-2}

TOKENIZER_CONFIG = "tokenizer_config.json"

# More tokens at once are no faster on a CPU (docs/log.md) and take more memory.
LARGEST_BUDGET = {"cpu": 1024, "cuda": 16384}


@dataclass
class LanguageModel:
    """module: the model, wrapped by PEFT where adapters are trained. layout: how its batches must
    lie.

    layout is "forest", "padded" or "alone" (padded, one path at a time); layout_reason says why it
    is not the forest. remarks: what was derived while it was made, in words.
    """

    module: PreTrainedModel | PeftModel
    head: Head
    precision: Precision
    layout: str = "forest"
    layout_reason: str = ""
    remarks: list[str] = field(default_factory=list)

    @property
    def causal(self) -> PreTrainedModel:
        """The transformers model with its head, adapters included where there are any."""
        if isinstance(self.module, PeftModel):
            return self.module.get_base_model()
        return self.module

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return self.head.weight_VD.device

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters that are trained, in the model's order."""
        return [(n, p) for n, p in self.module.named_parameters() if p.requires_grad]

    def make_batch(self, samples: list[Sample], **keywords: Any) -> Batch:
        """Lay samples out as this model needs them."""
        padded = self.layout != "forest"
        batch = make_batch(samples, padded=padded, multiple=ROW_MULTIPLE, **keywords)
        return batch.to(self.device)

    @contextmanager
    def laid_out(self, batch: Batch) -> Iterator[None]:
        """Around the forward and the backward of one batch."""
        with forest_layout(batch.spans):
            yield

    def logprobs(self, batch: Batch) -> torch.Tensor:
        """Log-probability of each trained token, (P,); call inside `laid_out`."""
        return self.scores(batch).logprobs

    def scores(self, batch: Batch, *, entropies: bool = False) -> Scores:
        """The same with what is known besides, entropies only where asked for; call inside
        `laid_out`.
        """
        hidden = self.hidden(batch)
        chosen = hidden.reshape(-1, hidden.shape[-1]).index_select(0, batch.sources_P)
        dtype = self.precision.compute
        return compute_scores(chosen, batch.targets_P, self.head, dtype, entropies=entropies)

    def hidden(self, batch: Batch) -> torch.Tensor:
        """Final hidden states (R, T, D), the last norm included."""
        with self.autocast():
            return self.hidden_of(batch.input_ids, batch.position_ids, batch.attention_mask)

    def hidden_of(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The same of (R, T) tokens; call inside `autocast`."""
        backbone: nn.Module = self.causal.base_model
        inputs = {
            "position_ids": position_ids,
            "attention_mask": attention_mask,
            "use_cache": False,
        }
        known = _parameters_of(backbone.__class__)
        inputs = {name: value for name, value in inputs.items() if name in known}
        return backbone(input_ids=input_ids, **inputs)[0]

    def autocast(self) -> AbstractContextManager[Any]:
        """The arithmetic's format, where it differs from the weights'."""
        if not self.precision.casts:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.precision.compute)


@lru_cache(maxsize=16)
def _parameters_of(backbone: type[nn.Module]) -> frozenset[str]:
    return frozenset(inspect.signature(backbone.forward).parameters)


def find_head(model: PreTrainedModel) -> Head:
    """The projection of a transformers model, with what its configuration says about logits."""
    layer = model.get_output_embeddings()
    if not isinstance(layer, nn.Linear):
        raise UserError(
            f"the output head of this model is a {type(layer).__name__}; expected a linear layer",
            hint="choose a causal language model (AutoModelForCausalLM)",
        )
    config = model.config.get_text_config()
    divided = getattr(config, "logits_scaling", None)
    multiplied = getattr(config, "logit_scale", None)
    return Head(
        weight_VD=layer.weight,
        bias_V=layer.bias,
        scale=(multiplied or 1.0) / (divided or 1.0),
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def load_model(
    source: str,
    precision: Precision,
    device: torch.device,
    *,
    layout: str = "auto",
    trust: Trust = NOTHING,
) -> LanguageModel:
    """Load a base model (folder or Hub id) and find the layout it can use.

    Raises UserError for a source that is no causal language model, or a head that Hone does not
    reproduce.
    """
    module = read_weights(source, precision.weights, trust).to(device)
    return join_model(module, precision, layout=layout)


def read_quantised(
    source: str, bits: int, dtype: torch.dtype, device: torch.device, trust: Trust = NOTHING
) -> PreTrainedModel:
    """The same with its linear layers packed to 4 or 8 bits, on `device`. The packed weights depend
    on the files alone, `dtype` is the format of all the rest.
    """
    return quantise(read_weights(source, "auto", trust), bits, dtype, device)


def read_weights(
    source: str, dtype: torch.dtype | Literal["auto"], trust: Trust = NOTHING
) -> PreTrainedModel:
    """The transformers model of a folder or Hub id; dtype "auto" is the files' own.

    Raises UserError for weights that are not whole or not those of the architecture, and for pickle
    and code that `trust` does not allow.
    """
    folder, name = find_model(source, weights=True, trust=trust), f'the model "{source}"'
    read_config(source, trust)
    check_weight_files(folder, name, trust)
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=not uses_pickle(folder),
            trust_remote_code=trust.remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they can be named
        )
    except (OSError, ValueError, KeyError, RuntimeError, UnpicklingError, EOFError) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(
            f'cannot load the model "{source}": {first_line(error)}',
            hint="expected a Hub id, or a folder with config.json and *.safetensors of a causal "
            "language model",
        ) from error
    kinds = ("missing_keys", "mismatched_keys", "unexpected_keys")
    check_fit(name, model, **{kind: found[kind] for kind in kinds})
    model.name_or_path = source  # adapters name their base by it
    return model


def load_tokenizer(source: str, trust: Trust = NOTHING) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or Hub id."""
    folder, name = find_model(source, trust=trust), f'the tokenizer of "{source}"'
    own = declares_code(folder, TOKENIZER_CONFIG)
    if not (own and trust.remote_code):  # a tokenizer with code of its own has files of its own
        check_tokenizer_files(folder, name)
    if (folder / CONFIG).exists():  # it may say which class the tokenizer has
        check_config_file(folder, f'the model "{source}"')
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust.remote_code)
        tokenizer("a")  # its settings are used, not only read
        return tokenizer
    except Exception as error:  # foreign files break libraries in every way
        if own and not trust.remote_code:
            raise code_refused(name, TOKENIZER_CONFIG) from error
        raise UserError(
            f"{name} cannot be loaded: {first_line(error)}",
            hint="expected tokenizer.json and tokenizer_config.json in the model's folder",
        ) from error


def join_model(
    module: PreTrainedModel, precision: Precision, *, layout: str = "auto"
) -> LanguageModel:
    """Join a loaded module with its head, and probe which layout computes what plain forwards
    compute.
    """
    module.eval()
    model = LanguageModel(module, find_head(module), precision)
    _check_causal(model)
    expected = _plain_logprobs(module, model.device)
    reason = "set in the recipe" if layout == "padded" else _try_forest(model, expected)
    if layout == "forest" and reason:
        raise UserError(
            f"layout: the forest does not compute what this model computes: {reason}",
            hint="set `layout: auto` to use the padded layout for this model",
            exit_code=2,
        )
    if reason:
        module.set_attn_implementation(plain_attention(module))
        model.layout, model.layout_reason = "padded", reason
        _check_head(model, expected)
    if _rope_depends_on_length(module.config):
        model.layout = "alone"
        model.layout_reason = "its rotary positions depend on the length of the sample"
    return model


def check_adapted(model: LanguageModel) -> None:
    """Leave the forest where an adapter on the joined model changes more than the forest's forward
    and the head compute: prompts of its own, a head of its own.
    """
    if model.layout != "forest":
        return
    with attention_set(model.causal, plain_attention(model.causal)):
        expected = _plain_logprobs(model.module, model.device)
    distance = relative_distance(_batch_logprobs(model), expected)
    if not distance <= PROBE_LIMIT[model.precision.compute]:
        model.layout = "padded"
        model.layout_reason = f"log-probabilities differ from the adapter's by {distance:.1e}"


def _check_causal(model: LanguageModel) -> None:
    """Raises UserError where what is predicted at a token depends on the tokens behind it."""
    ids = torch.arange(1, 10, device=model.device) % model.head.weight_VD.shape[0]
    other = ids.clone()
    other[-1] = 0
    with torch.no_grad():
        first, second = (
            model.causal(input_ids=row[None]).logits[0, :-1].log_softmax(-1) for row in (ids, other)
        )
    if relative_distance(first, second) > PROBE_LIMIT[model.precision.compute]:
        raise UserError(
            "this model is no causal language model: what it predicts depends on later tokens",
            hint="choose a model that continues text, such as HuggingFaceTB/SmolLM2-135M",
        )


def _try_forest(model: LanguageModel, expected: torch.Tensor) -> str:
    """Switch to the forest's attention and compare; returns why it cannot be used, or ""."""
    try:
        model.causal.set_attn_implementation(FOREST)
        distance = relative_distance(_batch_logprobs(model), expected)
    except (UnsupportedAttention, ValueError, TypeError, AttributeError) as error:
        return first_line(error)
    except AssertionError:
        return "it does not call transformers' attention interface"
    limit = PROBE_LIMIT[model.precision.compute]
    if distance <= limit:
        return ""
    return f"log-probabilities differ from plain forwards by {distance:.1e} (limit {limit:.0e})"


def _check_head(model: LanguageModel, expected: torch.Tensor) -> None:
    distance = relative_distance(_batch_logprobs(model), expected)
    if distance > PROBE_LIMIT[model.precision.compute]:
        raise UserError(
            "cannot reproduce the log-probabilities of this model: they differ from its own "
            f"forward by {distance:.1e}",
            hint="its output head does something that Hone does not know; please report the model",
        )


def relative_distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Distance of log-probabilities against the spread of the expected ones."""
    found, expected = found.double().cpu(), expected.double().cpu()
    distance = (
        (found - expected).norm() / (expected - expected.mean()).norm().clamp_min(1e-12)
    ).item()
    return distance if distance == distance else float("inf")


def _probe_samples(vocabulary: int) -> list[Sample]:
    """A prompt with two completions, one of which has a child of its own, and a second tree."""
    draw = np.random.Generator(np.random.Philox(7))

    def segment(length: int, parent: int) -> Segment:
        tokens = draw.integers(0, vocabulary, length).astype(np.int32)
        return Segment(tokens, np.ones(length, dtype=bool), parent)

    first = (segment(7, -1), segment(5, 0), segment(3, 1), segment(4, 0))
    return [Sample(0, first), Sample(1, (segment(9, -1),))]


def _batch_logprobs(model: LanguageModel) -> torch.Tensor:
    samples = _probe_samples(model.head.weight_VD.shape[0])
    batch = model.make_batch(samples, counts=count_step(samples))
    with torch.no_grad(), model.laid_out(batch):
        found = model.logprobs(batch)
    order = torch.argsort(batch.targets_P * 1000 + batch.samples_P, stable=True)
    return found[order]


def _plain_logprobs(module: PreTrainedModel | PeftModel, device: torch.device) -> torch.Tensor:
    """The same log-probabilities from the module's own forward, one unpadded path at a time."""
    samples = _probe_samples(module.get_output_embeddings().weight.shape[0])
    rows, targets, owners = [], [], []
    for sample in samples:
        batch = make_batch([sample], count_step([sample]), padded=True)
        for n in range(len(batch.input_ids)):
            length = int(batch.attention_mask[n].sum())  # type: ignore[index]
            width = batch.input_ids.shape[1]
            mine = batch.sources_P // width == n
            with torch.no_grad():
                logits = module(input_ids=batch.input_ids[n : n + 1, :length].to(device)).logits[0]
            chosen = logits.double().log_softmax(-1)[(batch.sources_P[mine] % width).to(device)]
            rows.append(chosen.gather(1, batch.targets_P[mine].to(device)[:, None])[:, 0])
            targets.append(batch.targets_P[mine])
            owners.append(torch.full((int(mine.sum()),), sample.index))
    order = torch.argsort(torch.cat(targets) * 1000 + torch.cat(owners), stable=True)
    return torch.cat(rows)[order.to(device)]


def _rope_depends_on_length(config: Any) -> bool:
    """True for rotary scalings that read the longest position of the row (longrope, dynamic)."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    parts = rope.values() if any(isinstance(v, dict) for v in rope.values()) else [rope]
    return any(
        isinstance(part, dict) and part.get("rope_type") in ("longrope", "dynamic")
        for part in parts
    )


def choose_token_budget(model: LanguageModel, settings: TrainingStage, device: torch.device) -> int:
    """Tokens computed at once: what a quarter of the memory the run may hold is enough for, between
    256 and `LARGEST_BUDGET`.

    The same recipe on the same machine gives the same number; what is free at the moment never
    enters.
    """
    if settings.token_budget is not None:
        return settings.token_budget
    config = model.causal.config.get_text_config()
    layers = 2 if settings.gradient_checkpointing else config.num_hidden_layers
    per_token = layers * token_bytes(config, model.precision.compute)
    fitting = int(usable_memory_bytes(device) / 4 / per_token)
    return max(256, min(LARGEST_BUDGET[device.type], 2 ** (fitting.bit_length() - 1)))


def token_bytes(config: Any, compute: torch.dtype) -> int:
    """About what a token takes in each layer on the way to the backward: inputs of the linear
    layers, and in fp32 those of norms and attention. `estimate/` knows it exactly.
    """
    width: int = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or 4 * width
    return compute.itemsize * (8 * width + 4 * inner) + 4 * 8 * width


def load_trained(model: LanguageModel, folder: Path) -> None:
    """Put what `save_model` wrote into `folder` back into the model, in place."""
    if isinstance(model.module, PeftModel) and is_stacked(model.module):
        restore_new(model.module, folder)
    elif isinstance(model.module, PeftModel):
        weights = load_peft_weights(str(folder), device=str(model.device))
        set_peft_model_state_dict(model.module, weights)
    else:
        dtype = next(model.module.parameters()).dtype
        stored = type(model.module).from_pretrained(folder, dtype=dtype, use_safetensors=True)
        model.module.load_state_dict(stored.state_dict())


def new_model(architecture: str, settings: dict[str, Any]) -> PreTrainedModel:
    """A model with random weights from torch's current seed; raises UserError for an unknown
    architecture or setting.
    """
    try:
        config = AutoConfig.for_model(architecture)
    except ValueError as error:
        raise UserError(
            f'model.architecture: "{architecture}" is not an architecture that transformers knows',
            hint="for example: llama, qwen3, mistral, gpt2",
            exit_code=2,
        ) from error
    unknown = [name for name in settings if not hasattr(config, name)]
    if unknown:
        known = ", ".join(sorted(name for name in config.to_dict() if name[0] != "_"))
        raise UserError(
            f"model.config: {architecture} has no setting named {', '.join(unknown)}",
            hint=f"settings: {known}",
            exit_code=2,
        )
    try:
        model = AutoModelForCausalLM.from_config(type(config)(**settings), dtype=torch.float32)
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 2, dtype=torch.long))
    except (ValueError, TypeError, RuntimeError, StrictDataclassError) as error:
        raise UserError(
            f"model.config: these settings make no {architecture} model: {first_line(error)}",
            hint="hidden_size has to be a multiple of num_attention_heads, for example",
            exit_code=2,
        ) from error
    return model


def save_model(
    module: PreTrainedModel | PeftModel, folder: Path, conceal: Callable[[str], str] = str
) -> None:
    """Write weights and configuration in transformers' or PEFT's own files, always the same bytes.

    conceal: what is done to the base's name before it is written into an adapter's folder.
    """
    if isinstance(module, PeftModel) and is_stacked(module):
        save_stacked(module, folder, conceal)
    elif isinstance(module, PeftModel):
        for config in module.peft_config.values():  # PEFT keeps the targets as a set, in hash order
            config.target_modules = sorted(config.target_modules)
            if config.base_model_name_or_path:
                config.base_model_name_or_path = conceal(config.base_model_name_or_path)
        module.save_pretrained(folder, save_embedding_layers=False)  # else it asks the Hub
    else:
        module.save_pretrained(folder)
    write_quantisation(module, folder)
    (folder / "README.md").unlink(missing_ok=True)  # an empty form of PEFT's
