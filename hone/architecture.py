"""What a model's configuration says it is, and whether its weights fit that, without loading them.

Called by `models.py` where weights are loaded, by `stages/` before a stage begins, and by `hone
check`. transformers fills tensors that a file lacks with random numbers and leaves out those it
does not know: `check_fit` refuses both where they change what the model computes.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hone.errors import UserError
from hone.hub import find_model
from hone.model_files import (
    CONFIG,
    NOTHING,
    Tensors,
    Trust,
    check_config_file,
    check_weight_files,
    code_refused,
    declares_code,
    has_weights,
    read_header,
    some_of,
    weight_files,
)


def check_model(source: str, trust: Trust = NOTHING) -> PreTrainedModel:
    """The model of a folder or Hub id on the meta device, after all that can be checked without
    loading weights; those of a Hub id are checked where they are on this machine.

    Raises UserError for missing, cut-off or mixed files, for what `trust` does not allow, and for
    weights that are not those of the architecture.
    """
    folder, name = find_model(source, trust=trust), f'the model "{source}"'
    model = empty_model(source, trust)
    if Path(source).is_dir() or has_weights(folder):
        check_weight_files(folder, name, trust)
        tensors: Tensors = {}
        for shard in weight_files(folder, name):
            tensors |= read_header(folder / shard, name)
        if tensors and not getattr(model.config, "quantization_config", None):
            check_fit(name, model, **compare(model, tensors))
    return model


def empty_model(source: str, trust: Trust = NOTHING) -> PreTrainedModel:
    """The model of a folder or Hub id on the meta device: its modules, without weights."""
    config = read_config(source, trust)
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust.remote_code)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError) as error:
        raise _cannot(source, error, trust) from error


def read_config(source: str, trust: Trust = NOTHING) -> PreTrainedConfig:
    """The configuration of a causal language model.

    Raises UserError for another kind of model, an unknown one, and one whose own code would be
    needed without being trusted.
    """
    folder, name = find_model(source, trust=trust), f'the model "{source}"'
    check_config_file(folder, name)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust.remote_code)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise _cannot(source, error, trust) from error
    check_causal(name, config)
    return config


def check_causal(name: str, config: PreTrainedConfig) -> None:
    """Raises UserError where the configuration is of a model that has no head which predicts the
    next token.
    """
    made = list(getattr(config, "architectures", None) or [])
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    own = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if made and not own and not known & set(made):
        what = f"its {CONFIG} is of a {' / '.join(made)}"
    elif getattr(config, "is_encoder_decoder", False):
        what = "it has an encoder and a decoder"
    else:
        return
    raise UserError(
        f"{name} is no causal language model: {what}",
        hint="choose a model that continues text, such as HuggingFaceTB/SmolLM2-135M",
        exit_code=2,
    )


def compare(model: PreTrainedModel, tensors: Tensors) -> dict[str, Iterable[Any]]:
    """How tensors of these names and shapes would go into a model of this class, by transformers'
    own rules of renaming, joining and tying: its loader, on the meta device.
    """
    empty = {name: torch.empty(shape, device="meta") for name, shape in tensors.items()}
    _, found = type(model).from_pretrained(
        None,
        config=model.config,
        state_dict=empty,
        device_map="meta",
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    return {kind: found[kind] for kind in ("missing_keys", "mismatched_keys", "unexpected_keys")}


def check_fit(
    name: str,
    model: PreTrainedModel,
    missing_keys: Iterable[str],
    mismatched_keys: Iterable[tuple[str, Any, Any]],
    unexpected_keys: Iterable[str],
) -> None:
    """Raises UserError where the weights are not those of the architecture.

    missing_keys, mismatched_keys (name, shape in the file, shape in the model), unexpected_keys: as
    transformers reports them.
    """
    unfit = [f"{key} is missing" for key in missing_keys]
    unfit += [
        f"{key} is {_shape(there)} and not {_shape(expected)}"
        for key, there, expected in mismatched_keys
    ]
    unfit += [f"{key} has no place" for key in unexpected_keys if _matters(key, model)]
    if unfit:
        raise UserError(
            f"{name}: its weights do not fit its {CONFIG}: {some_of(unfit)}",
            hint="the folder mixes files of two models, or some are missing; fetch it again",
            exit_code=2,
        )


def _matters(key: str, model: PreTrainedModel) -> bool:
    """True for a tensor of a layer that the model has too few of, or of a layer whose other tensors
    are used; False for what another kind of model has besides (a second head, an image encoder) and
    for masks that older versions stored with attention.
    """
    layers = {_pattern(name).rpartition(".")[0] for name, _ in model.named_parameters()}
    buffers = {_pattern(name) for name, _ in model.named_buffers()}
    prefix = f"{model.base_model_prefix}."
    for form in (key, prefix + key, key.removeprefix(prefix)):
        pattern = _pattern(form)
        if pattern in buffers:
            return False
        if pattern.rpartition(".")[0] in layers:
            return True
    return False


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _shape(shape: Iterable[int]) -> str:
    return "x".join(str(size) for size in shape)


def _cannot(source: str, error: Exception, trust: Trust) -> UserError:
    """What is said where transformers cannot make the model."""
    folder, name = find_model(source, trust=trust), f'the model "{source}"'
    if not trust.remote_code and declares_code(folder, CONFIG):
        return code_refused(name, CONFIG)
    return UserError(
        f"{name} cannot be used: {first_line(error)}",
        hint="expected a Hub id, or a folder with config.json of a causal language model",
        exit_code=2,
    )


def first_line(error: Exception) -> str:
    """What a library says, without its further lines."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
