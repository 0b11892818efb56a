"""A recipe with every data source replaced by a few of its rows, and two steps for every stage.

Called by `rehearse.py`, after `hone check` has prepared the data. The batches stay as large as they
are, so that a step takes the time and the memory of a real one: a stage gets the first rows of each
source, as many as two steps take, and the longest row among them. Rows are read through
`data/sources.py` one at a time, as far as the last one that is wanted, and written as JSON Lines as
they were read, so that format, columns and template hold for them.
"""

import copy
import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hone.data.joined import Joined
from hone.data.prepared import Prepared
from hone.data.rows import BadRow, Row
from hone.data.sources import open_source
from hone.errors import UserError
from hone.recipe.environment import escape
from hone.recipe.load import LoadedRecipe, load_resolved
from hone.recipe.policy import Grpo
from hone.recipe.rewards import FromFile, TaskFile
from hone.recipe.schema import NewModel
from hone.recipe.training import BatchSize, DataStage
from hone.stages.data import StageData

STEPS = 2  # one before the stop, one after it
HELD_OUT = 8  # rows or tasks of an evaluation
# Of the tokens of two steps: steps take whole samples, so that full ones may hold less.
FILLED = 0.75

Place = tuple[int, int]
"""A row: the index of its file, and its number there."""


def slice_recipe(
    loaded: LoadedRecipe, material: Sequence[StageData | None], folder: Path, tokenizer: Path
) -> LoadedRecipe:
    """The recipe of the rehearsal; its data are written into `folder`.

    material: for each stage the data that a run would have, None where it samples. tokenizer: the
    folder of the tokenizer that a new model has; one made from a few rows would be another.
    """
    resolved = copy.deepcopy(loaded.resolved)
    if isinstance(loaded.recipe.model, NewModel):
        resolved["model"]["tokenizer"] = escape(str(tokenizer))
    for index, (stage, data) in enumerate(zip(loaded.recipe.stages, material, strict=True)):
        settings = resolved["stages"][index][stage.method]
        shorten(settings)
        place = folder / f"{index + 1}-{stage.method}"
        place.mkdir(parents=True)
        if data is not None:
            assert isinstance(stage.settings, DataStage), "only such a stage has prepared data"
            slice_data(stage.settings, data, settings, place)
        elif isinstance(stage.settings, Grpo):
            slice_tasks(stage.settings, settings, place)
    return load_resolved(resolved, loaded.folder)


def shorten(settings: dict[str, Any]) -> None:
    """Two steps at the full learning rate with a checkpoint after each; what is not finite ends the
    stage at once.
    """
    settings |= {"steps": STEPS, "epochs": None, "warmup": 0, "schedule": "constant"}
    settings |= {"max_skipped_steps": 0, "checkpoint": {"every": 1, "keep": STEPS}}
    if evaluation := settings.get("evaluation"):
        samples = min(evaluation.get("samples") or HELD_OUT, HELD_OUT)
        evaluation |= {"every": STEPS, "before": True, "samples": samples}


# Prepared data


def slice_data(
    settings: DataStage, data: StageData, resolved: dict[str, Any], folder: Path
) -> None:
    """Put slices in the place of the stage's data sets, and of what it holds out of them."""
    sets = data.prepared.sets
    for number, (source, prepared) in enumerate(zip(settings.data_sets, sets, strict=True)):
        wanted = first_and_longest(prepared, settings.batch, len(sets))
        path = folder / f"data-{number}.jsonl"
        write_rows(source.path, source.split, wanted, path)
        _entries(resolved["data"])[number] |= {"path": escape(str(path)), "split": None}
    evaluation = settings.evaluation
    if evaluation is None:
        return
    chosen = held_out_places(data.held_out.prepared, data.held_out.indices[:HELD_OUT])
    sources = evaluation.data_sets or settings.data_sets
    given = _entries(resolved["evaluation"]["data"] or resolved["data"])
    described = []
    for number, (source, places) in enumerate(zip(sources, chosen, strict=True)):
        if not places:
            continue
        path = folder / f"evaluation-{number}.jsonl"
        write_rows(source.path, source.split, places, path)
        entry = {key: value for key, value in given[number].items() if key != "weight"}
        described.append(entry | {"path": escape(str(path)), "split": None})
    resolved["evaluation"] |= {"data": described, "share": None}


def _entries(given: dict[str, Any] | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The descriptions of one or several data sets."""
    return given if isinstance(given, list) else [given]


def first_and_longest(prepared: Prepared, batch: BatchSize, num_sets: int) -> set[Place]:
    """The row with the longest sample, and the first rows, as many as two steps take of one of
    `num_sets` data sets.
    """
    begins = prepared.row_borders[:-1]
    longest = int(np.argmax(np.maximum.reduceat(prepared.lengths, begins)))
    if batch.samples is not None:
        sizes, room = np.diff(prepared.row_borders), STEPS * batch.samples
    else:
        assert batch.tokens is not None, "a batch has one of the two sizes"
        sizes = np.add.reduceat(prepared.lengths, begins, dtype=np.int64)
        room = int(FILLED * STEPS * batch.tokens)
    left = room // num_sets - int(sizes[longest])
    rows = [longest]
    for row, size in enumerate(sizes):
        if row == longest:
            continue
        if (left := left - int(size)) < 0:
            break
        rows.append(row)
    return places_of(prepared, [int(begins[row]) for row in rows])


def held_out_places(joined: Joined, indices: Iterable[int]) -> list[set[Place]]:
    """For each data set the rows that these samples of all sets together come from."""
    found: list[set[Place]] = [set() for _ in joined.sets]
    for index in map(int, indices):
        number = joined.set_of(index)
        found[number] |= places_of(joined.sets[number], [index - joined.borders[number]])
    return found


def places_of(prepared: Prepared, samples: Iterable[int]) -> set[Place]:
    """Where the rows of these samples stand in their source."""
    files, rows = prepared.arrays["files"], prepared.arrays["rows"]
    return {(int(files[sample]), int(rows[sample])) for sample in samples}


# Tasks


def slice_tasks(settings: Grpo, resolved: dict[str, Any], folder: Path) -> None:
    """Put slices in the place of the files that a policy stage's tasks come from.

    Tasks that are drawn from a share of the file get a file of their own, so that the training file
    need not be divided.
    """
    count = 2 * STEPS * settings.batch.samples  # some to ask instead of others
    environment, prompts = settings.environment, settings.data
    paths = folder / "tasks.jsonl", folder / "evaluation.jsonl"
    if isinstance(environment, FromFile):
        column = environment.columns.prompt
        training = _slice_file(environment.data, column, count, paths[0])
        other = environment.evaluation or environment.data
        held_out = _slice_file(other, column, HELD_OUT, paths[1])
        resolved["environment"] |= {"data": training, "evaluation": held_out}
    elif prompts is not None:
        resolved["data"] |= _slice_file(prompts, prompts.columns.prompt, count, paths[0])
        if settings.evaluation is not None:
            asked = settings.evaluation.data or prompts
            held_out = _slice_file(asked, asked.columns.prompt, HELD_OUT, paths[1])
            columns = asked.columns.model_dump(mode="json")
            data = held_out | {"columns": columns}
            resolved["evaluation"] |= {"data": data, "share": None}


def _slice_file(source: TaskFile, column: str, count: int, path: Path) -> dict[str, Any]:
    """The description of a file with the first rows of a file of tasks, and its longest prompt."""
    wanted: set[Place] = set()
    longest: tuple[int, Place] = 0, (0, 0)
    for row in open_source(source.path, source.split).rows():
        place = row.source, row.number
        if isinstance(row, BadRow):  # `hone check` has read them all
            continue
        if len(wanted) < count:
            wanted.add(place)
        longest = max(longest, (len(json.dumps(row.values.get(column), default=str)), place))
    write_rows(source.path, source.split, wanted | {longest[1]}, path)
    return {"path": escape(str(path)), "split": None}


# Rows


def write_rows(source: str, split: str | None, wanted: Collection[Place], path: Path) -> None:
    """Write these rows of a source as JSON Lines, in their order; reads no further than the last.

    Raises UserError where one of them is no longer there.
    """
    left = set(wanted)
    with path.open("w", encoding="utf-8") as file:
        for row in open_source(source, split).rows() if left else ():
            place = row.source, row.number
            if place not in left or not isinstance(row, Row):
                continue
            # Escapes keep halves of surrogate pairs; dates of Parquet files become texts.
            file.write(json.dumps(row.values, default=str) + "\n")
            left.remove(place)
            if not left:
                break
    if left:
        raise UserError(f"`{source}` changed while its rows were read", hint="start again")
