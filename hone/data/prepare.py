"""From a data source to arrays of tokens on disk, kept under a key of all that they depend on.

`prepare` is called by the stages, `hone check` and `hone data show`. Rows are read, rendered and
tokenised in batches and written as they come, so the memory stays small; the folder gets its name
only when it is whole. What is written is described in `prepared.py`, how a row becomes tokens in
`chat.py`.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hone.data.chat import Rendered, Renderer, Tokenizer, Tokens
from hone.data.formats import Judged, Reading, RowExample, TrainOn, recognise, sides_of
from hone.data.overlong import Overlong, all_fit, shortened, split
from hone.data.prepared import (
    COUNTS,
    LAYOUT,
    Prepared,
    array_path,
    array_sizes,
    arrays_of,
    default_cache_folder,
    open_prepared,
    split_held_out,
)
from hone.data.rows import BadRow, Row, RowError
from hone.data.sources import (
    Source,
    SourceFile,
    has_changed,
    has_settled,
    hash_files,
    open_source,
)
from hone.data.storage import ArrayWriter, remove_abandoned, whole_folder, write_shared_json
from hone.data.templates import CHATML_HINT
from hone.data.trees import Tree, are_equal, fitted, make_tree
from hone.errors import UserError
from hone.files import read_json, write_json
from hone.recipe.data import Data, SampleKind

__all__ = ["Prepared", "open_prepared", "prepare", "split_held_out"]

BATCH_ROWS = 1000
BATCH_CHARACTERS = 4_000_000  # a batch ends earlier where rows are long
NAMED_ROWS = 5  # skipped rows that are named, the others are only counted
SKIP_HINT = "correct the row, or leave such rows out: data: {path: ..., on_bad_row: skip}"

Progress = Callable[[int, int | None], None]


def prepare(
    data: Data,
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    overlong: Overlong,
    train_on: TrainOn,
    kind: SampleKind = "supervised",
    cache_folder: Path | None = None,
    progress: Progress | None = None,
    date: str | None = None,
) -> Prepared:
    """Tokenise a data source, or open what an earlier call with the same inputs made.

    kind: what a sample is; of a pair, max_tokens holds for the prompt with either side. progress is
    called with (rows read, rows in all or None). date: YYYY-MM-DD for templates that print it.
    Raises UserError for data that cannot be read or are of another kind, for a bad row where the
    recipe says stop, and when no sample is left.
    """
    if kind != "supervised" and overlong == "split":
        raise UserError(
            "`overlong: split`: an answer that is compared or judged is not divided; expected "
            "`keep_start`, `keep_end` or `drop`",
            hint="overlong: keep_start",
            exit_code=2,
        )
    folder = cache_folder or default_cache_folder()
    renderer = Renderer(tokenizer, data.template, date=date)
    source = open_source(data.path, data.split)
    files = _hashed(source, folder)
    settings = _Settings(kind, max_tokens, overlong, train_on)
    key = _key(data, renderer, files, **settings._asdict())
    found = open_prepared(key, folder)
    if found is None:
        work = _Preparation(data, renderer, source, settings)
        _write_folder(folder, key, work, files, progress)
        found = open_prepared(key, folder)
        assert found, "a folder that has just been written can be opened"
    return replace(found, sources=_described(source, files))


class _Settings(NamedTuple):
    """What a stage says about its samples."""

    kind: SampleKind
    max_tokens: int
    overlong: Overlong
    train_on: TrainOn


class _Read(NamedTuple):
    """A row with its example and the texts of that: several where a turn is a sample, one for each
    side of a pair.
    """

    row: Row
    example: RowExample
    rendered: list[Rendered]


class _Preparation:
    """Rows on their way to tokens; counts what happens to them."""

    def __init__(self, data: Data, renderer: Renderer, source: Source, settings: _Settings) -> None:
        self.data = data
        self.renderer = renderer
        self.source = source
        self.kind, self.max_tokens, self.overlong, self.train_on = settings
        self.counts: Counter[str] = Counter()
        self.skipped: list[str] = []
        self.plain = False
        self._reading: Reading | None = None

    def batches(self) -> Iterator[list[tuple[Row, Tree]]]:
        """The samples, in batches that fit in the memory."""
        batch: list[_Read] = []
        characters = 0
        for row in self.source.rows():
            self.counts["rows"] += 1
            read = self._read(row)
            if read:
                batch.append(read)
                characters += sum(len(rendered.text) for rendered in read.rendered)
            if len(batch) == BATCH_ROWS or characters > BATCH_CHARACTERS:
                yield self._tokenised(batch)
                batch, characters = [], 0
        if batch:
            yield self._tokenised(batch)

    def _read(self, row: Row | BadRow) -> "_Read | None":
        """The row's texts; None for one that cannot be used and is skipped."""
        try:
            if isinstance(row, BadRow):
                raise RowError(row.message)
            self._reading = self._reading or self._recognised(row)
            example = self._reading.example(row.values, self.train_on)
            rendered = self._render(example)
        except RowError as fault:
            self._skip(row, fault)
            return None
        self.plain = rendered[0].plain
        return _Read(row, example, rendered)

    def _render(self, example: RowExample) -> list[Rendered]:
        texts = [self.renderer.render(side, self.train_on) for side in sides_of(example)]
        if self.kind != "supervised" and any(len(of_side) > 1 for of_side in texts):
            raise RowError(
                "the answer has several turns, and the chat template writes earlier ones "
                "differently once the conversation goes on, so that it is not one text",
                hint=CHATML_HINT,
            )
        return [text for of_side in texts for text in of_side]

    def _recognised(self, row: Row) -> Reading:
        try:
            return recognise(list(row.values), self.data, self.kind)
        except UserError as fault:
            message = f"{self.source.place(row.source, row.number)}: {fault.message}"
            raise UserError(message, hint=fault.hint, exit_code=fault.exit_code) from fault

    def _skip(self, row: Row | BadRow, fault: RowError) -> None:
        message = f"{self.source.place(row.source, row.number)}: {fault.message}"
        if self.data.on_bad_row == "stop":
            raise UserError(message, hint=fault.hint or SKIP_HINT) from fault
        self.counts["skipped_rows"] += 1
        if len(self.skipped) < NAMED_ROWS:
            self.skipped.append(message)

    def _tokenised(self, batch: list["_Read"]) -> list[tuple[Row, Tree]]:
        tokens = iter(self.renderer.tokenise([each for read in batch for each in read.rendered]))
        return [
            (read.row, sample)
            for read in batch
            for sample in self._fitted(read, [next(tokens) for _ in read.rendered])
        ]

    def _fitted(self, read: "_Read", samples: list[Tokens]) -> list[Tree]:
        """The row's samples, shortened or split where they are too long; counts what is kept."""
        if self.kind != "supervised":
            tree = self._tree(read.example, samples)
            return [tree] if tree else []
        parts = [samples]
        if self.overlong == "split" and not all_fit(samples, self.max_tokens):
            (example,) = sides_of(read.example)
            try:
                parts = split(self.renderer, example, samples, self.max_tokens, self.train_on)
            except RowError as fault:
                self._skip(read.row, fault)
                return []
        self.counts["split_overlong"] += len(parts) > 1
        self.counts["split_turns"] += any(len(part) > 1 for part in parts)
        return [kept for part in parts for tokens in part if (kept := self._kept(tokens))]

    def _kept(self, tokens: Tokens) -> Tree | None:
        """The sample, shortened where it is too long; None where it is dropped."""
        if len(tokens.ids) > self.max_tokens:
            if self.overlong == "drop":
                self.counts["dropped_overlong"] += 1
                return None
            self.counts["truncated"] += 1
            tokens = shortened(tokens, self.max_tokens, self.overlong, self.renderer.begin_ids)
        return self._counted(Tree(tokens)) if self._is_trained([tokens]) else None

    def _tree(self, example: RowExample, sides: list[Tokens]) -> Tree | None:
        """The sides on their prompt, shortened where one of them is too long; None where the row is
        dropped.
        """
        if not all_fit(sides, self.max_tokens):
            if self.overlong == "drop":
                self.counts["dropped_overlong"] += 1
                return None
            self.counts["truncated"] += 1
            sides = fitted(sides, self.max_tokens, self.overlong, self.renderer.begin_ids)
        if not self._is_trained(sides):
            return None
        if are_equal(sides):
            self.counts["dropped_equal"] += 1
            return None
        return self._counted(make_tree(sides, isinstance(example, Judged) and example.label))

    def _is_trained(self, paths: list[Tokens]) -> bool:
        """Whether each of them has a token to train; counts the sample where not."""
        found = all(tokens.trained.any() for tokens in paths)
        self.counts["dropped_untrained"] += not found
        return found

    def _counted(self, tree: Tree) -> Tree:
        tokens = tree.tokens
        self.counts.update(
            samples=1,
            tokens=len(tokens.ids),
            trained_tokens=int(tokens.trained.sum()),
            straddling_tokens=tokens.straddling,
        )
        return tree

    def nothing_left(self) -> UserError:
        """Why there is no sample, cause by cause, with a hint for the most frequent one."""
        counts, limit = self.counts, self.max_tokens
        causes = {
            "skipped_rows": ("could not be used", f"the first of them: {self.skipped[:1]}"),
            "dropped_overlong": (
                f"were longer than max_tokens {limit}",
                "raise `max_tokens`, or keep a part: overlong: keep_start",
            ),
            "dropped_equal": (
                f"had the same tokens on both sides ({counts['truncated']} were cut to max_tokens "
                f"{limit})",
                f"see how their sides differ: head {self.data.path}",
            ),
            "dropped_untrained": (
                f"had no token to train ({counts['truncated']} were cut to max_tokens {limit})",
                "raise `max_tokens`, or keep the end of long samples: overlong: keep_end",
            ),
        }
        found = [f"{counts[name]} {what}" for name, (what, _) in causes.items() if counts[name]]
        _, hint = causes[max(causes, key=lambda name: counts[name])]
        return UserError(
            "no sample is left to train on: " + ", ".join([f"{counts['rows']} rows read", *found]),
            hint=hint if found else f"see what is in it: head {self.data.path}",
        )


def _write_folder(
    folder: Path, key: str, work: _Preparation, files: list[SourceFile], progress: Progress | None
) -> None:
    remove_abandoned(folder)
    try:
        with whole_folder(
            folder / key, is_whole=lambda: open_prepared(key, folder) is not None
        ) as unfinished:
            _write_arrays(unfinished, work, files, progress)
            write_json(unfinished / "manifest.json", _manifest(unfinished, key, work, files))
    except OSError as fault:
        raise UserError(
            f"the prepared data could not be written to `{folder}`: {fault.strerror or fault}",
            hint="make room there, or name another place: export HONE_CACHE=/path/with/room",
        ) from fault


def _write_arrays(
    folder: Path, work: _Preparation, files: list[SourceFile], progress: Progress | None
) -> None:
    known = [file.rows for file in files if file.rows is not None]
    total = sum(known) if len(known) == len(files) else None
    num_tokens = 0
    names = arrays_of(work.kind)
    with ArrayWriter({name: array_path(folder, name) for name in names}) as arrays:
        arrays.append("offsets", np.zeros(1, dtype=np.int64))
        for batch in work.batches():
            num_tokens = _append(arrays, batch, num_tokens)
            _append_trees(arrays, names, batch)
            if progress:
                progress(work.counts["rows"], total)
    changed = next((file for file in files if has_changed(file)), None)
    if changed:
        message = f"`{changed.path}` changed while it was read"
        raise UserError(message, hint="start again once it is complete")
    if not work.counts["samples"]:
        raise work.nothing_left()


def _append(arrays: ArrayWriter, batch: list[tuple[Row, Tree]], num_tokens: int) -> int:
    """Write a batch behind `num_tokens` tokens; returns how many there are then."""
    if not batch:
        return num_tokens
    borders = num_tokens + np.cumsum([len(tree.tokens.ids) for _, tree in batch], dtype=np.int64)
    trained = [tree.tokens.trained for _, tree in batch]
    arrays.append("tokens", np.concatenate([tree.tokens.ids for _, tree in batch]))
    arrays.append("trained", np.concatenate(trained).astype(np.uint8))
    arrays.append("offsets", borders)
    arrays.append("counts", np.array([mask.sum() for mask in trained], dtype=np.int32))
    arrays.append("rows", np.array([row.number for row, _ in batch], dtype=np.int64))
    arrays.append("files", np.array([row.source for row, _ in batch], dtype=np.int32))
    return int(borders[-1])


def _append_trees(
    arrays: ArrayWriter, names: Collection[str], batch: list[tuple[Row, Tree]]
) -> None:
    """Write where the segments of the batch's trees end, and their labels."""
    if "segments" in names:
        arrays.append("segments", np.array([tree.segments for _, tree in batch], dtype=np.int32))
    if "labels" in names:
        arrays.append("labels", np.array([tree.label for _, tree in batch], dtype=np.uint8))


def _manifest(
    folder: Path, key: str, work: _Preparation, files: list[SourceFile]
) -> dict[str, Any]:
    return {
        "layout": LAYOUT,
        "key": key,
        "kind": work.kind,
        "report": {name: work.counts[name] for name in COUNTS},
        "skipped": work.skipped,
        "plain": work.plain,
        "template": work.renderer.template,
        "date": work.renderer.date,
        "end_token_ids": work.renderer.end_token_ids,
        "sources": _described(work.source, files),
        "sizes": array_sizes(folder),
    }


def _described(source: Source, files: list[SourceFile]) -> list[dict[str, Any]]:
    name = getattr(source, "name", None)
    return [asdict(file) | ({"name": name} if name else {}) for file in files]


def _hashed(source: Source, folder: Path) -> list[SourceFile]:
    """The source's files with their hashes; those of unchanged files are remembered."""
    index = folder / f"sources-{LAYOUT}.json"
    known = {path: SourceFile(**entry) for path, entry in (read_json(index) or {}).items()}
    files = hash_files(source.files, known)
    new = {file.path: file for file in files if has_settled(file)}
    if any(known.get(path) != file for path, file in new.items()):
        folder.mkdir(parents=True, exist_ok=True)
        write_shared_json(index, {path: asdict(file) for path, file in {**known, **new}.items()})
    return files


def _key(data: Data, renderer: Renderer, files: list[SourceFile], **settings: Any) -> str:
    """SHA-256 over everything that the arrays depend on."""
    import tokenizers

    inputs = {
        "layout": LAYOUT,
        "tokenizers": tokenizers.__version__,
        "tokenizer": _tokenizer_content(renderer.tokenizer),
        "begin_ids": renderer.begin_ids,
        "template": renderer.template,
        "date": renderer.date,
        "files": [(Path(file.path).suffix.lower(), file.sha256) for file in files],
        "data": data.model_dump(exclude={"path", "template", "weight"}),
        **settings,
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _tokenizer_content(tokenizer: Tokenizer) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    for left_by_the_last_call in ("truncation", "padding"):
        content.pop(left_by_the_last_call, None)
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    split_special = bool(getattr(tokenizer, "split_special_tokens", False))
    return {**content, "special": special, "split_special": split_special}
