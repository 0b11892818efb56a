"""What the runs of `test_every_field.py` stand on: rows, models, adapters, and stores."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BloomConfig, LlamaConfig

from hone.adapters import add_lora
from hone.data.tokenizer_training import train_tokenizer
from hone.models import read_quantised, read_weights, save_model
from hone.recipe.training import Lora


def make_rows(first: int, count: int, place: str = "before") -> list[dict[str, Any]]:
    """Rows that can be read in every format, with other columns for each of them."""

    def chat(question: str, answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    def said(question: str, answer: str) -> list[dict[str, str]]:
        return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]

    rows = []
    for n in range(first, first + count):
        more = " and so on" * (n % 4)
        rows.append(
            {
                "text": f"{n} is {place} {n + 1}{more}.",
                "body": f"After {n} comes {n + 1}{more}.",
                "prompt": f"After {n} comes",
                "question": f"What comes after {n}?",
                "completion": f" {n + 1}{more}",
                "answer": f" It is {n + 1}{more}",
                "messages": chat(f"What is after {n}?", f"It is {n + 1}{more}."),
                "dialogue": chat(f"Count on from {n}.", f"{n + 1}{more}."),
                "conversations": said(f"What is after {n}?", f"{n + 1}{more}"),
                "turns": said(f"Which one follows {n}?", f"{n + 1}{more}"),
                "instruction": f"Say what follows {n}.",
                "task": f"Count on from {n}.",
                "input": f"{n}",
                "context": f"The number is {n}.",
                "output": f"{n + 1}{more}",
                "reply": f"That is {n + 1}{more}",
                "chosen": f" {n + 1}{more}",
                "better": f" the number {n + 1}{more}",
                "rejected": f" {n + 2}",
                "worse": f" nothing{more}",
                "asked": chat(f"What is after {n}?", "")[:1],
                "good": chat("", f"It is {n + 1}{more}.")[1:],
                "bad": chat("", f"It is {n}.")[1:],
                "label": n % 2 == 0,
                "verdict": n % 3 == 0,
                "persona": "You can count.",
                "functions": [{"name": "count", "parameters": {"from": n}}],
            }
        )
    return rows


def write_rows(folder: Path) -> None:
    """rows.jsonl, other.jsonl, broken.jsonl, and two chat templates."""
    rows, other = make_rows(10, 16), make_rows(50, 12, place="ahead of")
    for name, written in (("rows", rows), ("other", other), ("broken", [*rows, {"a": 1}])):
        lines = "".join(json.dumps(row) + "\n" for row in written)
        (folder / f"{name}.jsonl").write_text(lines)
    (folder / "constant.yaml").write_text("schedule: constant\n")
    (folder / "brackets.jinja").write_text(
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    shown = "{% if tools %}{{ tools | tojson }}{% endif %}"
    (folder / "tools.jinja").write_text(shown + (folder / "brackets.jinja").read_text())


def write_models(folder: Path) -> None:
    """A Llama and a Bloom, which cannot use the forest, with a template that is not ChatML."""
    tokenizer = train_tokenizer([row["text"] for row in make_rows(0, 40)], 300)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    rows = {"vocab_size": len(tokenizer), "hidden_size": 16}
    heads = {"num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    for name, config in {
        "llama": LlamaConfig(**rows, **heads),
        "bloom": BloomConfig(**rows, n_layer=1, n_head=2),
    }.items():
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    pickled = shutil.copytree(folder / "llama", folder / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()


def write_adapters(folder: Path) -> None:
    """Adapters on the Llama and on its packed weights, with the model's tokenizer beside them."""
    base = str(folder / "llama")
    plain = read_weights(base, torch.float32)
    packed = read_quantised(base, 4, torch.float32, torch.device("cpu"))
    for name, weights in (("lora", plain), ("qlora", packed)):
        torch.manual_seed(1)
        model = add_lora(weights, Lora(rank=2))
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if "lora_B" in parameter_name:
                    parameter.normal_(std=0.1)
        place = folder / f"adapted-{name}"
        place.mkdir()
        save_model(model, place)
        for path in (folder / "llama").iterdir():
            if path.name.startswith(("token", "chat_template")):
                shutil.copy(path, place)


def write_stores(folder: Path) -> None:
    """Two empty stores of MLflow, which takes seconds to make one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's own use of its database library
        MlflowClient(tracking_uri=f"sqlite:///{folder / 'store.db'}")
    shutil.copy(folder / "store.db", folder / "other.db")


def write_hub_data(folder: Path) -> None:
    """The data set `acme/tiny` with the splits train and test, as if it had been downloaded."""
    import datasets

    place = folder / "hub" / "acme___tiny" / "default" / "0.0.0" / "0123456789abcdef"
    place.mkdir(parents=True)
    splits = {"train": make_rows(10, 16), "test": make_rows(70, 16)}
    info = datasets.DatasetInfo(
        config_name="default", dataset_name="tiny", version="0.0.0", splits=datasets.SplitDict()
    )
    for name, rows in splits.items():
        made = datasets.Dataset.from_list(rows)
        with datasets.arrow_writer.ArrowWriter(path=str(place / f"tiny-{name}.arrow")) as writer:
            writer.write_table(made.data.table)
            writer.finalize()
        info.features = made.features
        info.splits.add(datasets.SplitInfo(name, num_examples=len(rows), dataset_name="tiny"))
    info.write_to_directory(str(place))
