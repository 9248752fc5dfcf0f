"""Files and folders that appear whole, with the modes and the errors of ordinary ones."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from vidpipe.errors import VidpipeError
from vidpipe.files import (
    atomic_file,
    atomic_folder,
    disk_errors_named,
    remove_temporary,
    write_text,
)


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_modes_follow_the_umask_which_is_not_touched(
    tmp_path: Path, umask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It belongs to the whole process: another thread's file would be open to everybody meanwhile."""
    monkeypatch.delattr(os, "umask")
    write_text(tmp_path / "a.txt", "a")
    with atomic_folder(tmp_path / "folder") as folder:
        (folder / "b.txt").write_text("b")
    ordinary = tmp_path / "ordinary"
    ordinary.mkdir()
    (ordinary / "c").touch()
    assert mode(tmp_path / "a.txt") == mode(ordinary / "c") == 0o666 & ~umask
    assert mode(tmp_path / "folder") == mode(ordinary) == 0o777 & ~umask
    monkeypatch.undo()


def test_a_failure_leaves_the_old_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    for atomic in (atomic_file, atomic_folder):
        with pytest.raises(RuntimeError), atomic(tmp_path / "a.txt"):
            raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_what_a_kill_left_is_found(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    left = [atomic_file(target), atomic_folder(target)]
    for context in left:
        context.__enter__()
    assert len(list(tmp_path.iterdir())) == 2
    remove_temporary(target)
    assert not list(tmp_path.iterdir())


def test_errors_of_the_disk_are_one_line_and_others_are_not_hidden(tmp_path: Path) -> None:
    place = disk_errors_named
    full = Path("/dev/full")
    with (
        pytest.raises(VidpipeError, match=r"^here: No space left on device; "),
        place(Path("here")),
    ):
        full.write_text("x")
    with pytest.raises(VidpipeError, match=r"nowhere/a: No such file"), place(tmp_path):
        (tmp_path / "nowhere" / "a").touch()
    with pytest.raises(OSError, match="too many"), place(tmp_path):
        raise OSError(errno.EMFILE, "too many open files")
