"""What stands in the data twice: equal samples, and held-out samples that are trained on.

Called by `stages/data.py` with prepared samples; `row_hashes.py` finds equal rows of files with the
same functions. Samples are compared by a 64-bit hash of their tokens: computed in arrays, so that a
hundred million tokens take seconds, and wrong less than once in ten million data sets of a million
samples. Left out: samples that are only alike.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hone.data.joined import Joined
from hone.data.prepared import Prepared
from hone.seeds import Indices, derive_seed

Words = npt.NDArray[np.uint64]

TOKENS_AT_ONCE = 1 << 20
SMALLEST_PROMPT = 2  # tokens; the first one is never trained, so alone it tells nothing


@dataclass(frozen=True)
class Found:
    """How many samples, and the first of them, each with the sample that it repeats."""

    count: int = 0
    pairs: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Repeats:
    """What repeats what, by the samples' numbers.

    repeated: training samples that equal an earlier one. trained: held-out samples that equal a
    training sample. asked: held-out samples whose prompt (the tokens before the first trained one)
    is the prompt of a training sample.
    """

    repeated: Found
    trained: Found
    asked: Found


def find_repeats(
    training: Joined, trained: Indices, evaluation: Joined, held_out: Indices
) -> Repeats:
    """Compares the training samples numbered in `trained` with each other and with those of
    `evaluation` numbered in `held_out`, which may be empty.
    """
    theirs = hashes_of(training)
    repeated = found_again(theirs.whole[trained], trained)
    if not len(held_out):
        return Repeats(repeated, Found(), Found())
    mine = theirs if evaluation is training else hashes_of(evaluation)
    whole = found_in(mine.whole[held_out], held_out, theirs.whole[trained], trained)
    asked = held_out[mine.prompt_lengths[held_out] >= SMALLEST_PROMPT]
    prompts = found_in(mine.prompts[asked], asked, theirs.prompts[trained], trained)
    return Repeats(repeated, whole, prompts)


def found_again(hashes: Words, samples: Indices, most: int = 1) -> Found:
    """Samples with a hash that an earlier one has; at most `most` of them are named."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    later = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
    named = later[np.argsort(order[later])[:most]]
    pairs = zip(samples[order[named]].tolist(), samples[order[named - 1]].tolist(), strict=True)
    return Found(len(later), tuple(pairs))


def found_in(mine: Words, samples: Indices, theirs: Words, others: Indices, most: int = 1) -> Found:
    """Samples with a hash that is among `theirs`; at most `most` of them are named."""
    if not len(theirs):
        return Found()
    order = np.argsort(theirs, kind="stable")
    ordered = theirs[order]
    places = np.minimum(np.searchsorted(ordered, mine), len(theirs) - 1)
    same = np.flatnonzero(ordered[places] == mine)
    named = same[:most]
    pairs = zip(samples[named].tolist(), others[order[places[named]]].tolist(), strict=True)
    return Found(len(same), tuple(pairs))


class SampleHashes(NamedTuple):
    """whole: (N,) of all tokens, of trees also of their borders and labels. prompts: (N,) of the
    tokens before the first trained one. prompt_lengths: (N,) int64, how many these are.
    """

    whole: Words
    prompts: Words
    prompt_lengths: npt.NDArray[np.int64]


def hashes_of(joined: Joined) -> SampleHashes:
    """The hashes of all samples.

    A hash is the sum of (mixed token) x (a random odd number of its position) modulo 2^64, mixed
    with the length. That is a multilinear family (Lemire & Kaser 2012, arXiv:1202.4961).
    """
    parts = [
        _hashes_of_piece(prepared, begin, end)
        for prepared in joined.sets
        for begin, end in _pieces(prepared)
    ]
    return SampleHashes(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _hashes_of_piece(prepared: Prepared, begin: int, end: int) -> SampleHashes:
    offsets = prepared.arrays["offsets"][begin : end + 1]
    first, last = int(offsets[0]), int(offsets[-1])
    starts = (offsets[:-1] - first).astype(np.int64)
    lengths = np.diff(offsets).astype(np.int64)
    positions = np.arange(last - first) - np.repeat(starts, lengths)
    factors = _random_words(int(lengths.max())) | np.uint64(1)
    terms = _mixed(np.asarray(prepared.arrays["tokens"][first:last])) * factors[positions]
    trained = np.asarray(prepared.arrays["trained"][first:last])
    running = np.cumsum(trained, dtype=np.int64)
    before = running[starts] - trained[starts]
    in_prompt = running == np.repeat(before, lengths)  # nothing is trained up to here
    prompt_lengths = np.add.reduceat(in_prompt, starts, dtype=np.int64)
    prompt_terms = np.where(in_prompt, terms, np.uint64(0))
    whole = _mixed(np.add.reduceat(terms, starts) ^ lengths.astype(np.uint64))
    return SampleHashes(
        _of_trees(whole, prepared, begin, end),
        _mixed(np.add.reduceat(prompt_terms, starts) ^ prompt_lengths.astype(np.uint64)),
        prompt_lengths,
    )


def _of_trees(whole: Words, prepared: Prepared, begin: int, end: int) -> Words:
    """Hashes of tokens, mixed with where the segments of trees end and with their labels."""
    if prepared.kind == "supervised":
        return whole
    columns = list(prepared.segments[begin:end].T)
    if prepared.kind == "unpaired":
        columns.append(prepared.arrays["labels"][begin:end])
    for column in columns:
        whole = _mixed(whole ^ _mixed(column))
    return whole


def _pieces(prepared: Prepared) -> Iterator[tuple[int, int]]:
    """Ranges of samples of about a million tokens, or of a single longer one."""
    offsets = prepared.arrays["offsets"]
    begin = 0
    while begin < len(prepared):
        end = int(np.searchsorted(offsets, offsets[begin] + TOKENS_AT_ONCE, side="right")) - 1
        end = min(max(end, begin + 1), len(prepared))
        yield begin, end
        begin = end


def _random_words(count: int) -> Words:
    key = np.array([derive_seed("hash of samples"), 0], dtype=np.uint64)
    return np.random.Philox(key=key).random_raw(count).astype(np.uint64)


def _mixed(values: npt.NDArray[Any]) -> Words:
    """The finalizer of SplitMix64 (Steele, Lea & Flood 2014): every bit depends on every bit."""
    mixed = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
