"""Which parts of a model are trained: linear layers by name, transformer blocks by number.

Called by `adapters.py`, `stages/start.py` and `hone check`, which asks a model without weights.
Models name their layers differently; the usual names are those of Llama, and `USUAL_NAMES` says
what they are elsewhere.
"""

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hone.errors import UserError, nearest

_ATTENTION_IN = ("query_key_value", "qkv_proj", "c_attn", "Wqkv")
_MLP_IN = ("gate_up_proj", "up_proj", "fc1", "fc_in", "c_fc", "dense_h_to_4h")

# From Llama's name to what the same layer is called in other families, the likeliest first; a layer
# that does several jobs at once stands for each of them. Without a gate there is one layer into the
# MLP.
USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "q_proj": _ATTENTION_IN,
    "k_proj": _ATTENTION_IN,
    "v_proj": _ATTENTION_IN,
    "o_proj": (
        *("self_attn.out_proj", "attn.out_proj", "attention.out_proj", "attn.c_proj"),
        *("self_attention.dense", "attention.dense", "self_attn.dense"),
    ),
    "gate_proj": _MLP_IN,
    "up_proj": _MLP_IN,
    "down_proj": ("fc2", "fc_out", "mlp.c_proj", "dense_4h_to_h"),
}


def linear_layers(model: PreTrainedModel) -> list[str]:
    """The full names of all linear layers, the output head aside, in the model's order."""
    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]


def linear_layer_names(model: PreTrainedModel) -> list[str]:
    """The last parts of the names of all linear layers, the output head aside, sorted."""
    return last_parts(linear_layers(model))


def last_parts(names: Iterable[str]) -> list[str]:
    """The last parts of dotted names, each once, sorted."""
    return sorted({name.rpartition(".")[2] for name in names})


def ends_with(name: str, ending: str) -> bool:
    """True where the dotted name is `ending` or ends with its parts."""
    return name == ending or name.endswith(f".{ending}")


def choose_targets(
    model: PreTrainedModel, wished: list[str] | str, layers: list[int] | str = "all"
) -> list[str]:
    """The endings of the names of the linear layers that get an adapter, sorted.

    wished: `all`, names of the model's own (`c_attn`, `attn.c_proj`), or usual ones. Raises
    UserError for a name that no linear layer has, in the chosen blocks if `layers` chooses some.
    """
    names = linear_layers(model)
    if layers != "all":
        chosen = choose_blocks(model, layers)
        names = [name for name in names if any(name.startswith(f"{block}.") for block in chosen)]
    if wished == "all":
        return last_parts(names)
    return sorted({_find_target(names, target) for target in wished})


def _find_target(names: list[str], wished: str) -> str:
    for ending in (wished, *USUAL_NAMES.get(wished, ())):
        if any(ends_with(name, ending) for name in names):
            return ending
    found = last_parts(names)
    near = nearest(wished.rpartition(".")[2], found)
    raise UserError(
        f'adapter.targets: "{wished}" is not a linear layer of this model; expected some of: '
        f"{', '.join(found)}" + (f'; did you mean "{near}"?' if near else ""),
        hint="leave `targets` out to adapt all linear layers",
        exit_code=2,
    )


def describe_targets(model: PreTrainedModel, wished: list[str] | str) -> str:
    """What usual names were mapped to, in words: `q_proj, k_proj: c_attn`; "" where nothing was."""
    if wished == "all":
        return ""
    mapped: dict[str, list[str]] = {}
    for name in wished:
        found = _find_target(linear_layers(model), name)
        if found != name:
            mapped.setdefault(found, []).append(name)
    return "; ".join(f"{', '.join(usual)}: {found}" for found, usual in mapped.items())


def find_blocks(model: PreTrainedModel) -> list[str]:
    """The full names of the transformer blocks, first to last.

    They are the outermost list of modules that has as many as the configuration names. Raises
    UserError where there is none.
    """
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return [f"{name}.{index}" for index in range(len(module))]
    raise UserError(
        "layers: the blocks of this model were not found",
        hint="leave `layers` out to train in all of them",
        exit_code=2,
    )


def choose_blocks(model: PreTrainedModel, layers: list[int] | str) -> list[str]:
    """The full names of the chosen blocks, in the model's order; raises UserError for a number that
    no block has.
    """
    blocks = find_blocks(model)
    if layers == "all":
        return blocks
    return [blocks[index] for index in block_numbers(layers, len(blocks))]


def block_numbers(layers: list[int] | str, count: int) -> list[int]:
    """Numbers from 0 of the chosen ones of `count` blocks, each once, sorted."""
    if layers == "all":
        return list(range(count))
    for number in layers:
        if not -count <= int(number) < count:
            raise UserError(
                f"layers: there is no block {number}, the model has {count}; "
                f"expected numbers from 0 to {count - 1}, or -1 to -{count} from the end",
                hint="leave `layers` out to train in all of them",
                exit_code=2,
            )
    return sorted({int(number) % count for number in layers})


def train_blocks(model: PreTrainedModel, layers: list[int] | str) -> None:
    """Let the parameters of the chosen blocks be trained and freeze all others; `all` trains
    everything.
    """
    model.requires_grad_(layers == "all")
    for block in choose_blocks(model, layers) if layers != "all" else ():
        model.get_submodule(block).requires_grad_(True)
