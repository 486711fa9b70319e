"""Files that appear whole or not at all, and the two kinds of stand-in that are no data: git-lfs and git-annex pointers."""

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


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a hidden temporary path (same folder, same suffix) that becomes `path` on success and is removed on failure.

    Data and folder entry are flushed to the disk before it returns. Raises SmatError for a full disk or a folder that cannot be written.
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
    """Make the finished file or folder `draft` become `path` (same folder), with data and folder entry flushed to the disk."""
    _flush(draft)
    os.replace(draft, path)
    _flush(path.parent)


def clear_drafts(folder: Path) -> None:
    """Remove what killed processes left of `atomic_path` in a folder; only for who holds the folder's lock."""
    for path in folder.glob(".*.tmp*") if folder.is_dir() else ():
        if _DRAFT.fullmatch(path.name):
            _remove(path)


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8 so that `path` holds either its old content or all of the new one."""
    with atomic_path(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")


def pointer_kind(head: bytes) -> str | None:
    """'git-lfs' or 'git-annex' if a file that begins with `head` only points to its content, else None."""
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return "git-lfs"
    if head.startswith((b"/annex/objects/", b".git/annex/objects/")) or (len(head) < 1000 and b"/.git/annex/objects/" in head):
        return "git-annex"
    return None


@contextmanager
def disk_errors(path: Path, kind: type[SmatError] = SmatError) -> Iterator[None]:
    """Turns a full disk and a folder that cannot be written into an error of `kind` about `path`."""
    try:
        yield
    except OSError as error:
        reason = _FULL.get(error.errno or 0) or next((text for text in _FULL.values() if "No space left" in str(error)), None)
        if reason:
            raise kind(f"{path}: {reason}; nothing was changed: free some space and run it again") from error
        culprit = Path(os.fsdecode(error.filename)) if error.filename else None
        ours = culprit is not None and (culprit.parent == path.parent or culprit in path.parents)
        if ours and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise kind(f"{path}: cannot be written here ({os.strerror(error.errno).lower()}); choose another folder") from error
        if ours and error.errno in (errno.ENOTDIR, errno.EEXIST) and not path.parent.is_dir():
            raise kind(f"{path}: {culprit} is a file, not a folder") from error
        raise


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
