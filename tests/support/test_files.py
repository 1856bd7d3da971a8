"""Files are either whole or not there."""

import errno
import hashlib
import os
import resource
import stat
from pathlib import Path

import pytest

from refinedet.errors import WriteError
from refinedet.support.files import (
    file_digest,
    make_folder,
    read_regular_file,
    replacing,
    require_folder,
    require_regular_file,
    require_replaceable,
    write_atomically,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_text_and_bytes_arrive_as_they_are(tmp_path):
    write_atomically(tmp_path / "a.txt", "Plättchen\r\n")
    write_atomically(tmp_path / "b", b"\x00\xff")
    assert (tmp_path / "a.txt").read_bytes() == "Plättchen\r\n".encode()
    assert (tmp_path / "b").read_bytes() == b"\x00\xff"
    assert names(tmp_path) == ["a.txt", "b"]


def test_new_files_get_ordinary_permissions(tmp_path):
    write_atomically(tmp_path / "new", "x")
    (tmp_path / "plain").write_text("x")
    new, plain = ((tmp_path / name).stat().st_mode for name in ("new", "plain"))
    assert stat.S_IMODE(new) == stat.S_IMODE(plain)


def test_the_goal_is_untouched_until_the_block_ends(tmp_path):
    goal = tmp_path / "weights.safetensors"
    goal.write_text("old")
    with replacing(goal) as draft:
        assert draft.parent == goal.parent
        assert draft.suffix == goal.suffix
        draft.write_text("new")
        assert goal.read_text() == "old"
    assert goal.read_text() == "new"
    assert names(tmp_path) == [goal.name]


def test_two_writers_do_not_share_a_draft(tmp_path):
    with replacing(tmp_path / "x") as one, replacing(tmp_path / "x") as two:
        assert one != two
        one.write_text("one")
        two.write_text("two")
    assert (tmp_path / "x").read_text() == "one"
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("failure", [ValueError("no"), KeyboardInterrupt()])
def test_a_failure_in_the_block_leaves_the_old_content_alone(tmp_path, failure):
    goal = tmp_path / "x"
    goal.write_text("old")
    with pytest.raises(type(failure)), replacing(goal) as draft:  # noqa: PT012
        draft.write_text("half")
        raise failure
    assert goal.read_text() == "old"
    assert names(tmp_path) == ["x"]


def test_a_file_that_does_not_fit_leaves_nothing_behind(tmp_path):
    goal = tmp_path / "x"
    goal.write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(WriteError, match="cannot write: File too large") as caught:
            write_atomically(goal, b"0" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert goal.read_text() == "old"
    assert names(tmp_path) == ["x"]


def test_a_full_disk_is_one_line_that_says_what_to_do(tmp_path, monkeypatch):
    def full(_handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError) as caught:
        write_atomically(tmp_path / "x", "new")
    assert str(caught.value) == (
        f"{tmp_path / 'x'}: cannot write: No space left on device; free some space and run again"
    )
    assert isinstance(caught.value, OSError)
    assert caught.value.errno == errno.ENOSPC
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("goal", "words"),
    [
        ("missing/x", "create the folder first"),
        ("file/x", "its folder is a file"),
        ("folder", "choose the name of a file"),
    ],
)
def test_impossible_goals_are_one_line(tmp_path, goal, words):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(WriteError, match=words) as caught:
        write_atomically(tmp_path / goal, "new")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / goal) in str(caught.value)
    assert names(tmp_path) == ["file", "folder"]


def test_an_empty_name_is_one_line():
    with pytest.raises(WriteError, match="choose the name of a file"):
        write_atomically(Path(), "new")


def test_everything_is_on_the_disk_before_the_rename(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append("fsync"), fsync(handle))[1])
    monkeypatch.setattr(
        Path, "replace", lambda self, goal: (calls.append("replace"), replace(self, goal))[1]
    )
    write_atomically(tmp_path / "x", "new")
    assert calls == ["fsync", "replace", "fsync"]


def test_a_file_and_a_link_to_it_are_read(tmp_path):
    (tmp_path / "a").write_bytes(b"\x00\xff12")
    (tmp_path / "link").symlink_to("a")
    for name in ("a", "link"):
        assert read_regular_file(tmp_path / name) == b"\x00\xff12"
        assert read_regular_file(tmp_path / name, 3) == b"\x00\xff1"
        assert read_regular_file(tmp_path / name, 9) == b"\x00\xff12"


def test_what_is_not_a_regular_file_is_refused_before_it_is_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "link", Path("/dev/zero")):
        with pytest.raises(OSError, match="not a file") as caught:
            read_regular_file(path)
        assert caught.value.strerror == "not a file"
        with pytest.raises(OSError, match="not a file"):
            require_regular_file(path)
    require_regular_file(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        read_regular_file(tmp_path / "none")


def test_a_digest_is_that_of_the_whole_content(tmp_path):
    for content in (b"", b"a", b"\0" * (1 << 20), bytes(range(256)) * 9000):
        (tmp_path / "a").write_bytes(content)
        assert file_digest(tmp_path / "a") == hashlib.sha256(content).digest()


def test_a_pipe_and_a_folder_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, reason in ((tmp_path / "pipe", "not a file"), (tmp_path, "Is a directory")):
        for write in (lambda path: write_atomically(path, "new"), require_replaceable):
            with pytest.raises(WriteError, match=f"cannot write: {reason}; choose the name"):
                write(path)
    assert (tmp_path / "pipe").is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_place_for_a_file_or_a_folder_is_refused_before_it_is_needed(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="create the folder first"):
        require_replaceable(tmp_path / "none" / "x")
    for path in (tmp_path / "file", tmp_path / "file" / "x"):
        with pytest.raises(WriteError, match=r"file:? is no folder; choose another folder"):
            require_folder(path)
        with pytest.raises(WriteError, match="cannot create"):
            make_folder(path)
    require_replaceable(tmp_path / "file")
    require_folder(tmp_path / "new" / "x")
    make_folder(tmp_path / "new" / "x")
    make_folder(tmp_path / "new" / "x")


def test_a_folder_that_cannot_be_written_to_is_refused_before(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: (path, mode) != (tmp_path, os.W_OK))
    with pytest.raises(WriteError, match="check the folder's permissions"):
        require_replaceable(tmp_path / "x")
