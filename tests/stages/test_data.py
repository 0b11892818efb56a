"""Several data sets in one stage: shares, held-out parts, the lock, and exact resuming."""

import json
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hone.data.joined import Joined, join
from hone.data.prepare import prepare
from hone.errors import UserError
from hone.metrics import read_metrics
from hone.recipe.data import Data
from hone.recipe.load import load_recipe
from hone.recipe.schema import Sft
from hone.recipe.training import TrainingStage
from hone.seeds import apportion
from hone.stages.data import split_data
from hone.stages.run import check_recipe
from tests.data.tokenizers import shared
from tests.workbench import NEW_MODEL, fingerprint, hone, kill, start, write_data


def prepared_sets(folder: Path, *sizes: int) -> Joined:
    """A data set of each size; the texts say which set and which sample they are."""
    sets = []
    for number, size in enumerate(sizes):
        path = folder / f"{number}.jsonl"
        path.write_text("".join(json.dumps({"text": f"{number} {i}"}) + "\n" for i in range(size)))
        settings: dict[str, Any] = {"max_tokens": 99, "overlong": "drop", "train_on": "all"}
        cache = folder / "cache"
        sets.append(
            prepare(Data(path=str(path)), shared("byte_level"), cache_folder=cache, **settings)
        )
    return Joined(tuple(sets))


def stage(*weights: float, **settings: Any) -> TrainingStage:
    """A stage with as many data sets as weights; the weight 0 stands for none."""
    data = [{"path": f"{i}.jsonl", "weight": w or None} for i, w in enumerate(weights)]
    return Sft.model_validate({"data": data, "batch": {"samples": 8}, **settings})


def test_samples_are_numbered_through_all_sets(tmp_path: Path) -> None:
    joined = prepared_sets(tmp_path, 3, 1, 4)
    tokenizer = shared("byte_level")
    texts = [tokenizer.decode(joined.sample(i).segments[0].tokens) for i in range(8)]
    expected = [f"{s} {i}" for s, size in enumerate((3, 1, 4)) for i in range(size)]
    assert [text.partition("<")[0] for text in texts] == expected
    assert [joined.sample(i).index for i in range(8)] == list(range(8))
    assert [joined.set_of(i) for i in range(8)] == [0, 0, 0, 1, 2, 2, 2, 2]
    assert [joined.place(i) for i in (2, 3, 7)] == [
        f"{tmp_path / '0.jsonl'}:3",
        f"{tmp_path / '1.jsonl'}:1",
        f"{tmp_path / '2.jsonl'}:4",
    ]
    assert joined.report["samples"] == 8
    for outside in (-1, 8):
        with pytest.raises(IndexError):
            joined.sample(outside)


def test_without_weights_every_sample_of_all_sets_comes_once(tmp_path: Path) -> None:
    joined = prepared_sets(tmp_path, 5, 20, 1)
    data = split_data(stage(0, 0, 0, epochs=1), joined, None, 1, 0)
    seen = [
        data.training[int(i)].index
        for step in range(1, data.total_steps + 1)
        for i in data.order.samples_of(step)
    ]
    assert sorted(seen) == list(range(26))
    assert seen != sorted(seen)
    assert data.per_epoch == (5, 20, 1)


def test_with_weights_every_epoch_has_the_shares(tmp_path: Path) -> None:
    joined = prepared_sets(tmp_path, 5, 40, 10)
    data = split_data(stage(2, 1, 1, epochs=3), joined, None, 1, 0)
    assert data.per_epoch == tuple(apportion(55, [2, 1, 1])) == (27, 14, 14)
    steps_an_epoch = data.total_steps // 3
    for epoch in range(3):
        steps = range(epoch * steps_an_epoch + 1, (epoch + 1) * steps_an_epoch + 1)
        seen = [joined.set_of(int(i)) for step in steps for i in data.order.samples_of(step)]
        assert Counter(seen) == {0: 27, 1: 14, 2: 14}


def test_one_data_set_alone_is_ordered_as_ever(tmp_path: Path) -> None:
    """The list of one, and the order as it was before there were several sets."""
    from hone.data.prepared import split_held_out
    from hone.seeds import Order

    joined = prepared_sets(tmp_path, 30)
    settings = Sft.model_validate(
        {"data": {"path": "0.jsonl"}, "evaluation": {"share": 0.2}, "batch": {"samples": 8}}
    )
    data = split_data(settings, joined, None, 7, 2)
    training, held_out = split_held_out(joined.sets[0], 0.2, 7)
    assert data.training.indices.tolist() == training.tolist()
    assert data.held_out.indices.tolist() == held_out.tolist()
    before = Order(joined.lengths[training], settings.batch, 7, 2)
    for step in (1, 2, 5):
        assert data.order.samples_of(step).tolist() == before.samples_of(step).tolist()


def test_every_set_gives_its_part_to_the_held_out_samples(tmp_path: Path) -> None:
    joined = prepared_sets(tmp_path, 10, 60, 1, 29)
    settings = stage(0, 0, 0, 0, evaluation={"share": 0.2})
    data = split_data(settings, joined, None, 3, 0)
    assert Counter(joined.set_of(int(i)) for i in data.held_out.indices) == {0: 2, 1: 12, 3: 6}
    both = np.concatenate([data.training.indices, data.held_out.indices])
    assert sorted(both) == list(range(100))
    again = split_data(settings, joined, None, 3, 0)
    assert again.held_out.indices.tolist() == data.held_out.indices.tolist()
    other = split_data(settings, joined, None, 4, 0)
    assert other.held_out.indices.tolist() != data.held_out.indices.tolist()
    few = stage(0, 0, 0, 0, evaluation={"share": 0.2, "samples": 5})
    first = split_data(few, joined, None, 3, 0).held_out.indices
    assert first.tolist() == data.held_out.indices[:5].tolist()


def test_the_samples_of_a_row_are_held_out_together(tmp_path: Path) -> None:
    long = [[{"text": f"{s} {i} " + "word " * (9 * (i % 5))} for i in range(40)] for s in range(2)]
    for name, rows in enumerate(long):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    settings: dict[str, Any] = {"max_tokens": 20, "overlong": "split", "train_on": "all"}
    cache = tmp_path / "cache"
    joined = Joined(
        tuple(
            prepare(
                Data(path=str(tmp_path / f"{name}.jsonl")),
                shared("byte_level"),
                cache_folder=cache,
                **settings,
            )
            for name in range(2)
        )
    )
    assert len(joined) > 120
    data = split_data(stage(0, 0, evaluation={"share": 0.25}), joined, None, 3, 0)
    held_out = [joined.place(int(i)) for i in data.held_out.indices]
    trained = {joined.place(int(i)) for i in data.training.indices}
    assert len(set(held_out)) == 20 < len(held_out)
    assert not trained & set(held_out)
    assert len(data.training) + len(data.held_out) == len(joined)


def test_sets_of_one_sample_cannot_be_held_out(tmp_path: Path) -> None:
    joined = prepared_sets(tmp_path, 1, 1)
    with pytest.raises(UserError, match="none can be held out"):
        split_data(stage(0, 0, evaluation={"share": 0.5}), joined, None, 3, 0)


def test_conversations_with_different_templates_do_not_go_together(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "a"}) + "\n")
    (tmp_path / "own.jinja").write_text(
        "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    )

    def prepared(name: str, template: str) -> Any:
        data = Data(path=str(tmp_path / f"{name}.jsonl"), template=template)
        cache = tmp_path / "cache"
        return prepare(
            data,
            shared("byte_level"),
            max_tokens=99,
            overlong="drop",
            train_on="all",
            cache_folder=cache,
        )

    own = str(tmp_path / "own.jinja")
    with pytest.raises(UserError, match=r"data\[0\] `0.jsonl` and data\[1\] `1.jsonl` are"):
        join([prepared("chat", "chatml"), prepared("chat", own)], ["0.jsonl", "1.jsonl"])
    joined = join([prepared("text", "chatml"), prepared("chat", own)], ["0.jsonl", "1.jsonl"])
    assert joined.decides == 1 and not joined.plain
    assert joined.template == Path(own).read_text()


@pytest.mark.quick
def test_a_profile_goes_into_every_data_set(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").touch()
    recipe = tmp_path / "recipe.yaml"
    sets = "[a.jsonl, {path: b.jsonl, template: auto}]"
    recipe.write_text(f"model: acme/base\nstages: [{{sft: {{profile: chat, data: {sets}}}}}]\n")
    settings = load_recipe(recipe).recipe.stages[0].settings
    assert [data.template for data in settings.data_sets] == ["chatml", "auto"]


MIXED = (
    NEW_MODEL
    + """
stages:
  - sft:
      data:
        - {path: chat.jsonl, weight: 3}
        - {path: pairs.jsonl, weight: 1}
        - {path: text.jsonl, weight: 2, columns: {text: text}}
      batch: {tokens: 300}
      steps: 40
      adapter: {type: lora, rank: 4, dropout: 0.2}
      evaluation: {share: 0.1, every: 10}
      checkpoint: {every: 3}
"""
)


def mixed_folder(folder: Path) -> Path:
    write_data(folder)
    lines = (folder / "pairs.jsonl").read_text().splitlines(keepends=True)
    (folder / "pairs.jsonl").write_text("".join(lines[:9]))
    (folder / "recipe.yaml").write_text(MIXED)
    return folder


@pytest.mark.e2e
def test_a_mixed_run_is_killed_and_resumed_to_the_same_bytes(tmp_path: Path) -> None:
    folder = mixed_folder(tmp_path)
    printed = hone(folder, "run", "recipe.yaml", "--name", "first")
    assert "data[0] chat.jsonl" in printed.replace(f"{folder}/", "")
    run = folder / "runs" / "first"
    expected = fingerprint(run)
    keys = json.loads((run / "lock.json").read_text())["stages"]["1"]
    assert [f"data[{i}]" in keys for i in range(4)] == [True, True, True, False]
    (folder / "runs").rename(folder / "uninterrupted")
    process = start(folder, "run", "recipe.yaml", "--name", "first")
    metrics = run / "stages" / "1-sft" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while process.poll() is None and len(read_metrics(metrics)) < 25:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    kill(process)
    assert process.returncode == -signal.SIGKILL
    pairs = folder / "pairs.jsonl"
    before = pairs.read_bytes()
    pairs.write_bytes(before + b'{"prompt": "1 plus 1 is", "completion": " 2"}\n')
    printed = hone(folder, "resume", "first", expect=2)
    assert "data have changed since the run" in printed
    assert "data[1] of stage 1: `" in printed and "pairs.jsonl` was" in printed
    pairs.write_bytes(before)
    for name in ("chat", "pairs", "text"):  # all that is needed is in the cache
        (folder / f"{name}.jsonl").rename(folder / f"{name}.away")
    hone(folder, "resume", "first")
    assert fingerprint(run) == expected


def test_the_check_says_what_an_epoch_is_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HONE_CACHE", str(tmp_path / "cache"))
    folder = mixed_folder(tmp_path)
    found = [finding.message for finding in check_recipe(load_recipe(folder / "recipe.yaml"))]
    mine = [message for message in found if "of an epoch's" in message]
    assert [message.rpartition(": ")[2] for message in mine] == [
        "160 samples, 148 of an epoch's 296 (50.0%)",
        "9 samples, 49 of an epoch's 296 (16.6%)",
        "160 samples, 99 of an epoch's 296 (33.4%)",
    ]


def test_what_stands_in_the_data_twice_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HONE_CACHE", str(tmp_path / "cache"))
    rows = [{"prompt": f"{n} plus one is", "completion": f" {n + 1}"} for n in range(20)]
    other = {"prompt": "3 plus one is", "completion": " four"}
    held = [{"prompt": "One more than 50 is", "completion": " 51"}, rows[7], other]
    for name, written in (("train", [*rows, rows[2], rows[2]]), ("held", held)):
        lines = "".join(json.dumps(row) + "\n" for row in written)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    (tmp_path / "text.jsonl").write_text('{"text": "1 plus one is 2"}\n')
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        NEW_MODEL + "stages: [{sft: {data: train.jsonl, evaluation: {data: held.jsonl}}}]\n"
    )
    found = [each.message.replace(f"{tmp_path}/", "") for each in check_recipe(load_recipe(recipe))]
    assert [message.removeprefix("stage 1 sft: ") for message in found[1:]] == [
        "2 of 22 training samples repeat another one word for word "
        "(first: train.jsonl:21 repeats train.jsonl:3)",
        "1 of 3 held-out samples are trained on, word for word "
        "(first: held.jsonl:2 and train.jsonl:8)",
        "2 of 3 held-out samples have a prompt that is trained on "
        "(first: held.jsonl:2 and train.jsonl:8)",
    ]
