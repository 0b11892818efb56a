"""Learning from pairs (DPO), Hone against TRL side by side: `python -m benchmarks.dpo --help`.

The reference log-probabilities are part of the work: where they are computed before step 1, each
pair is charged its share of that time. Data, model and learning settings are the same for all.
"""

import sys

from benchmarks.harness import Benchmark, Contender, run

PRECOMPUTED = {"precompute_ref_log_probs": True}
GROUPED = {"train_sampling_strategy": "group_by_length"}
SPLIT = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
FP32, BF16 = {"bf16": False}, {"bf16": True}


def contenders(device: str, fast_bf16: bool) -> dict[str, Contender]:
    """All contenders of a device by name. fast_bf16: bf16 is worth a whole pass of TRL's.

    TRL's default of computing activations twice is off, which makes it faster. Without
    "precomputed" it computes the reference within every step. "length-grouped" has its pairs sorted
    by length before, so that references too are computed with little padding.
    """
    hone, trl = "run_hone", "run_trl"
    if device == "cuda":
        return {
            "hone": Contender(hone),
            "trl": Contender(trl, BF16),
            "trl precomputed": Contender(trl, BF16 | PRECOMPUTED),
            "trl precomputed, length-grouped": Contender(trl, BF16 | PRECOMPUTED | GROUPED),
        }
    few = not fast_bf16
    grouped = PRECOMPUTED | GROUPED
    return {
        "hone": Contender(hone),
        "hone fp32": Contender(hone, {"precision": "fp32"}),
        "trl": Contender(trl, FP32, few=True),
        "trl precomputed": Contender(trl, FP32 | PRECOMPUTED),
        "trl precomputed, length-grouped": Contender(trl, FP32 | grouped),
        "trl bf16 precomputed, length-grouped": Contender(trl, BF16 | grouped, few=few),
        "trl bf16 2x4 precomputed, length-grouped": Contender(
            trl, BF16 | grouped | SPLIT, few=few, extra=True
        ),
        "trl 2x4 precomputed, length-grouped": Contender(trl, FP32 | grouped | SPLIT, extra=True),
    }


DPO = Benchmark(
    method="dpo",
    description=__doc__,
    columns=(
        *("pairs/s", "tokens/s", "s/step", "memory", "references", "to step 1", "pass", "steps"),
        *("final loss", "spread"),
    ),
    rate="pairs a second",
    sizes={"quick": (24, 8), "cpu": (160, 8), "cuda": (1280, 32)},
    contenders=contenders,
)

if __name__ == "__main__":
    sys.exit(run(DPO))
