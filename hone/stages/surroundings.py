"""What a run's bytes depend on besides recipe and data, written into lock.json as it begins.

Called by `run.py` and `supervised.py`. What is there already holds for all later attempts, or is
compared with what they find.
"""

from typing import Any

import torch

from hone.data.sources import open_source
from hone.device import describe_device
from hone.provenance import record_files, record_model
from hone.recipe.schema import NewModel, Recipe, TrainedTokenizer
from hone.runs import Run
from hone.stages.start import Start


def lock_device(run: Run, recipe: Recipe, device: torch.device) -> list[str]:
    """Record device and seed the first time; returns, in words, how the device differs later."""
    found, locked = describe_device(device), run.read_lock_json()
    if "device" not in locked:
        run.update_lock_json({"device": found, "seed": recipe.seed})
        return []
    before: dict[str, Any] = locked["device"]
    return [
        f"{key} {before.get(key)} -> {value}"
        for key, value in found.items()
        if before.get(key) != value
    ]


def lock_base(run: Run, recipe: Recipe, start: Start) -> None:
    """Record, once, the files of the model that the first stage starts from.

    A new model is made in the run: what counts there is where its tokenizer comes from.
    """
    if "base" in run.read_lock_json():
        return
    sources: list[str] = []
    texts: list[str] = []
    if not isinstance(recipe.model, NewModel):
        adapter = str(start.adapter) if start.adapter else None
        sources = list(dict.fromkeys(s for s in (start.base, adapter, start.tokenizer) if s))
    elif isinstance(recipe.model.tokenizer, TrainedTokenizer):
        named = recipe.model.tokenizer.train_on
        texts = [named] if isinstance(named, str) else list(named)
    else:
        sources = [recipe.model.tokenizer]
    files = [path for text in texts for path in open_source(text, "train").files]
    run.update_lock_json(
        {"base": {"models": list(map(record_model, sources)), "texts": record_files(files)}}
    )
