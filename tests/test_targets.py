"""Linear layers by name, usual or the model's own, and transformer blocks by number."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig, OPTConfig, PhiConfig, Starcoder2Config

from hone.errors import UserError
from hone.targets import (
    USUAL_NAMES,
    choose_targets,
    describe_targets,
    ends_with,
    find_blocks,
    linear_layer_names,
    linear_layers,
    train_blocks,
)
from tests.tiny import FAMILIES, SHAPE, VOCABULARY

SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2}
OTHERS = {
    "opt": OPTConfig(**SMALL, ffn_dim=48, num_attention_heads=4, word_embed_proj_dim=16),
    "gpt_neox": GPTNeoXConfig(**SMALL, intermediate_size=48, num_attention_heads=4),
    "phi": PhiConfig(**SMALL, intermediate_size=48, num_attention_heads=4),
    "starcoder2": Starcoder2Config(**SHAPE),
}
LLAMA = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"


def empty(name: str):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy({**FAMILIES, **OTHERS}[name]))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", "down_proj gate_proj k_proj o_proj q_proj up_proj v_proj"),
        ("phi3", "down_proj gate_up_proj o_proj qkv_proj"),
        ("gpt2", "c_attn c_fc c_proj"),
    ],
)
def test_all_linear_layers_are_found_whatever_their_names(name, expected):
    assert linear_layer_names(empty(name)) == expected.split()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", LLAMA),
        ("gemma3", LLAMA),
        ("phi3", "qkv_proj qkv_proj qkv_proj o_proj gate_up_proj gate_up_proj down_proj"),
        ("gpt2", "c_attn c_attn c_attn attn.c_proj c_fc c_fc mlp.c_proj"),
        ("opt", "q_proj k_proj v_proj self_attn.out_proj fc1 fc1 fc2"),
        ("phi", "q_proj k_proj v_proj self_attn.dense fc1 fc1 fc2"),
        ("starcoder2", "q_proj k_proj v_proj o_proj c_fc c_fc mlp.c_proj"),
        (
            "bloom",
            "query_key_value query_key_value query_key_value self_attention.dense "
            "dense_h_to_4h dense_h_to_4h dense_4h_to_h",
        ),
        (
            "gpt_neox",
            "query_key_value query_key_value query_key_value attention.dense "
            "dense_h_to_4h dense_h_to_4h dense_4h_to_h",
        ),
    ],
)
def test_usual_names_are_mapped_to_the_models_own(name, expected):
    model = empty(name)
    found = [choose_targets(model, [usual]) for usual in USUAL_NAMES]
    assert found == [[ending] for ending in expected.split()]
    # Together they are every linear layer of the blocks, each of which is meant by some name.
    endings = choose_targets(model, list(USUAL_NAMES))
    within = [name for name in linear_layers(model) if name.startswith(tuple(find_blocks(model)))]
    assert within == [name for name in within if any(ends_with(name, end) for end in endings)]


def test_what_was_mapped_is_said():
    model = empty("gpt2")
    assert describe_targets(model, ["q_proj", "v_proj", "o_proj", "c_fc"]) == (
        "q_proj, v_proj: c_attn; o_proj: attn.c_proj"
    )
    assert describe_targets(model, "all") == describe_targets(empty("llama"), ["q_proj"]) == ""


def test_a_name_may_have_several_parts():
    model = empty("gpt2")
    assert choose_targets(model, ["attn.c_proj"]) == ["attn.c_proj"]
    assert choose_targets(model, ["c_proj"]) == ["c_proj"]
    with pytest.raises(UserError, match=r'"ttn.c_proj" is not a linear layer'):
        choose_targets(model, ["ttn.c_proj"])


def test_an_unknown_target_names_those_there_are():
    with pytest.raises(UserError, match=r'"q_porj".*down_proj, gate.*did you mean "q_proj"'):
        choose_targets(empty("llama"), ["q_porj"])
    with pytest.raises(UserError, match=r'"q_proj" is not .*dt_proj, in_proj, out_proj, x_proj'):
        choose_targets(empty("mamba"), ["q_proj"])


def test_layers_outside_of_the_blocks_are_no_targets_of_chosen_blocks():
    model = empty("opt")
    assert "project_in" in choose_targets(model, "all")
    assert "project_in" not in choose_targets(model, "all", [0])


@pytest.mark.parametrize("name", [*FAMILIES, *OTHERS])
def test_blocks_are_found(name):
    blocks = find_blocks(empty(name))
    assert len(blocks) == 2 and [block[-2:] for block in blocks] == [".0", ".1"]


@pytest.mark.parametrize("layers", [[2], [0, -3]])
def test_a_block_that_is_not_there_is_refused(layers):
    with pytest.raises(UserError, match=f"no block {layers[-1]}, the model has 2; .* 0 to 1"):
        train_blocks(empty("llama"), layers)


def test_only_the_parameters_of_chosen_blocks_are_trained():
    model = empty("llama-tied")
    train_blocks(model, [-1])
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if ".layers.1." in name}
    train_blocks(model, "all")
    assert all(p.requires_grad for p in model.parameters())
