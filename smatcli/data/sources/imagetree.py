"""Images by name in a directory or ZIP, and other helpers for sources with list files."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from smatcli.data.images import Unreadable
from smatcli.data.sources.trees import open_tree
from smatcli.errors import UserError
from smatcli.safe.files import pointer_kind
from smatcli.safe.text import refuse_special


class ImageTree:
    """The files of a directory or ZIP, read by name; `fingerprint` is a hash of their names, sizes and stamps."""

    def __init__(self, path: Path):
        self.path = path
        self._tree = open_tree(path)
        try:
            listed = self._tree.files()
            self.names = frozenset(item.name for item in listed)
            self.fingerprint = digest(sorted(f"{item.name}\0{item.size}\0{item.stamp}" for item in listed))
        except BaseException:
            self._tree.close()
            raise

    def read(self, name: str) -> bytes:
        """Return the bytes of a file. Raises Unreadable if it is missing or cannot be read."""
        if name not in self.names:
            raise Unreadable("is listed, but missing")
        return self._tree.read(name)

    def close(self) -> None:
        self._tree.close()


def digest(lines: Iterable[str]) -> str:
    """SHA-256 (hex) of lines of text."""
    total = hashlib.sha256()
    for line in lines:
        total.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return total.hexdigest()


def file_stamp(path: Path) -> str:
    """Name, size and modification time of a file, for a fingerprint."""
    facts = path.stat()
    return f"{path.name}\0{facts.st_size}\0{facts.st_mtime_ns}"


def safe_name(name: str, where: str) -> str:
    """Return a relative name with "/" as separator. Raises UserError, with `where`, if it points outside its folder."""
    name = name.replace("\\", "/").removeprefix("./")
    if not name or name.startswith("/") or ":" in name.split("/")[0] or ".." in name.split("/"):
        raise UserError(f"{where}: refused, {name[:100]!r} points outside the folder of the images (path traversal)")
    return name


def read_pairs(path: Path, last: bool = False) -> Iterable[tuple[int, str, str]]:
    """Yield (line number, first, rest) for each line of a two-column text file; `last` splits at the last space instead of the first.

    Empty lines are skipped. Raises UserError, with file and line, for a line with one column.
    """
    refuse_special(path)
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if number == 1 and (kind := pointer_kind(line.encode())):
                    raise UserError(f"{path}: is a {kind} pointer, not the list; fetch it first")
                if not (line := line.strip()):
                    continue
                parts = line.rsplit(maxsplit=1) if last else line.split(maxsplit=1)
                if len(parts) != 2:
                    raise UserError(f"{path}, line {number}: {line[:80]!r} has one column, expected two")
                yield number, parts[0], parts[1]
    except FileNotFoundError:
        raise UserError(f"{path}: does not exist") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not a text file ({error.reason})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()})") from error


def whole_number(text: str, where: str) -> int:
    """Parse an integer of a list file. Raises UserError, with `where`, for anything else."""
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise UserError(f"{where}: {text[:40]!r} is not a number")
    return int(text)


def first_few(names: Sequence[str], most: int = 5) -> str:
    """Format the first few of many names for a message."""
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")
