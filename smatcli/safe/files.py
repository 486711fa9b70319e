"""Atomic writers, file locks, and detection of git-lfs and git-annex pointers."""

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from smatcli.errors import SmatError

_FULL = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is too large for the disk",
}
_DRAFT = re.compile(r"\..+\.[0-9a-f]{8}\.tmp(\..*)?")
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a hidden temporary path (same folder, same suffix) that becomes `path` on success and is removed on failure.

    Data and folder entry are flushed to the disk before it returns. Raises SmatError if the disk is full or the folder is not writable.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.stem[:40]}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        with disk_errors(path):
            yield draft
            publish(draft, path)
    except BaseException:
        _remove(draft)
        raise


def publish(draft: Path, path: Path) -> None:
    """Rename the finished file or folder `draft` to `path` (same folder), and flush data and folder entry to the disk."""
    _flush(draft)
    os.replace(draft, path)
    _flush(path.parent)


def clear_drafts(folder: Path) -> None:
    """Remove the temporary files of `atomic_path` that killed processes left in a folder; the caller must hold the folder's lock."""
    for path in folder.glob(".*.tmp*") if folder.is_dir() else ():
        if _DRAFT.fullmatch(path.name):
            _remove(path)


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8. Even after a crash, `path` has either its old content or all of the new content."""
    with atomic_path(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")


def open_lock(path: Path) -> int:
    """Open a file for `lock`, create it if necessary, and return its descriptor. It is not truncated, and links are not followed."""
    return os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0), 0o666)


def lock(descriptor: int) -> bool:
    """Lock an open file or folder until it is closed, without waiting.

    Returns False if the file system does not support locks. Raises BlockingIOError if another process has the lock.
    """
    return _flock(descriptor, shared=False)


def is_locked(path: Path) -> bool:
    """Return whether a process has locked the file; True if it cannot be determined."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        return not _flock(descriptor, shared=True)
    except OSError:
        return True
    finally:
        os.close(descriptor)


def pointer_kind(head: bytes) -> str | None:
    """Return "git-lfs" or "git-annex" if a file that begins with `head` is a pointer file without content, else None."""
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return "git-lfs"
    if head.startswith((b"/annex/objects/", b".git/annex/objects/")) or (len(head) < 1000 and b"/.git/annex/objects/" in head):
        return "git-annex"
    return None


@contextmanager
def disk_errors(path: Path, kind: type[SmatError] = SmatError) -> Iterator[None]:
    """Convert the errors of a full disk and of a folder that is not writable into an error of type `kind` about `path`."""
    try:
        yield
    except OSError as error:
        reason = _FULL.get(error.errno or 0) or next((text for text in _FULL.values() if "No space left" in str(error)), None)
        if reason:
            raise kind(f"{path}: {reason}; nothing was changed: free some space and run it again") from error
        culprit = Path(os.fsdecode(error.filename)) if error.filename else None
        ours = culprit is not None and (culprit.parent == path.parent or culprit in path.parents)
        if ours and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise kind(f"{path}: cannot be written ({os.strerror(error.errno).lower()}); choose another folder") from error
        if ours and error.errno in (errno.ENOTDIR, errno.EEXIST) and not path.parent.is_dir():
            raise kind(f"{path}: {culprit} is a file, not a folder") from error
        raise


def _flock(descriptor: int, shared: bool) -> bool:
    try:
        import fcntl
    except ImportError:
        return False
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _remove(draft: Path) -> None:
    if draft.is_dir():
        import shutil

        shutil.rmtree(draft, ignore_errors=True)
        return
    with suppress(OSError):
        draft.unlink(missing_ok=True)
