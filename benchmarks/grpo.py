"""Learning from rewards (GRPO), Hone against TRL side by side: `python -m benchmarks.grpo --help`.

A step is sampling, scoring and the update. Both sides draw at temperature 1 from the whole
softmax, up to the same length, and end where the end token is drawn, which an untrained model does
once in as many tokens as its vocabulary has. The reward is `reward.py`, which costs nothing; the
loss is the clipped one over all tokens (DAPO's), without a KL term.
"""

import sys

from benchmarks.harness import Benchmark, Contender, run

SPLIT = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4}
CONTINUOUS = {"use_transformers_continuous_batching": True}
FP32, BF16 = {"bf16": False}, {"bf16": True}


def contenders(device: str, fast_bf16: bool) -> dict[str, Contender]:
    """All contenders of a device by name. fast_bf16: bf16 is worth a whole pass of TRL's.

    TRL's default of computing activations twice is off, which makes it faster. "8x4" trains on one
    prompt's completions at a time, which takes less memory; sampling is of all at once in each.
    """
    hone, trl = "run_hone", "run_trl"
    if device == "cuda":
        return {
            "hone": Contender(hone),
            "trl": Contender(trl, BF16),
            "trl 8x4": Contender(trl, BF16 | SPLIT),
            "trl continuous batching": Contender(trl, BF16 | CONTINUOUS, extra=True),
        }
    few = not fast_bf16
    return {
        "hone": Contender(hone),
        "hone fp32": Contender(hone, {"precision": "fp32"}),
        "trl": Contender(trl, FP32),
        "trl 8x4": Contender(trl, FP32 | SPLIT),
        "trl bf16": Contender(trl, BF16, few=few),
        "trl bf16 8x4": Contender(trl, BF16 | SPLIT, few=few, extra=True),
        "trl bf16 weights": Contender(trl, FP32 | {"weights": "bfloat16"}, few=few, extra=True),
    }


GRPO = Benchmark(
    method="grpo",
    description=__doc__,
    columns=(
        *("steps/h", "sampled tokens/s", "s/step", "memory", "imports", "to step 1", "pass"),
        *("steps", "spread"),
    ),
    rate="steps an hour",
    sizes={"quick": (12, 4), "cpu": (24, 4), "cuda": (160, 4)},
    contenders=contenders,
    sampled=True,
)

if __name__ == "__main__":
    sys.exit(run(GRPO))
