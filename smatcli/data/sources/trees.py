"""A directory or ZIP archive as a flat list of files. Archive entries that point outside, and decompression bombs, are refused."""

import os
import re
import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from smatcli.data.images import MAX_BYTES, Unreadable
from smatcli.errors import UserError
from smatcli.safe.files import pointer_kind
from smatcli.safe.text import refuse_special

# Largest ratio of unpacked to packed size of an archive, checked above FREE_BYTES. Photographs hardly shrink, drawings about 50 times.
MAX_RATIO = 100
FREE_BYTES = 2**30
ENTRY_RATIO = 200
ENTRY_FREE_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Listed:
    """A file: relative name with "/", size in bytes, and a stamp that follows the content (CRC-32 or modification time)."""

    name: str
    size: int
    stamp: int


class DirectoryTree:
    """Files below a directory. Links are followed; each directory is visited once."""

    def __init__(self, root: Path):
        self.root = root
        self._empty: list[str] = []

    def files(self) -> list[Listed]:
        listed, seen = [], set()
        self._empty.clear()
        for folder, folders, names in os.walk(self.root, followlinks=True, onerror=_cannot_list):
            where = os.stat(folder)
            if (where.st_dev, where.st_ino) in seen:
                folders.clear()
                continue
            seen.add((where.st_dev, where.st_ino))
            folders.sort()
            relative = PurePosixPath(Path(folder).relative_to(self.root))
            if not folders and all(name.startswith(".") for name in names):
                self._empty.append(str(relative))
            for name in names:
                try:
                    facts = os.stat(os.path.join(folder, name))
                    listed.append(Listed(str(relative / name), facts.st_size, facts.st_mtime_ns))
                except OSError:
                    listed.append(Listed(str(relative / name), -1, 0))
        return listed

    def empty_folders(self) -> list[str]:
        """Return the folders without folders and visible files that `files` saw last."""
        return self._empty

    def read(self, name: str) -> bytes:
        path = self.root / name
        try:
            facts = path.stat()
            if not stat.S_ISREG(facts.st_mode):
                raise Unreadable("not a regular file")
            if facts.st_size > MAX_BYTES:
                raise Unreadable(f"file of {facts.st_size:,} bytes, larger than {MAX_BYTES:,}")
            return path.read_bytes()
        except FileNotFoundError:
            raise Unreadable("broken link" if path.is_symlink() else "vanished") from None
        except OSError as error:
            raise Unreadable((error.strerror or "cannot be read").lower()) from None

    def close(self) -> None: ...


class ZipTree:
    """Entries of a ZIP archive, read in place. Raises UserError for an archive that is damaged, encrypted or malicious."""

    def __init__(self, path: Path):
        self.path = path
        self._zip = _open_zip(path)
        try:
            self._entries = {_safe_name(info, path): info for info in self._zip.infolist() if not info.is_dir()}
            _refuse_malicious(path, self._zip.infolist(), len(self._entries))
        except UserError:
            self._zip.close()
            raise

    def files(self) -> list[Listed]:
        return [Listed(name, info.file_size, info.CRC) for name, info in self._entries.items()]

    def empty_folders(self) -> list[str]:
        """Return the folders of the archive without entries."""
        used = {str(folder) for name in self._zip.namelist() for folder in PurePosixPath(name).parents}
        return sorted({str(PurePosixPath(_safe_name(info, self.path))) for info in self._zip.infolist() if info.is_dir()} - used)

    def read(self, name: str) -> bytes:
        info = self._entries[name]
        if info.file_size > MAX_BYTES:
            raise Unreadable(f"entry of {info.file_size:,} bytes, larger than {MAX_BYTES:,}")
        try:
            with self._zip.open(info) as entry:
                return entry.read(info.file_size)
        except NotImplementedError as error:
            raise Unreadable(f"unsupported compression ({error})") from None
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError, struct.error) as error:
            raise Unreadable(f"damaged in the archive ({str(error)[:80] or type(error).__name__})") from None

    def close(self) -> None:
        self._zip.close()


def open_tree(path: Path) -> DirectoryTree | ZipTree:
    """Open a directory or ZIP. Raises UserError, with the likely reason, for anything else."""
    if path.is_dir():
        return DirectoryTree(path)
    if not path.exists():
        hint = " (the pattern matches nothing)" if any(c in path.name for c in "*?[") else ""
        raise UserError(f"{path}: does not exist; give a folder or a ZIP{hint}")
    return ZipTree(path)


def _open_zip(path: Path) -> zipfile.ZipFile:
    refuse_special(path)
    try:
        with path.open("rb") as file:
            head = file.read(512)
        if not head:
            raise UserError(f"{path}: the file is empty; expected a folder or a ZIP of class folders")
        if kind := pointer_kind(head):
            raise UserError(f"{path}: is a {kind} pointer, not the data; fetch it first")
        archive = zipfile.ZipFile(path)
        if not all(info.filename for info in archive.infolist()):
            archive.close()
            raise UserError(f"{path}: damaged ZIP (an entry without a name); fetch it again")
        return archive
    except (zipfile.BadZipFile, ValueError, struct.error, NotImplementedError, EOFError) as error:
        if not head.startswith(b"PK"):
            raise UserError(f"{path}: is neither a folder nor a ZIP of class folders; unpack other archives first") from error
        raise UserError(f"{path}: truncated or damaged ZIP ({error}); fetch it again") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _safe_name(info: zipfile.ZipInfo, path: Path) -> str:
    name = info.filename
    if not info.flag_bits & 0x800:  # macOS writes UTF-8 without setting the flag
        try:
            name = name.encode("cp437").decode("utf-8")
        except UnicodeError:
            name = info.filename
    name = name.replace("\\", "/")
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in name.split("/"):
        raise UserError(f"{path}: refused, the entry {name[:100]!r} points outside the archive (path traversal)")
    if stat.S_ISLNK(info.external_attr >> 16):
        raise UserError(f"{path}: refused, the entry {name[:100]!r} is a symbolic link")
    if info.flag_bits & 0x1:
        raise UserError(f"{path}: the entry {name[:100]!r} is encrypted; unpack it with its password first")
    return str(PurePosixPath(name))


def _refuse_malicious(path: Path, infos: list[zipfile.ZipInfo], names: int) -> None:
    files = [info for info in infos if not info.is_dir()]
    if names < len(files):
        raise UserError(f"{path}: refused, {len(files) - names} entries have the name of another entry")
    for info in files:
        if info.file_size > ENTRY_FREE_BYTES and info.file_size > ENTRY_RATIO * max(info.compress_size, 1):
            raise UserError(
                f"{path}: refused, the entry {info.filename[:100]!r} unpacks from {info.compress_size:,} to {info.file_size:,} bytes "
                "(decompression bomb)"
            )
    total, packed = sum(info.file_size for info in files), path.stat().st_size
    if total > FREE_BYTES and total > MAX_RATIO * packed:
        raise UserError(f"{path}: refused, it unpacks from {packed:,} to {total:,} bytes (decompression bomb)")


def _cannot_list(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be listed ({(error.strerror or str(error)).lower()})") from error
