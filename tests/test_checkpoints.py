"""Whole or not there: faults caused for real."""

from pathlib import Path

import pytest

from hone.checkpoints import (
    CheckpointState,
    find_fault,
    find_newest,
    hash_manifest,
    list_checkpoints,
    prune,
    read_state,
    save_checkpoint,
    write_folder,
)

pytestmark = pytest.mark.quick


def save(folder: Path, step: int) -> Path:
    state = CheckpointState(step=step, evaluated=True, best_step=1, best_value=0.5, time_s=1.0)
    return save_checkpoint(folder, state, lambda path: path.joinpath("w").write_bytes(b"x" * 99))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("break_it", "named"),
    [
        (lambda c: flip(c / "w"), "w differs"),
        (lambda c: (c / "w").write_bytes(b"x" * 98), "98 bytes"),
        (lambda c: (c / "w").unlink(), "w is missing"),
        (lambda c: (c / "manifest.json").unlink(), "manifest.json"),
        (lambda c: flip(c / "state.json"), "state.json differs"),
    ],
    ids=["flipped byte", "short file", "missing file", "no manifest", "state"],
)
def test_a_broken_checkpoint_is_named_and_skipped(tmp_path: Path, break_it, named) -> None:
    good, bad = save(tmp_path, 9), save(tmp_path, 10)
    assert find_newest(tmp_path) == (bad, [])
    break_it(bad)
    newest, broken = find_newest(tmp_path)
    assert newest == good
    assert broken[0][0] == bad and named in broken[0][1]


def test_the_state_comes_back(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 12)
    assert read_state(checkpoint) == CheckpointState(
        step=12, evaluated=True, best_step=1, best_value=0.5, time_s=1.0
    )


def test_a_writer_that_fails_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        (path / "half").write_text("half")
        raise OSError("no space left")

    final = tmp_path / "model"
    write_folder(final, lambda path: (path / "a").write_text("a") and None)
    with pytest.raises(OSError, match="no space"):
        write_folder(final, fail)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert find_fault(final) is None


def test_a_folder_is_announced_before_it_appears(tmp_path: Path) -> None:
    """With the hash of the manifest that it will have; who cannot hear of it keeps it from
    appearing.
    """
    final, heard = tmp_path / "model", []

    def listen(folder: Path, sha256: str) -> None:
        assert not folder.exists()
        heard.append((folder, sha256))

    def refuse(folder: Path, sha256: str) -> None:
        raise OSError("no space left")

    def write(path: Path) -> None:
        (path / "a").write_text("a")

    with pytest.raises(OSError, match="no space"):
        write_folder(final, write, refuse)
    assert list(tmp_path.iterdir()) == []
    write_folder(final, write, listen)
    assert heard == [(final, hash_manifest(final))]
    (final / "manifest.json").write_text("{}")
    assert heard != [(final, hash_manifest(final))]


def test_leftovers_of_a_killed_writer_are_cleared(tmp_path: Path) -> None:
    leftover = tmp_path / ".model.123.tmp"
    leftover.mkdir()
    (leftover / "half").write_text("half")
    write_folder(tmp_path / "model", lambda path: (path / "a").write_text("a") and None)
    assert not leftover.exists()


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10, 100):
        save(tmp_path, step)
    prune(tmp_path, keep=2, best_step=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "step_000002",
        "step_000010",
        "step_000100",
    ]
