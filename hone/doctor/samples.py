"""What the checks are made on: a person's rows or built-in conversations, and random tokens.

`read_examples` takes the first rows of a file through the same readers as training; the template
checks use the examples, the numerical checks the samples and trees that are made of them.
"""

from collections.abc import Sequence
from itertools import islice

import numpy as np

from hone.data.chat import Renderer, Tokens
from hone.data.formats import Conversation, Example, Reading, recognise, sides_of
from hone.data.overlong import shortened
from hone.data.rows import BadRow, RowError
from hone.data.sources import open_source
from hone.errors import UserError
from hone.recipe.data import Data
from hone.records import Sample, Segment
from hone.seeds import derive_seed

ROWS_READ = 200
NUM_SAMPLES = 8
COMPLETIONS = 3  # on each shared prompt
SHORTEST = 16  # tokens: a few to read and a few to train

CONVERSATIONS = (
    (("user", "What is the capital of Peru?"), ("assistant", "Lima.")),
    (
        ("system", "You answer in one sentence."),
        ("user", "Why is the sky blue?"),
        ("assistant", "Because air scatters short waves of light more than long ones."),
    ),
    (
        ("user", "Count to three."),
        ("assistant", "1, 2, 3"),
        ("user", "And back?\n\nOne number a line, please."),
        ("assistant", "3\n2\n1"),
    ),
    (
        ("user", "Write a function that adds two numbers."),
        ("assistant", "def add(a, b):\n    return a + b"),
        ("user", "Thank you!"),
        ("assistant", "You are welcome."),
        ("user", "What does it give for 2 and 3?"),
        ("assistant", "It returns 5."),
    ),
)


def built_in_examples() -> list[Example]:
    """Short conversations of one to three turns, one of them with a system message."""
    return [
        Conversation([{"role": role, "content": content} for role, content in turns])
        for turns in CONVERSATIONS
    ]


def read_examples(path: str) -> list[Example]:
    """The examples of the first rows of a data source; rows that cannot be read are passed over.

    Raises UserError where none can be used.
    """
    data = Data(path=path)
    source = open_source(data.path, data.split)
    reading: Reading | None = None
    examples: list[Example] = []
    fault = "there are no rows"
    for row in islice(source.rows(), ROWS_READ):
        if isinstance(row, BadRow):
            fault = row.message
            continue
        try:
            reading = reading or recognise(list(row.values), data, kind=None)
            examples += sides_of(reading.example(row.values, "completions"))
        except RowError as error:
            fault = error.message
    if not examples:
        raise UserError(
            f"no row of `{path}` can be used: {fault}", hint=f"see what is in it: head {path}"
        )
    return examples


def make_samples(
    examples: Sequence[Example], renderer: Renderer, longest: int, vocabulary: int, seed: int
) -> list[Sample]:
    """`NUM_SAMPLES` samples of at most `longest` tokens: rendered examples, the longest first, and
    random tokens in the place of those that are missing or cannot be rendered.
    """
    rendered = sorted(render_all(examples, renderer), key=lambda t: len(t.ids), reverse=True)
    found: list[Segment] = []
    for tokens in rendered[: NUM_SAMPLES - 2]:
        limit = longest - len(found) % 4 * (longest // 8)  # equal lengths need no padding
        if len(tokens.ids) > limit:
            tokens = shortened(tokens, limit, "keep_end", renderer.begin_ids)
        if tokens.trained[1:].any():
            found.append(Segment(tokens.ids, tokens.trained))
    draw = np.random.Generator(np.random.Philox(derive_seed(seed, "doctor", "tokens")))
    while len(found) < NUM_SAMPLES:
        length = int(draw.integers(longest // 2, longest + 1))
        ids = draw.integers(0, vocabulary, length).astype(np.int32)
        found.append(Segment(ids, np.arange(length) >= length // 4))
    return [Sample(n, (segment,)) for n, segment in enumerate(found)]


def render_all(examples: Sequence[Example], renderer: Renderer) -> list[Tokens]:
    """The tokens of all examples that the template can render."""
    found: list[Tokens] = []
    for example in examples:
        try:
            found += renderer.samples(example)
        except UserError:
            continue  # the template checks tell it
    return found


def make_trees(samples: Sequence[Sample], count: int = 2) -> list[Sample]:
    """Prompts of the first samples, each with the completions of as many samples from there on."""
    parts = [_parted(sample.segments[0]) for sample in samples]
    trees = []
    for n in range(count):
        completions = [parts[(n + k) % len(parts)][1] for k in range(COMPLETIONS)]
        trees.append(Sample(n, (parts[n][0], *completions)))
    return trees


def _parted(segment: Segment) -> tuple[Segment, Segment]:
    """The prompt, where nothing is trained, and the rest, which hangs on it."""
    first = int(np.flatnonzero(segment.trained)[0])
    border = first if first > 1 else max(1, len(segment.tokens) // 2)
    prompt = Segment(segment.tokens[:border], np.zeros(border, dtype=bool))
    return prompt, Segment(segment.tokens[border:], segment.trained[border:], parent=0)
