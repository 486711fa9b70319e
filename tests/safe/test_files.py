"""Atomic files and pointer files."""

import errno
import os
from pathlib import Path

import pytest

from smatcli.errors import SmatError
from smatcli.safe.files import atomic_path, atomic_write_text, is_locked, lock, open_lock, pointer_kind


def test_success_replaces_the_old_file_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "new" / "a.txt"
    atomic_write_text(target, "one\n")
    atomic_write_text(target, "zwei ä\n")
    assert target.read_bytes() == "zwei ä\n".encode()
    assert os.listdir(target.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt()])
def test_failure_keeps_the_old_file(tmp_path, error):
    target = tmp_path / "a.png"
    target.write_text("old")
    with pytest.raises(type(error)), atomic_path(target) as draft:
        assert draft.parent == tmp_path
        assert draft.suffix == ".png"
        assert draft.name.startswith(".")
        draft.write_text("half")
        raise error
    assert os.listdir(tmp_path) == ["a.png"]
    assert target.read_text() == "old"


@pytest.mark.parametrize(("code", "said"), [(errno.ENOSPC, "no space left"), (errno.EDQUOT, "quota")])
def test_full_disk_is_one_line_and_keeps_the_old_file(tmp_path, code, said):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(SmatError, match=said) as caught, atomic_path(target) as draft:
        draft.write_text("half")
        raise OSError(code, os.strerror(code))
    assert caught.value.exit_code == 1
    assert str(target) in str(caught.value)
    assert os.listdir(tmp_path) == ["a.txt"]
    assert target.read_text() == "old"


def test_the_flush_to_disk_counts_too(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SmatError, match="no space left"):
        atomic_write_text(tmp_path / "a.txt", "text")
    assert os.listdir(tmp_path) == []


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "data").write_text("")
    with pytest.raises(SmatError, match="is a file, not a folder"):
        atomic_write_text(tmp_path / "data" / "a.txt", "text")


def test_other_errors_pass_through(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.txt") as draft:
        draft.write_text("x")
        Path("/nowhere/at/all").read_text()


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git-lfs"),
        (b"/annex/objects/SHA256E-s1--0.jpg\n", "git-annex"),
        (b"\xff\xd8\xff\xe0 JFIF", None),
        (b"", None),
    ],
)
def test_pointers(head, kind):
    assert pointer_kind(head) == kind


def test_a_lock_keeps_the_content_and_does_not_follow_links(tmp_path):
    path = tmp_path / ".lock"
    path.write_text("mine")
    descriptor = open_lock(path)
    assert lock(descriptor)
    assert is_locked(path)
    second = open_lock(path)
    with pytest.raises(BlockingIOError):
        lock(second)
    os.close(second)
    os.close(descriptor)
    assert not is_locked(path)
    assert not is_locked(tmp_path / "none")
    assert path.read_text() == "mine"
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(OSError, match="symbolic"):
        open_lock(tmp_path / "link")
