"""The check `masks`: the saved result renders the data as they were trained, and nothing is trained
outside completions.

Two computations for the same rows. First the rows are read from their source again and prepared
anew, with tokenizer and template of the saved result: tokens and masks have to be those of the
cache that training read, which lock.json names. Then the masks are compared with what transformers
alone says of the same rows (spans.py). Left out: what training made of the masks, which the losses
tell.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from hone.data.formats import RowExample, recognise, sides_of
from hone.data.prepare import prepare
from hone.data.prepared import Prepared, open_prepared
from hone.data.rows import Row, RowError
from hone.data.sources import Source, SourceFile, hash_files, open_source
from hone.errors import UserError
from hone.recipe.data import Data
from hone.recipe.training import DataStage
from hone.records import Sample
from hone.sampling import load_rendering
from hone.seeds import shuffle
from hone.stages.data import named
from hone.stages.tasks import Tasks
from hone.verify import spans
from hone.verify.subject import StageResult, Subject
from hone.verify.verdicts import (
    FAILED,
    Found,
    NotApplicableError,
    Part,
    join_parts,
    not_applicable,
    status_of,
)

HOW = (
    "rows read from their source again and prepared with the result's tokenizer and template, "
    "compared with the tokens and masks that training read; masks compared with what "
    "transformers' own apply_chat_template and character offsets give"
)
NAMED = 3  # faults that are told
Rows = list[tuple[Row, list[int]]]
"""Rows of a source, each with the numbers of its samples in the prepared data."""


@dataclass
class Comparison:
    """What was found of `count` samples. faults: in words, with their places. apart: samples whose
    mask was computed by transformers alone. left_out: why others were not, counted.
    """

    count: int = 0
    faults: list[str] = field(default_factory=list)
    apart: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def part(self, of: str) -> Part:
        """As a part of the check; its value is the share of samples without a fault."""
        told = f"{self.count:,} samples rendered again, {self.apart:,} of them also by transformers"
        for reason, count in self.left_out.most_common():
            told += f" ({count:,} not: {reason})"
        if self.faults:
            told = f"{len(self.faults):,} differences in {told}; " + "; ".join(self.faults[:NAMED])
        right = 1 - min(len(self.faults) / self.count, 1.0) if self.count else 0.0
        details = {"by_transformers": self.apart, "not_by_transformers": dict(self.left_out)}
        return Part(of, status_of(not self.faults), right, 1.0, self.count, told, details)


def check_masks(subject: Subject) -> Found:
    """Samples rendered again have the tokens and masks that were trained."""
    return join_parts([part for stage in subject.stages for part in _parts(subject, stage)])


def _parts(subject: Subject, stage: StageResult) -> Iterator[Part]:
    if not isinstance(stage.settings, DataStage):
        yield _check_questions(subject, stage)
        return
    for name, data in named("data", stage.settings.data_sets):
        of = f"{stage.name} {name}"
        try:
            cached = _open_cached(subject, stage, name)
            rows = _read_again(subject, stage, name, data, cached)
            yield compare(stage, data, cached, rows, subject).part(of)
        except NotApplicableError as reason:
            yield not_applicable(of, str(reason))


def _locked(subject: Subject, stage: StageResult, name: str) -> dict[str, Any]:
    locked: dict[str, Any] = subject.run.read_lock_json()["stages"][str(stage.index + 1)][name]
    return locked


def _open_cached(subject: Subject, stage: StageResult, name: str) -> Prepared:
    """The prepared data that training read."""
    found = open_prepared(_locked(subject, stage, name)["key"])
    if found is None:
        raise NotApplicableError(
            "the prepared data that training read are no longer in the cache, so there is nothing "
            "to compare with"
        )
    return found


def _read_again(
    subject: Subject, stage: StageResult, name: str, data: Data, cached: Prepared
) -> Rows:
    """Some rows, drawn by the seed, as their source has them now. The first one is the source's
    first row, by which its format is recognised. Raises NotApplicableError where the source is not
    there or not the same.
    """
    source = _open_unchanged(data, _locked(subject, stage, name)["sources"])
    borders = cached.row_borders
    drawn = shuffle(len(borders) - 1, subject.recipe.seed, "verify", "masks", stage.index, name)
    wanted: dict[tuple[int, int], list[int]] = {}
    for index in drawn[: subject.settings.samples]:
        samples = range(int(borders[index]), int(borders[index + 1]))
        file, number = (int(cached.arrays[each][samples[0]]) for each in ("files", "rows"))
        wanted[file, number] = list(samples)
    rows: Rows = []
    for row in source.rows():
        if isinstance(row, Row):
            samples_of_row = wanted.pop((row.source, row.number), [])
            if samples_of_row or not rows:
                rows.append((row, samples_of_row))
        if not wanted:
            break
    if wanted:
        raise NotApplicableError(f"`{data.path}` no longer has all of its rows")
    return rows


def _open_unchanged(data: Data, sources: list[dict[str, Any]]) -> Source:
    known = {
        each["path"]: SourceFile(**{key: each[key] for key in SourceFile.__dataclass_fields__})
        for each in sources
    }
    try:
        source = open_source(data.path, data.split)
        now = hash_files(source.files, known)
    except UserError as error:
        raise NotApplicableError(
            f"the rows cannot be read from their source again: {error.message}"
        ) from error
    if [file.sha256 for file in now] != [each["sha256"] for each in sources]:
        raise NotApplicableError(
            f"`{data.path}` has changed since it was trained on, so its rows are not those that "
            "were prepared"
        )
    return source


def compare(
    stage: StageResult, data: Data, cached: Prepared, rows: Rows, subject: Subject
) -> Comparison:
    """Prepare the rows with what the result is saved with, and compare."""
    renderer, rendering = load_rendering(str(stage.model), subject.trust)
    found = Comparison(sum(len(samples) for _, samples in rows))
    if renderer.tokenizer.chat_template != rendering.template:
        found.faults.append("the tokenizer's chat template is not the one in hone.json")
    settings = cast(DataStage, stage.settings)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.jsonl")
        lines = (json.dumps(row.values, default=str) + "\n" for row, _ in rows)
        path.write_text("".join(lines))
        changes = {"path": str(path), "split": None, "on_bad_row": "skip"}
        try:
            again = prepare(
                data.model_copy(update={**changes, "template": rendering.template}),
                renderer.tokenizer,
                max_tokens=settings.max_tokens,
                overlong=settings.overlong,
                train_on=settings.trained_part,
                kind=settings.sample_kind,
                cache_folder=Path(folder, "cache"),
                date=rendering.date,
            )
        except UserError as error:
            found.faults.append(f"the rows cannot be rendered with the result: {error.message}")
            return found
        _compare_samples(found, cached, again, rows)
    _compare_apart(found, stage, data, cached, rows, renderer.tokenizer, rendering)
    return found


def _compare_samples(found: Comparison, cached: Prepared, again: Prepared, rows: Rows) -> None:
    """Every sample of the rows with the one that is made of it now."""
    lines = np.asarray(again.arrays["rows"])
    for line, (_, samples) in enumerate(rows, start=1):
        made = np.flatnonzero(lines == line)
        if samples and len(made) != len(samples):
            place = cached.place(samples[0])
            found.faults.append(f"{place} gives {len(made)} samples instead of {len(samples)}")
            continue
        for old, new in zip(samples, made if samples else [], strict=True):
            if difference := _difference(cached.sample(old), again.sample(int(new))):
                found.faults.append(f"{cached.place(old)}: {difference}")


def _difference(old: Sample, new: Sample) -> str | None:
    """How two samples differ, in words."""
    for mine, theirs in zip(old.segments, new.segments, strict=True):
        if not np.array_equal(mine.tokens, theirs.tokens):
            return "other tokens than were trained"
        if not np.array_equal(mine.trained, theirs.trained):
            return "another mask than was trained"
        for name, values in mine.constants.items():
            if not np.array_equal(values, theirs.constants[name]):
                return f"another {name} than was trained"
    return None


def _compare_apart(
    found: Comparison,
    stage: StageResult,
    data: Data,
    cached: Prepared,
    rows: Rows,
    tokenizer: Any,
    rendering: Any,
) -> None:
    """The masks of the cache with what transformers alone says of the rows."""
    settings = cast(DataStage, stage.settings)
    kind, train_on = settings.sample_kind, settings.trained_part
    reading = recognise(list(rows[0][0].values), data, kind)
    for row, samples in rows:
        if not samples:
            continue  # the source's first row, which was not drawn
        if len(samples) > 1:
            found.left_out["the row became several samples"] += len(samples)
            continue
        try:
            example = reading.example(row.values, train_on)
            faults = [
                spans.find_fault(path, side, train_on, settings.max_tokens, tokenizer, rendering)
                for path, side in _sides(cached.sample(samples[0]), example)
            ]
        except (RowError, spans.IncomparableError) as reason:
            found.left_out[str(reason)] += 1
            continue
        found.apart += 1
        found.faults += [f"{cached.place(samples[0])}: {fault}" for fault in faults if fault]


def _sides(sample: Sample, example: RowExample) -> Iterator[tuple[spans.Path, Any]]:
    """The paths of a sample, each with what it was made of."""
    prompt, *answers = sample.segments
    paths = [[prompt, answer] for answer in answers] or [[prompt]]
    for path, side in zip(paths, sides_of(example), strict=True):
        ids, trained = (
            np.concatenate([getattr(segment, name) for segment in path])
            for name in ("tokens", "trained")
        )
        yield spans.Path(ids, trained), side


def _check_questions(subject: Subject, stage: StageResult) -> Part:
    """What a policy stage asked: there are no masks in its data, every token of an answer is
    trained.
    """
    renderer, _ = load_rendering(str(stage.model), subject.trust)
    try:
        questions = cast(Tasks, subject.material(stage)).questions
    except UserError as error:  # they are rendered again and compared with lock.json there
        return Part(stage.name, FAILED, 0.0, 1.0, 0, error.message)
    order = shuffle(len(questions), subject.recipe.seed, "verify", "masks", stage.index)
    found = Comparison()
    for index in order[: subject.settings.samples]:
        question = questions[int(index)]
        found.count += 1
        if renderer.prompt(question.task.prompt) != question.ids:
            place = question.task.place or f"task {question.task.index}"
            found.faults.append(f"{place}: other tokens than were asked")
    return found.part(stage.name)
