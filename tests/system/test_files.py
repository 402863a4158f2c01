"""Atomic writes: what is under its own name is complete, whatever fails on the way; and checksums."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from amir_grpo.system import files
from amir_grpo.system.files import (
    CHECKSUMS,
    atomic_folder,
    atomic_write,
    explain_full_disk,
    first_damaged,
    hashes,
    shipped,
    write_checksums,
    write_text,
)

ROOT = Path(__file__).parents[2]


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


@pytest.mark.parametrize("said", [OSError(errno.ENOSPC, "No room"), RuntimeError(os.strerror(errno.ENOSPC)), None])
def test_a_full_disk_is_said_whatever_a_library_makes_of_it(tmp_path, monkeypatch, said):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    error = ValueError("could not save")
    error.__cause__ = said
    if said is None:  # torch.save does not say why
        error = RuntimeError("unexpected pos 512 vs 400")
    with pytest.raises(OSError, match=rf"The disk of {tmp_path} is full\.\n"), explain_full_disk(tmp_path):
        raise error
    with pytest.raises(KeyError), explain_full_disk(tmp_path):
        raise KeyError("anything else")


# --- what comes with the package --------------------------------------------------------------------------------------


def test_what_comes_with_the_package_is_found_from_anywhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert shipped("notebooks") == ROOT / "notebooks"
    assert (shipped("data/results") / "sandbox" / "main.csv").is_file()


def test_an_optional_part_is_installed_as_the_package_was(monkeypatch, tmp_path):
    assert files.install_command("gpu") == "pip install -e '.[gpu]'"  # in a clone, as these tests run
    monkeypatch.setattr(files, "_INSIDE", tmp_path / "shipped")
    (tmp_path / "shipped").mkdir()
    assert files.install_command("gpu") == "pip install 'amir-grpo[gpu]'"
