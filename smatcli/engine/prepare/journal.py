"""Journal of an unfinished store: the progress from which the next attempt continues, and a lock for one process at a time."""

import hashlib
import json
import os
import socket
from pathlib import Path
from typing import Any

from smatcli.errors import UserError
from smatcli.safe.files import disk_errors, lock, open_lock
from smatcli.safe.text import parse_json


def hidden(target: Path, suffix: str) -> Path:
    """Return the path of a hidden file beside `target`, with the name of `target` in its name."""
    name = target.stem if len(target.stem.encode()) < 200 else hashlib.sha256(target.stem.encode()).hexdigest()[:40]
    return target.with_name(f".{name}.{suffix}")


class Journal:
    """Lines of JSON in a hidden file beside `target`, locked while it is open. The system releases the lock of a dead process.

    The first line is the header that `restart` wrote; `entries` are what `add` wrote. An incomplete last line is ignored.
    Raises UserError if another process holds the lock or the folder is not writable. `locked` is False on file systems without locks.
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
        """Delete all entries and write a new header."""
        os.ftruncate(self._file, 0)
        self.header, self.entries = None, []
        self._write({**header, "process": os.getpid(), "host": socket.gethostname()})

    def add(self, entry: dict[str, Any]) -> None:
        """Append an entry and flush it to the disk."""
        self._write(entry)
        os.fsync(self._file)

    def close(self, remove: bool = False) -> None:
        """Release the lock; with `remove`, delete the journal as well."""
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self._file)

    def _open(self) -> None:
        while True:
            self._file = open_lock(self.path)
            try:
                self.locked = lock(self._file)
            except BlockingIOError:
                owner = self._owner()
                os.close(self._file)
                raise UserError(
                    f"{self.target}: another `smat data prepare` is writing it{owner}; wait for it, or give another --name or --out"
                ) from None
            try:
                if os.path.samestat(os.fstat(self._file), os.stat(self.path)):
                    return
            except FileNotFoundError:
                pass
            os.close(self._file)  # its owner finished and removed it after it was opened here and before it was locked

    def _owner(self) -> str:
        for line in reversed(os.pread(self._file, 2**20, 0).splitlines()):
            try:
                entry = parse_json(line)
                return f" (process {entry['process']} on {entry['host']})"
            except (ValueError, KeyError, TypeError):
                continue
        return ""

    def _read(self) -> None:
        with open(self._file, "rb", closefd=False) as file:
            end = 0
            for line in file:
                try:
                    entry = parse_json(line) if line.endswith(b"\n") else None
                except ValueError:
                    entry = None
                if not isinstance(entry, dict):
                    break
                if self.header is None:
                    self.header = entry
                elif "process" not in entry:
                    self.entries.append(entry)
                end += len(line)
        os.ftruncate(self._file, end)
        if self.header is not None:
            self._write({"process": os.getpid(), "host": socket.gethostname()})

    def _write(self, line: dict[str, Any]) -> None:
        data = json.dumps(line).encode() + b"\n"
        os.lseek(self._file, 0, os.SEEK_END)
        while data:
            data = data[os.write(self._file, data) :]
