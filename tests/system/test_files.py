"""Atomic writes: what is under its own name is complete, whatever fails on the way; and checksums."""

import json

import pytest

from amir_grpo.system.files import (
    CHECKSUMS,
    atomic_folder,
    atomic_write,
    first_damaged,
    hashes,
    write_checksums,
    write_text,
)


def test_atomic_write_leaves_the_old_file_when_the_writer_raises(tmp_path):
    path = write_text(tmp_path / "new" / "table.csv", "old")

    def half(part):
        part.write_text("ha")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        atomic_write(path, half)
    assert [entry.name for entry in path.parent.iterdir()] == ["table.csv"]
    assert path.read_text() == "old"
    write_text(path, "neü")
    assert path.read_text(encoding="utf-8") == "neü"


def test_atomic_write_shows_nothing_before_it_is_whole(tmp_path):
    path = tmp_path / "table.csv"

    def write(part):
        part.write_text("half")
        assert not path.exists()
        assert part.parent == path.parent, "a rename is whole within one file system only"
        part.write_text("whole")

    assert atomic_write(path, write).read_text() == "whole"


def test_atomic_folder_is_there_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "deep" / "base"

    def fill_half():
        with atomic_folder(folder) as beside:
            (beside / "half").write_text("ha")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fill_half()
    assert not list(folder.parent.iterdir())
    with atomic_folder(folder) as beside:
        (beside / "part").write_text("whole")
        assert not folder.exists()
    assert [entry.name for entry in folder.parent.iterdir()] == ["base"]
    assert (folder / "part").read_text() == "whole"
    assert folder.stat().st_mode & 0o777 == 0o755


def test_atomic_folder_replaces_an_old_one_when_the_new_one_is_whole(tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "old").touch()

    def fill_half():
        with atomic_folder(folder, replace=True):
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fill_half()
    assert [entry.name for entry in tmp_path.rglob("*")] == ["base", "old"]
    with atomic_folder(folder, replace=True) as beside:
        (beside / "new").touch()
        assert (folder / "old").exists()
    assert [entry.name for entry in tmp_path.rglob("*")] == ["base", "new"]


def test_atomic_folder_leaves_what_another_process_has_made(tmp_path):
    folder = tmp_path / "base"
    with atomic_folder(folder) as beside:
        (beside / "mine").touch()
        folder.mkdir()
        (folder / "theirs").touch()
    assert [entry.name for entry in tmp_path.rglob("*")] == ["base", "theirs"]


def test_the_first_file_that_has_changed_is_named(tmp_path):
    assert first_damaged(tmp_path) is None, "nothing is recorded"
    for name in "ab":
        (tmp_path / name).write_text(name)
    write_checksums(tmp_path)
    recorded = json.loads((tmp_path / CHECKSUMS).read_text())
    assert recorded == hashes([tmp_path / "a", tmp_path / "b"])
    assert first_damaged(tmp_path) is None
    (tmp_path / "b").write_text("c")
    assert first_damaged(tmp_path) == "b"
    (tmp_path / "a").unlink()
    assert first_damaged(tmp_path) == "a"
    (tmp_path / CHECKSUMS).write_text("{")
    assert first_damaged(tmp_path) == CHECKSUMS
    assert first_damaged(tmp_path, recorded) == "a"
