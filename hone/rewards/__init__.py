"""Rewards: environments and a person's functions, called in a pool of processes.

`pool.py` is what a stage uses: a `Scorer` takes groups and gives back scores. `worker.py` is the
process that calls what belongs to the person, `functions.py` calls a function as TRL does. A call
that raises, hangs, ends its process or returns no number is recorded on the rollouts that it was
for; it is never a reward of zero.
"""
