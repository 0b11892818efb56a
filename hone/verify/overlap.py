"""What was held out and yet stands in the training data: prompts word for word, and runs of words.

Called by `learning.py`: who has seen the question has not learnt to answer it. Prompts are read
from the prepared tokens and compared as text without case, white space and special tokens, with the
training data of the stage and of all stages before it. One pass over the training data keeps
nothing but what the held-out samples ask for. Left out: prompts that are only alike, of which the
runs of words tell.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from hone.data.duplicates import SMALLEST_PROMPT
from hone.records import Sample
from hone.sampling import load_rendering
from hone.stages.tasks import Tasks
from hone.verify.subject import StageResult, Subject

GRAM = 8  # words
AT_ONCE = 1000  # samples that are decoded together
EXAMPLES = 5
SHOWN = 200  # characters of an example


@dataclass(frozen=True)
class Text:
    """What a sample says, in lower case with single blanks. prompt: before the first trained token,
    "" where nothing stands there. whole: all of it, "" for a task. place: where it came from.
    """

    prompt: str
    whole: str
    place: str


@dataclass
class Seen:
    """Which of the wanted texts a stage's training data have. prompts, wholes: those that were
    seen, with where that was first. constants: prompts of more than half of the samples, which ask
    nothing. grams: runs of words that were seen.
    """

    prompts: dict[str, str] = field(default_factory=dict)
    wholes: dict[str, str] = field(default_factory=dict)
    constants: set[str] = field(default_factory=set)
    grams: set[tuple[str, ...]] = field(default_factory=set)


@dataclass(frozen=True)
class Overlap:
    """leaked: held-out samples whose prompt is trained on, by the first stage that did, of `total`.
    examples: some of them, with the places of both. grams: the share of the held-out prompts'
    different runs of `GRAM` words that stand in training, |held-out and training| / |held-out|;
    None where no prompt is so long.
    """

    leaked: dict[str, int]
    total: int
    examples: list[dict[str, str]]
    grams: float | None

    @property
    def count(self) -> int:
        """How many leaked."""
        return sum(self.leaked.values())

    @property
    def details(self) -> dict[str, Any]:
        """What verify.json shows."""
        return {
            "leaked": self.count,
            "leaked_in": self.leaked,
            "leaked_examples": self.examples,
            f"shared_{GRAM}_grams": self.grams,
        }


_kept: WeakKeyDictionary[Subject, dict[int, Seen]] = WeakKeyDictionary()


def find_overlap(subject: Subject, stage: StageResult) -> Overlap:
    """Compare all held-out samples of a stage with what it and the stages before it trained on.

    A prompt that more than half of a stage's samples have is its template's or its system turn: as
    for samples without a prompt, the whole text counts there.
    """
    held_out = list(read_texts(subject, stage, "held_out"))
    before = subject.stages[: stage.index + 1]
    return compare(held_out, {each.name: _seen_by(subject, each) for each in before})


def _seen_by(subject: Subject, stage: StageResult) -> Seen:
    """What the training data of a stage have of all that it and later stages held out: they are
    read once for each subject.
    """
    kept = _kept.setdefault(subject, {})
    if stage.index not in kept:
        later = subject.stages[stage.index :]
        wanted = [text for each in later for text in read_texts(subject, each, "held_out")]
        kept[stage.index] = find_seen(wanted, read_texts(subject, stage, "training"))
    return kept[stage.index]


def find_seen(wanted: Sequence[Text], training: Iterable[Text]) -> Seen:
    """Look for the wanted texts in the training data of a stage."""
    prompts = {text.prompt for text in wanted if text.prompt}
    wholes = {text.whole for text in wanted if text.whole}
    grams, seen = _grams_of_prompts(wanted), Seen()
    counts, total = Counter[str](), 0
    for text in training:
        total += 1
        seen.grams |= grams.intersection(grams_of(text.whole or text.prompt))
        if text.whole in wholes:
            seen.wholes.setdefault(text.whole, text.place)
        if text.prompt in prompts:
            seen.prompts.setdefault(text.prompt, text.place)
            counts[text.prompt] += 1
    seen.constants = {prompt for prompt, count in counts.items() if 2 * count > total > 1}
    return seen


def compare(held_out: Sequence[Text], seen: Mapping[str, Seen]) -> Overlap:
    """The overlap with the training data of stages, by their names."""
    constants = set().union(*(each.constants for each in seen.values()))
    leaked, examples = Counter[str](), []
    for text in held_out:
        asks = bool(text.prompt) and text.prompt not in constants
        for name, each in seen.items():
            place = each.prompts.get(text.prompt) if asks else each.wholes.get(text.whole)
            if place is not None:
                leaked[name] += 1
                shown = (text.prompt if asks else text.whole)[:SHOWN]
                places = {"held_out": text.place, "training": place, "stage": name}
                examples.append({"text": shown, **places})
                break
    wanted = _grams_of_prompts(held_out)
    shared = wanted.intersection(set().union(*(each.grams for each in seen.values())))
    share = len(shared) / len(wanted) if wanted else None
    return Overlap(dict(leaked), len(held_out), examples[:EXAMPLES], share)


def grams_of(text: str) -> Iterator[tuple[str, ...]]:
    """All runs of `GRAM` words."""
    words = text.split()
    return zip(*(words[n:] for n in range(GRAM)), strict=False)


def normalised(text: str) -> str:
    """Without case, and with every run of white space as one blank."""
    return " ".join(text.casefold().split())


def read_texts(subject: Subject, stage: StageResult, part: str) -> Iterator[Text]:
    """What the `training` or the `held_out` samples of a stage say, in their order."""
    tokenizer = load_rendering(str(stage.model), subject.trust)[0].tokenizer
    decode = tokenizer.backend_tokenizer.decode_batch
    each = _ids_of(subject, stage, part)
    while some := list(islice(each, AT_ONCE)):
        prompts, wholes = (
            map(normalised, decode(ids, skip_special_tokens=True))
            for ids in ([prompt for prompt, _, _ in some], [whole for _, whole, _ in some])
        )
        for prompt, whole, (_, _, place) in zip(prompts, wholes, some, strict=True):
            yield Text(prompt, whole, place)


def prompt_length(sample: Sample) -> int:
    """How many tokens stand before the first trained one; 0 where that is no prompt."""
    trained = np.concatenate([segment.trained for segment in sample.segments])
    length = int(np.argmax(trained)) if trained.any() else len(trained)
    return length if length >= SMALLEST_PROMPT else 0


def _ids_of(
    subject: Subject, stage: StageResult, part: str
) -> Iterator[tuple[list[int], list[int], str]]:
    """(prompt, all tokens, place) of each sample."""
    material = subject.material(stage)
    if isinstance(material, Tasks):
        for question in getattr(material, part).questions:
            yield question.ids, [], question.task.place or f"task {question.task.index}"
        return
    view = getattr(material, part)
    for n in range(len(view)):
        sample = view[n]
        ids = list(chain.from_iterable(segment.tokens.tolist() for segment in sample.segments))
        yield ids[: prompt_length(sample)], ids, view.prepared.place(sample.index)


def _grams_of_prompts(texts: Iterable[Text]) -> set[tuple[str, ...]]:
    return set(chain.from_iterable(grams_of(text.prompt or text.whole) for text in texts))
