"""Whether a training that was stopped after two steps ends in the bytes of one that never was.

Both go through `fit` with real checkpoints: three steps of an adapter with dropout. Then the second
checkpoint is loaded as `hone resume` loads it, and the third step is made again.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import torch

from hone.checkpoints import CheckpointState, step_folder
from hone.device import Precision
from hone.doctor.findings import Check, compare, count_different
from hone.fit import fit, restore
from hone.losses import LOSSES
from hone.metrics import canonical_metrics
from hone.optim import make_optimizer
from hone.recipe.data import Data
from hone.recipe.schema import Sft
from hone.recipe.training import Checkpoint, Lora
from hone.records import Sample
from hone.stages.start import Start, build_model
from hone.training import Training

STEPS = 3
STOPPED_AT = 2
BATCH = 2  # samples a step
Files = dict[str, bytes]


def resume_checks(
    start: Start,
    samples: Sequence[Sample],
    folder: Path,
    *,
    precision: Precision,
    device: torch.device,
    layout: str,
    seed: int,
) -> Iterator[Check]:
    """Three steps against two and one. folder: an empty one, for the checkpoints of both."""
    settings = Sft(
        data=Data(path="doctor"),
        steps=STEPS,
        adapter=Lora(rank=8, dropout=0.1),
        checkpoint=Checkpoint(every=STOPPED_AT),
    )

    def train(place: Path, checkpoint: Path | None) -> Files:
        (place / "checkpoints").mkdir(parents=True, exist_ok=True)
        model = build_model(
            start,
            checkpoint,
            settings.adapter,
            folder=place,
            precision=precision,
            device=device,
            layout=layout,
            seed=(seed, 0),
        )
        training = Training(
            model=model,
            optimizer=make_optimizer(model.module, settings.optimizer),
            loss=LOSSES["sft"],
            settings=settings,
            folder=place,
            seed=seed,
            stage=0,
            total_steps=STEPS,
            samples_of=lambda step: samples_of(samples, step),
            held_out=(),
            token_budget=sum(sample.num_tokens for sample in samples),
            epoch_of=float,
        )
        state = CheckpointState(step=0, evaluated=False)
        fit(training, restore(training, checkpoint) if checkpoint else state)
        return files_of(place)

    uninterrupted = cache(lambda: train(folder / "uninterrupted", None))

    def resumed() -> Files:
        uninterrupted()
        stopped = step_folder(folder / "resumed" / "checkpoints", STOPPED_AT)
        begun = step_folder(folder / "uninterrupted" / "checkpoints", STOPPED_AT)
        shutil.copytree(begun, stopped)
        shutil.copy(folder / "uninterrupted" / "metrics.jsonl", folder / "resumed")
        return train(folder / "resumed", stopped)

    yield same_bytes_check(resumed, uninterrupted)


def same_bytes_check(resumed: Callable[[], Files], uninterrupted: Callable[[], Files]) -> Check:
    """The check that two trainings left the same files."""
    return compare(
        "resume",
        f"files that differ: stopped after step {STOPPED_AT} and resumed, never stopped",
        resumed,
        uninterrupted,
        count_different,
        0.0,
    )


def samples_of(samples: Sequence[Sample], step: int) -> list[Sample]:
    """The samples of step 1, 2, ..., in turns."""
    return [samples[((step - 1) * BATCH + n) % len(samples)] for n in range(BATCH)]


def files_of(folder: Path) -> Files:
    """Weights and optimizer state after the last step, and the metrics without clock times."""
    last = step_folder(folder / "checkpoints", STEPS)
    files = {path.name: path.read_bytes() for path in sorted(last.glob("*.safetensors"))}
    return {**files, "metrics.jsonl": canonical_metrics(folder / "metrics.jsonl")}
