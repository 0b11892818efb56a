"""Samples as the model will see them: every token, the trained ones marked, and the counts.

Called by `hone data show`. Where a row gives several samples (one for each turn, or the parts of a
long one), each is named as part of it. Of a pair the prompt is shown once, then each side below its
name. Trained tokens are coloured; on a console without colours
each stands in brackets. Neighbouring tokens differ in brightness (or are parted by a bar), a
newline is shown as `↵`, and the pieces of a character that is split over several tokens appear as
the vocabulary writes them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.table import Table
from rich.text import Text

from hone.data.chat import Tokenizer
from hone.data.joined import Joined
from hone.data.prepared import SEGMENTS
from hone.recipe.data import SampleKind
from hone.records import Sample, Segment

NEWLINE = "↵"
STYLES = {
    True: ("bold green", "green"),
    False: ("default", "bright_black"),
}  # trained, and not: in turns
SPECIAL = "reverse"
FALLBACK_BYTE = re.compile("<0x([0-7][0-9A-F])>")  # a byte that is a character by itself
LABELS = {
    "rows": "rows read",
    "samples": "samples",
    "tokens": "tokens",
    "trained_tokens": "trained tokens",
    "truncated": "cut to max_tokens",
    "split_turns": "conversations split: a sample for each turn",
    "split_overlong": "split: longer than max_tokens",
    "dropped_overlong": "dropped: too long",
    "dropped_equal": "dropped: both sides equal",
    "dropped_untrained": "dropped: nothing to train",
    "skipped_rows": "skipped: bad rows",
    "straddling_tokens": "tokens across a completion's first border",
}


@dataclass(frozen=True)
class Piece:
    """One token as it is shown."""

    id: int
    text: str
    trained: bool
    special: bool


@dataclass(frozen=True)
class SampleView:
    """One sample; rendered with colours, or with brackets where the console has none. segments:
    what stands above each, and its tokens.
    """

    title: str
    segments: list[tuple[str, list[Piece]]]

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        yield Text(self.title, style="bold")
        for heading, pieces in self.segments:
            if heading:
                yield Text(heading, style="bold")
            yield (
                coloured(pieces)
                if console.color_system and not console.no_color
                else bracketed(pieces)
            )
        yield Text()


def show_samples(
    prepared: Joined, tokenizer: Tokenizer, count: int, start: int = 0
) -> RenderableType:
    """`count` samples from `start` on, and the table of counts, for a rich console."""
    views = [
        SampleView(_title(prepared, i), _headed(prepared, tokenizer, i))
        for i in _indices(prepared, count, start)
    ]
    return Group(*views, counts_table(prepared))


def samples_as_json(
    prepared: Joined, tokenizer: Tokenizer, count: int, start: int = 0
) -> list[dict[str, Any]]:
    """The same samples as plain values: data set, place, which part of its row, counts, text, and
    every token with id, text and trained; of a tree, text and tokens of each of its `segments`,
    with the segment's role (`prompt`, `chosen`, `rejected`, `completion`).
    """
    return [
        {
            "sample": i,
            "set": prepared.set_of(i),
            "place": prepared.place(i),
            "part": prepared.part(i)[0],
            "parts": prepared.part(i)[1],
            "num_tokens": int(prepared.lengths[i]),
            "num_trained": int(prepared.trained[i]),
            **_contents_as_json(prepared.sample(i), prepared.kind, tokenizer),
        }
        for i in _indices(prepared, count, start)
    ]


def _contents_as_json(sample: Sample, kind: SampleKind, tokenizer: Tokenizer) -> dict[str, Any]:
    described = [_segment_as_json(segment, tokenizer) for segment in sample.segments]
    if kind == "supervised":
        return described[0]
    counted = [
        {
            "role": role,
            "num_tokens": len(segment.tokens),
            "num_trained": int(segment.trained.sum()),
            **({"label": _label(segment)} if segment.constants else {}),
            **values,
        }
        for role, segment, values in zip(SEGMENTS[kind], sample.segments, described, strict=True)
    ]
    return {"segments": counted}


def _segment_as_json(segment: Segment, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "text": tokenizer.decode(segment.tokens.tolist()),
        "tokens": [
            {"id": p.id, "text": p.text, "trained": p.trained} for p in pieces(segment, tokenizer)
        ],
    }


def counts_table(prepared: Joined) -> Table:
    """The report of the preparation, with the share of tokens that are trained."""
    table = Table(show_header=False, box=None)
    table.add_column(style="dim")
    table.add_column(justify="right")
    for name, label in LABELS.items():
        table.add_row(label, f"{prepared.report[name]:,}")
    share = prepared.report["trained_tokens"] / prepared.report["tokens"]
    table.add_row("share of tokens trained", f"{share:.1%}")
    lengths = prepared.lengths
    table.add_row(
        "tokens in the shortest and longest sample", f"{lengths.min():,} and {lengths.max():,}"
    )
    for message in prepared.skipped:
        table.add_row("skipped", message)
    return table


def pieces(segment: Segment, tokenizer: Tokenizer) -> list[Piece]:
    """The tokens of a segment as they are shown."""
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
    decoder = tokenizer.backend_tokenizer.decoder
    byte_level = decoder is not None and b"ByteLevel" in decoder.__getstate__()
    return [
        Piece(
            token,
            _token_text(tokenizer, token, byte_level and token not in special),
            trained,
            token in special,
        )
        for token, trained in zip(segment.tokens.tolist(), segment.trained.tolist(), strict=True)
    ]


def _token_text(tokenizer: Tokenizer, token: int, byte_level: bool) -> str:
    """The characters of one token; as in the vocabulary where it is only part of a character."""
    written = str(tokenizer.convert_ids_to_tokens(token))
    if not byte_level:
        byte = FALLBACK_BYTE.fullmatch(written)
        return chr(int(byte[1], 16)) if byte else written.replace("\u2581", " ")
    text = str(tokenizer.backend_tokenizer.decode([token], skip_special_tokens=False))
    return written if "\ufffd" in text else text


def coloured(pieces: list[Piece]) -> Text:
    """Trained tokens green, neighbours in two shades, special tokens reversed."""
    text = Text()
    for number, piece in enumerate(pieces):
        style = STYLES[piece.trained][number % 2]
        text.append(_visible(piece.text), f"{style} {SPECIAL}" if piece.special else style)
    return text


def bracketed(pieces: list[Piece]) -> Text:
    """Each trained token in brackets, the others parted by bars."""
    text = Text()
    for number, piece in enumerate(pieces):
        body = _visible(piece.text)
        bar = number > 0 and not piece.trained and not pieces[number - 1].trained
        text.append(f"[{body}]" if piece.trained else f"{'|' if bar else ''}{body}")
    return text


def _visible(text: str) -> str:
    return text.replace("\n", f"{NEWLINE}\n").replace("\r", "␍").replace("\t", "→\t")


def _title(prepared: Joined, index: int) -> str:
    tokens, trained = prepared.lengths[index], prepared.trained[index]
    part, parts = prepared.part(index)
    place = prepared.place(index) + (f", part {part} of {parts}" if parts > 1 else "")
    among = f", data[{prepared.set_of(index)}]" if len(prepared.sets) > 1 else ""
    return f"sample {index} of {len(prepared)}{among}, {place}: {tokens} tokens, {trained} trained"


def _headed(prepared: Joined, tokenizer: Tokenizer, index: int) -> list[tuple[str, list[Piece]]]:
    """The segments, the sides of a tree each below its name."""
    return [
        (_heading(role, segment) if segment.parent >= 0 else "", pieces(segment, tokenizer))
        for role, segment in zip(
            SEGMENTS[prepared.kind], prepared.sample(index).segments, strict=True
        )
    ]


def _heading(role: str, segment: Segment) -> str:
    wanted = ("" if _label(segment) else "not ") + "wanted, " if segment.constants else ""
    return f"{role}: {wanted}{len(segment.tokens)} tokens, {segment.trained.sum()} trained"


def _label(segment: Segment) -> bool:
    """Whether an answer with a label is wanted."""
    return bool(segment.constants["label"][0])


def _indices(prepared: Joined, count: int, start: int) -> range:
    return range(start, min(start + count, len(prepared)))
