"""Keys and values of sequences that grow, and attention of each sequence's next token.

The prompts' keys and values are computed by the forest's attention in one flat row, and kept once
for all completions that hang on them; each completion keeps only those of its own tokens. A step
computes the scores of both, takes one softmax over them together, and adds up both parts. Used by
`sampler.py`.

Shapes: B sequences, N prompts, W most sequences of a prompt, T tokens of a row (B of them real),
H query heads, K key heads, D head size, P longest prompt, L longest completion.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hone.attention import attend_spans
from hone.forest import Span

LENGTH_MULTIPLE = 64  # tokens by which room for keys and values grows


class KeyValues:
    """Keys and values of all layers, (rows, K, length, D) each, in the order of the layers' calls.

    Rows are filled from 0 on; room grows as it is asked for. On a CPU they are kept in fp32, in
    which they are used.
    """

    def __init__(self) -> None:
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.room = (0, 0)

    def reserve(self, rows: int, length: int) -> None:
        """Make room for so many rows and tokens; for more than asked where it has to grow again."""
        if rows > self.room[0]:
            rows = max(rows, 2 * self.room[0])
        length = -(-length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        before, self.room = self.room, (max(rows, self.room[0]), max(length, self.room[1]))
        if before != self.room:
            self.layers = [(self._grown(k), self._grown(v)) for k, v in self.layers]

    def _grown(self, old: torch.Tensor) -> torch.Tensor:
        # Zeros: what is masked is multiplied by 0, which makes no number of infinity.
        rows, heads, length, size = old.shape
        new = old.new_zeros(self.room[0], heads, self.room[1], size)
        new[:rows, :, :length] = old
        return new

    def of_layer(
        self, layer: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the layer that is called as the n-th. key, value: (1, K, T, D)."""
        if layer == len(self.layers):
            self.layers.append((self._empty(key), self._empty(value)))
        return self.layers[layer]

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        shape = (self.room[0], like.shape[1], self.room[1], like.shape[3])
        return like.new_zeros(shape, dtype=stored_dtype(like))

    def move(self, source: int, target: int) -> None:
        """Put one row in the place of another."""
        for pair in self.layers:
            for tensor in pair:
                tensor[target] = tensor[source]


def stored_dtype(like: torch.Tensor) -> torch.dtype:
    """The format of keys and values in which products are computed."""
    half = like.dtype in (torch.bfloat16, torch.float16)
    return torch.float32 if half and like.device.type == "cpu" else like.dtype


@dataclass
class ReadPrompts:
    """The attention of a flat row of prompts, which keeps their keys and values in `rows`."""

    store: KeyValues
    rows: Sequence[int]
    spans: tuple[Span, ...]
    layer: int = 0

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        keys, values = self.store.of_layer(self.layer, key, value)
        self.layer += 1
        for row, span in zip(self.rows, self.spans, strict=False):  # the last one may be filling
            piece = slice(span.start, span.start + span.length)
            keys[row, :, : span.length] = key[0, :, piece]
            values[row, :, : span.length] = value[0, :, piece]
        return attend_spans(query, key, value, self.spans, scaling, window=window)


class Places:
    """Which sequences hang on which prompt: for W places at each of N prompts, and back.

    prompts: the prompt's row of each sequence, (B,).
    """

    def __init__(self, prompts: Sequence[int], device: torch.device) -> None:
        members: list[list[int]] = [[] for _ in range(max(prompts) + 1)]
        for sequence, prompt in enumerate(prompts):
            members[prompt].append(sequence)
        self.prompts, self.width = len(members), max(map(len, members))
        back = [0] * len(prompts)
        filled: list[int] = []
        for n, sequences in enumerate(members):
            for place, sequence in enumerate(sequences):
                back[sequence] = n * self.width + place
            filled += sequences + [0] * (self.width - len(sequences))
        self.aligned = filled == list(range(len(prompts)))
        self.to_places = torch.tensor(filled, device=device)
        self.to_sequences = torch.tensor(back, device=device)

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """(B, K, R, D) of the sequences -> (N, K, W * R, D) of the prompts."""
        if not self.aligned:
            rows = rows.index_select(0, self.to_places)
        _, heads, repeats, size = rows.shape
        placed = rows.view(self.prompts, self.width, heads, repeats, size).transpose(1, 2)
        return placed.reshape(self.prompts, heads, self.width * repeats, size)

    def scatter(self, placed: torch.Tensor, repeats: int) -> torch.Tensor:
        """(N, K, W * R, X) of the prompts -> (B, K, R, X) of the sequences."""
        prompts, heads, _, size = placed.shape
        rows = placed.view(prompts, heads, self.width, repeats, size).transpose(1, 2)
        rows = rows.reshape(prompts * self.width, heads, repeats, size)
        return rows if self.aligned else rows.index_select(0, self.to_sequences)


class NextTokens:
    """The attention of a row that holds the next token of each of B sequences.

    prompt_lengths, lengths: tokens of each sequence's prompt, and of its own before this one, (B,).
    longest: (P, L), this token included.
    """

    def __init__(
        self,
        prompts: KeyValues,
        own: KeyValues,
        places: Places,
        prompt_lengths: torch.Tensor,
        lengths: torch.Tensor,
        longest: tuple[int, int],
    ) -> None:
        self.prompts, self.own, self.places = prompts, own, places
        self.prompt_lengths, self.lengths = prompt_lengths, lengths
        self.rows = torch.arange(len(lengths), device=lengths.device)
        self.longest = longest
        self.layer = 0
        self._biases: dict[int | None, torch.Tensor] = {}

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        with torch.autocast(query.device.type, enabled=False):
            return self._attend(query, key, value, scaling, window)

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        count, (longest_prompt, longest) = len(self.lengths), self.longest
        keys, values = self.own.of_layer(self.layer, key, value)
        keys[self.rows, :, self.lengths] = key[0, :, :count].transpose(0, 1).to(keys.dtype)
        values[self.rows, :, self.lengths] = value[0, :, :count].transpose(0, 1).to(keys.dtype)
        keys, values = keys[:count, :, :longest], values[:count, :, :longest]
        shared, shared_values = (
            tensor[: self.places.prompts, :, :longest_prompt]
            for tensor in self.prompts.of_layer(self.layer, key, value)
        )
        self.layer += 1
        heads, size = keys.shape[1], query.shape[-1]
        repeats = query.shape[1] // heads
        rows = query[0, :, :count].transpose(0, 1).to(keys.dtype)
        rows = rows.reshape(count, heads, repeats, size) * (scaling or size**-0.5)
        far = self.places.gather(rows) @ shared.transpose(2, 3)
        scores = torch.cat([self.places.scatter(far, repeats), rows @ keys.transpose(2, 3)], dim=-1)
        wide = torch.promote_types(scores.dtype, torch.float32)
        weights = (scores + self._bias(window)).softmax(-1, dtype=wide).to(keys.dtype)
        of_prompt, of_own = weights.split([longest_prompt, longest], dim=-1)
        mixed = self.places.scatter(self.places.gather(of_prompt) @ shared_values, repeats)
        mixed = mixed + of_own @ values
        out = query.new_zeros(1, query.shape[2], query.shape[1], mixed.shape[-1])
        out[0, :count] = mixed.reshape(count, -1, mixed.shape[-1])
        return out

    def _bias(self, window: int | None) -> torch.Tensor:
        """(B, 1, 1, P + L): 0 where a sequence sees, -inf where not; windows count along the
        path.
        """
        if window not in self._biases:
            device = self.lengths.device
            before, own = (torch.arange(n, device=device) for n in self.longest)
            seen_prompt = before < self.prompt_lengths[:, None]
            seen_own = own <= self.lengths[:, None]
            if window is not None:
                here = (self.prompt_lengths + self.lengths)[:, None]
                seen_prompt &= here - before < window
                seen_own &= self.lengths[:, None] - own < window
            seen = torch.cat([seen_prompt, seen_own], dim=1)[:, None, None]
            self._biases[window] = torch.zeros(seen.shape, device=device).masked_fill_(
                ~seen, float("-inf")
            )
        return self._biases[window]
