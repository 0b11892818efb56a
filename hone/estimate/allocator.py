"""From bytes of tensors to what a process holds for them: the part that is measured, not computed.

A CPU process holds more than its tensors: the libraries' code and tables once they are used, the
tokenizer, and what glibc cannot give back between small blocks that outlive large ones. The figures
and how they were found: docs/memory.md. On CUDA torch's allocator says what tensors hold.
"""

import torch

from hone.estimate.phases import Parts

LIBRARIES = 28 * 10**6  # bytes of code and tables that are touched after the imports
TOKEN = 1_050  # bytes of a tokenizer for each of its tokens
TOP = 15 * 10**6  # free bytes at the heap's end that are not given back
HOLES = 0.4  # of the most that a forward takes: what stays resident between its blocks
# The same where blocks as large as weights come and go between activations: weights that are
# unpacked or cast, PEFT's own forward of DoRA.
HOLES_BETWEEN = 0.6
# The same with checkpointing, of what the forward would take without it: layers that are computed
# again land between what is kept.
HOLES_AGAIN = 0.45


def resident(
    parts: Parts, device: torch.device, vocabulary: int, *, file_bytes: int, mapped: int
) -> dict[str, int]:
    """Bytes of each phase above what the process held after its imports.

    file_bytes: of the weights in their files; mapped: of these, what stays mapped beside the
    weights.
    """
    if device.type == "cuda":
        found = {name: each.standing + each.transient for name, each in parts.phases.items()}
        return {"load": parts.weights + parts.adapter, **found}
    constant = LIBRARIES + TOKEN * vocabulary
    cast = parts.weights if parts.weights < file_bytes else 0
    found = {"load": constant + file_bytes + cast}
    # Blocks of a step, free after it and not given back.
    kept: float = parts.phases["forward"].transient
    holes = (HOLES_BETWEEN if parts.between else HOLES) * kept
    if parts.recomputes:
        kept = holes = HOLES_AGAIN * parts.whole_forward
    after_sampling = parts.phases["sampling"].transient if "sampling" in parts.phases else 0
    beside = {
        "forward": holes + after_sampling,
        "backward": holes + after_sampling,
        "update": kept,
        "save": kept,
    }
    for name, each in parts.phases.items():
        free = beside.get(name, HOLES * each.transient)
        found[name] = int(constant + mapped + each.standing + each.transient + TOP + free)
    return found
