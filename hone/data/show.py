"""Samples as the model will see them: every token, the trained ones marked, and the counts.

Called by `hone data show`. Where a row gives several samples (one for each turn, or the parts of a
long one), each is named as part of it. Trained tokens are coloured; on a console without colours
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
    """One sample; rendered with colours, or with brackets where the console has none."""

    title: str
    pieces: list[Piece]

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        yield Text(self.title, style="bold")
        yield (
            coloured(self.pieces)
            if console.color_system and not console.no_color
            else bracketed(self.pieces)
        )
        yield Text()


def show_samples(
    prepared: Joined, tokenizer: Tokenizer, count: int, start: int = 0
) -> RenderableType:
    """`count` samples from `start` on, and the table of counts, for a rich console."""
    views = [
        SampleView(_title(prepared, i), pieces(prepared, tokenizer, i))
        for i in _indices(prepared, count, start)
    ]
    return Group(*views, counts_table(prepared))


def samples_as_json(
    prepared: Joined, tokenizer: Tokenizer, count: int, start: int = 0
) -> list[dict[str, Any]]:
    """The same samples as plain values: data set, place, which part of its row, counts, text, and
    every token with id, text and trained.
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
            "text": tokenizer.decode(prepared.sample(i).segments[0].tokens.tolist()),
            "tokens": [
                {"id": p.id, "text": p.text, "trained": p.trained}
                for p in pieces(prepared, tokenizer, i)
            ],
        }
        for i in _indices(prepared, count, start)
    ]


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


def pieces(prepared: Joined, tokenizer: Tokenizer, index: int) -> list[Piece]:
    """The tokens of a sample as they are shown."""
    segment = prepared.sample(index).segments[0]
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


def _indices(prepared: Joined, count: int, start: int) -> range:
    return range(start, min(start + count, len(prepared)))
