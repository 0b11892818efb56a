"""Answers of an opened model folder: greedy as transformers', in pieces as in one, stopped."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig

from hone.sampling import Artifact, load_artifact
from tests.data.tokenizers import byte_level

PROMPTS = ["Hello", "The capital of France", "I am", "é"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model and two adapters on it: one of the usual kind, one that changes the head."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = byte_level()
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), intermediate_size=48, **shape)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    for name, targets in (("usual", ["q_proj", "down_proj"]), ("head", ["q_proj", "lm_head"])):
        base = AutoModelForCausalLM.from_pretrained(folder / "base")
        settings = LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
        adapted = get_peft_model(base, settings)
        adapted.save_pretrained(folder / name, save_embedding_layers=False)
        tokenizer.save_pretrained(folder / name)
        path = folder / name / "adapter_config.json"
        stored = json.loads(path.read_text())
        path.write_text(json.dumps({**stored, "base_model_name_or_path": str(folder / "base")}))
    return folder


def opened(folder: Path, name: str) -> Artifact:
    return load_artifact(str(folder / name), torch.device("cpu"))


@pytest.mark.parametrize("name", ["base", "usual", "head"])
def test_greedy_answers_are_transformers_own(folder: Path, name: str) -> None:
    """An adapter on the head, which the forest's projection does not see, is answered with
    transformers' loop.
    """
    artifact = opened(folder, name)
    assert artifact.model.layout == ("padded" if name == "head" else "forest")
    ids = [artifact.renderer.prompt(text) for text in PROMPTS]
    ends = artifact.rendering.end_token_ids
    config = GenerationConfig(max_new_tokens=16, eos_token_id=ends, pad_token_id=0)
    for prompt, answer in zip(ids, artifact.generate(ids, max_new_tokens=16), strict=True):
        expected = artifact.module.generate(
            input_ids=torch.tensor([prompt]), generation_config=config
        )[0, len(prompt) :].tolist()
        assert answer == [token for token in expected if token not in ends]


def test_an_answer_does_not_depend_on_the_prompts_beside_it(folder: Path) -> None:
    artifact = opened(folder, "usual")
    drawn = artifact.generate_text(PROMPTS, max_new_tokens=12, temperature=1.0, seed=3)
    assert drawn == artifact.generate_text(PROMPTS, max_new_tokens=12, temperature=1.0, seed=3)
    assert drawn != artifact.generate_text(PROMPTS, max_new_tokens=12, temperature=1.0, seed=4)
    alone = artifact.generate_text(PROMPTS[:1], max_new_tokens=12, temperature=1.0, seed=3)
    assert alone == drawn[:1]


def test_pieces_add_up_to_the_answer(folder: Path) -> None:
    artifact = opened(folder, "base")
    settings = {"max_new_tokens": 40, "temperature": 3.0}
    numbers = []
    for seed in range(6):
        (expected,) = artifact.generate_text(["Hello"], seed=seed, **settings)
        pieces: list[str] = []
        assert artifact.stream_text("Hello", pieces.append, seed=seed, **settings) == expected
        assert "".join(pieces) == expected
        numbers.append(sum(bool(piece) for piece in pieces))
        stop = (expected[3:5],)
        pieces.clear()
        cut = artifact.stream_text("Hello", pieces.append, seed=seed, stop=stop, **settings)
        assert cut == expected[: expected.index(stop[0])].strip() == "".join(pieces)
    assert max(numbers) > 3
