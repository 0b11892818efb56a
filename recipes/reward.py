"""Rewards for `recipes/grpo.yaml`, written as TRL's GRPOTrainer takes them.

Each is called once for a whole group: `completions` are its answers (lists with one message, since
the prompts are messages), and every column of the task comes by its name.
"""


def brief(completions, **columns):
    """1 for an answer of up to three words, less for longer ones."""
    lengths = [len(completion[0]["content"].split()) for completion in completions]
    return [min(1.0, 3 / max(1, length)) for length in lengths]
