"""The diary of an unfinished store: how far it is, so that the next attempt continues, and a lock, so that there is only one at a time."""

import errno
import hashlib
import json
import os
import socket
from pathlib import Path
from typing import Any

from smatcli.errors import UserError
from smatcli.safe.files import disk_errors
from smatcli.safe.text import parse_json

_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


def hidden(target: Path, suffix: str) -> Path:
    """The hidden file that belongs to `target` beside it."""
    name = target.stem if len(target.stem.encode()) < 200 else hashlib.sha256(target.stem.encode()).hexdigest()[:40]
    return target.with_name(f".{name}.{suffix}")


class Journal:
    """Lines of JSON in a hidden file beside `target`, locked as long as it is open; a dead process's lock is gone with it.

    The first line is the header that `restart` wrote; `entries` are what `add` wrote. A last line that was not finished does not count.
    Raises UserError when another process holds the lock, SmatError when the folder cannot be written. `locked` is False on the file
    systems that know no locks.
    """

    def __init__(self, target: Path) -> None:
        self.target, self.path = target, hidden(target, "journal")
        with disk_errors(target, UserError):
            target.parent.mkdir(parents=True, exist_ok=True)
            self._open()
        self.header: dict[str, Any] | None = None
        self.entries: list[dict[str, Any]] = []
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def restart(self, header: dict[str, Any]) -> None:
        """Forget all entries."""
        os.ftruncate(self._file, 0)
        self.header, self.entries = None, []
        self._write({**header, "process": os.getpid(), "host": socket.gethostname()})

    def add(self, entry: dict[str, Any]) -> None:
        """Append an entry, safe on the disk when it returns."""
        self._write(entry)
        os.fsync(self._file)

    def close(self, remove: bool = False) -> None:
        """Let go of the lock; with `remove` the journal is gone too."""
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self._file)

    def _open(self) -> None:
        while True:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                self.locked = _lock(self._file)
            except BlockingIOError:
                owner = self._owner()
                os.close(self._file)
                raise UserError(
                    f"{self.target}: another `smat data prepare` is just writing it{owner}; wait for it, or give another --name or --out"
                ) from None
            try:
                if os.path.samestat(os.fstat(self._file), os.stat(self.path)):
                    return
            except FileNotFoundError:
                pass
            os.close(self._file)  # its owner finished and removed it between opening and locking

    def _owner(self) -> str:
        for line in reversed(os.pread(self._file, 2**20, 0).splitlines()):
            try:
                found = parse_json(line)
                return f" (process {found['process']} on {found['host']})"
            except (ValueError, KeyError, TypeError):
                continue
        return ""

    def _read(self) -> None:
        with open(self._file, "rb", closefd=False) as file:
            end = 0
            for line in file:
                try:
                    found = parse_json(line) if line.endswith(b"\n") else None
                except ValueError:
                    found = None
                if not isinstance(found, dict):
                    break
                if self.header is None:
                    self.header = found
                elif "process" not in found:
                    self.entries.append(found)
                end += len(line)
        os.ftruncate(self._file, end)
        if self.header is not None:
            self._write({"process": os.getpid(), "host": socket.gethostname()})

    def _write(self, line: dict[str, Any]) -> None:
        data = json.dumps(line).encode() + b"\n"
        os.lseek(self._file, 0, os.SEEK_END)
        while data:
            data = data[os.write(self._file, data) :]


def _lock(file: int) -> bool:
    """Whether the file could be locked; BlockingIOError when another process has it, False where locks are unknown."""
    try:
        import fcntl
    except ImportError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True
