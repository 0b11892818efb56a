"""Supervised fine-tuning, Hone against TRL side by side: `python -m benchmarks.sft --help`."""

import sys

from benchmarks.harness import Benchmark, Contender, run

GROUPED = {"train_sampling_strategy": "group_by_length"}
ALONE = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
REBALANCED = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "train_sampling_strategy": "batch_rebalance",
}
FP32, BF16 = {"bf16": False}, {"bf16": True}


def contenders(device: str, fast_bf16: bool) -> dict[str, Contender]:
    """All contenders of a device by name. fast_bf16: bf16 is worth a whole pass of TRL's.

    TRL's default of computing activations twice is off, which makes it faster; "trl checkpointed"
    has it on. The extras are ways to cut padding that a person has to know of.
    """
    hone, trl = "run_hone", "run_trl"
    if device == "cuda":
        return {
            "hone": Contender(hone),
            "trl": Contender(trl, BF16),
            "trl length-grouped": Contender(trl, BF16 | GROUPED),
        }
    few = not fast_bf16
    return {
        "hone": Contender(hone),
        "hone fp32": Contender(hone, {"precision": "fp32"}),
        "trl": Contender(trl, FP32),
        "trl length-grouped": Contender(trl, FP32 | GROUPED),
        "trl bf16": Contender(trl, BF16, few=few),
        "trl bf16 length-grouped": Contender(trl, BF16 | GROUPED, few=few, extra=True),
        "trl bf16 weights": Contender(trl, FP32 | {"weights": "bfloat16"}, few=few, extra=True),
        "trl bf16 rebalanced": Contender(trl, BF16 | REBALANCED, few=few, extra=True),
        "trl rebalanced": Contender(trl, FP32 | REBALANCED, extra=True),
        "trl 1x8": Contender(trl, FP32 | ALONE, extra=True),
        "trl checkpointed": Contender(trl, FP32 | {"activation_checkpointing": True}, extra=True),
    }


SFT = Benchmark(
    method="sft",
    description=__doc__,
    columns=(
        *("samples/s", "tokens/s", "s/step", "memory", "imports", "to step 1", "pass", "steps"),
        *("final loss", "spread"),
    ),
    rate="samples a second",
    sizes={"quick": (24, 8), "cpu": (320, 8), "cuda": (1280, 32)},
    contenders=contenders,
)

if __name__ == "__main__":
    sys.exit(run(SFT))
