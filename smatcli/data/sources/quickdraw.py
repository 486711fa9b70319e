"""Source `quickdraw`: Google's Quick, Draw! (Ha & Eck, 2018), one file of bitmaps (`.npy`) or drawings (`.ndjson`) per class."""

import math
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, overload

import numpy as np

from smatcli.data.images import Unreadable
from smatcli.data.sources.base import SourceClass
from smatcli.data.sources.drawings import LineIndex, render_line
from smatcli.data.sources.imagetree import digest, file_stamp
from smatcli.errors import UserError
from smatcli.safe.files import pointer_kind

_SUFFIXES = (".npy", ".ndjson")
_PREFIX = re.compile(r"^full(%2F|_|/)(numpy_bitmap|simplified|raw)(%2F|_|/)")  # of file names as saved by browsers


class QuickdrawSource:
    """All `<class>.npy` and `<class>.ndjson` files below a folder, or one of these files; the class is the name of the file.

    Bitmaps [n, side * side] keep their light lines on black, as in Meta-Dataset. Drawings, simplified or raw, are rendered (see
    `drawings.render`). Images are read one by one, so memory does not depend on their number (50 million in the whole dataset).
    Raises UserError for files that are missing, truncated or of another kind.
    """

    kind = "quickdraw"
    name = "quickdraw"

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.remarks: list[str] = []
        self.ontology = None
        self._handles = _Handles()
        self._files = _by_class(self.path)
        bitmaps = {name: file for name, file in self._files.items() if file.suffix.lower() == ".npy"}
        self._bitmaps = {name: _Bitmaps(file) for name, file in bitmaps.items()}
        self._lines = {name: LineIndex(file) for name, file in self._files.items() if name not in bitmaps}
        self.fingerprint = digest(f"{name}\0{file_stamp(file)}" for name, file in self._files.items())
        self._block = threading.local()
        if self._bitmaps and self._lines:
            self.remarks.append(f"{len(self._bitmaps)} classes are bitmaps, {len(self._lines)} are drawings: they look different")

    def classes(self) -> Sequence[SourceClass]:
        return [SourceClass(name, Numbered(name, self._bitmaps.get(name) or self._lines[name])) for name in sorted(self._files)]

    def read(self, image: str) -> np.ndarray:
        """Return the image, uint8 [h, w, 3], of a key "<class>#<number>", counted from 0."""
        name, _, number = image.rpartition("#")
        if name in self._bitmaps:
            return self._bitmaps[name].read(self._handles.open(self._files[name]), int(number))
        return render_line(self._line(name, int(number)))

    def close(self) -> None:
        self._handles.close()

    def _line(self, name: str, number: int) -> bytes:
        """Return a line of a drawing file; each thread caches the last block of lines."""
        index = self._lines[name]
        block = index.block(number)
        if getattr(self._block, "key", None) != (name, block):
            self._block.key = None
            self._block.lines = index.read(self._handles.open(self._files[name]), block)
            self._block.key = (name, block)
        lines: list[bytes] = self._block.lines
        return lines[number - index.first(block)]


class Numbered(Sequence[str]):
    """Lazy sequence of keys "<name>#0", "<name>#1", ..., one per entry of `counted`."""

    def __init__(self, name: str, counted: Any, rows: range | None = None):
        self._name, self._counted, self._given = name, counted, rows

    @property
    def _rows(self) -> range:
        return range(len(self._counted)) if self._given is None else self._given

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Numbered": ...
    def __getitem__(self, index: int | slice) -> "str | Numbered":
        if isinstance(index, slice):
            return Numbered(self._name, self._counted, self._rows[index])
        return f"{self._name}#{self._rows[index]}"

    def __iter__(self) -> Iterator[str]:
        return (f"{self._name}#{row}" for row in self._rows)


class _Bitmaps:
    """The header of a `.npy` file of bitmaps, checked against the file's size."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with path.open("rb") as file:
                if kind := pointer_kind(file.read(1000)):
                    raise UserError(f"{path}: is a {kind} pointer, not the data; fetch it first")
                file.seek(0)
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, fortran, dtype = read(file)
                self._start = file.tell()
        except UserError:
            raise
        except Exception as error:  # the header is a Python literal, and parsing it can raise almost anything
            raise UserError(f"{path}: is not a .npy file of bitmaps ({(str(error) or 'damaged').splitlines()[0][:100]})") from error
        pixels = math.prod(shape[1:]) if min(shape, default=0) >= 0 else 0
        self.side = math.isqrt(pixels)
        if dtype not in (np.uint8, np.bool_) or fortran or len(shape) < 2 or self.side**2 != pixels or not pixels:
            raise UserError(f"{path}: has {dtype} {list(shape)}, not bitmaps uint8 [n, 784]")
        self._count, self._scale = shape[0], 255 if dtype == np.bool_ else 1
        size, end = path.stat().st_size, self._start + shape[0] * pixels
        if size != end:
            raise UserError(f"{path}: {'truncated' if size < end else 'damaged'}: {size:,} bytes, {shape[0]:,} bitmaps end at {end:,}")

    def __len__(self) -> int:
        return self._count

    def read(self, file: IO[bytes], row: int) -> np.ndarray:
        """Read bitmap `row`, uint8 [side, side, 3]."""
        size = self.side**2
        file.seek(self._start + row * size)
        data = file.read(size)
        if len(data) < size:
            raise UserError(f"{self.path}: bitmap {row} at byte {self._start + row * size:,} is missing; the file was truncated")
        pixels = np.frombuffer(data, np.uint8).reshape(self.side, self.side, 1) * np.uint8(self._scale)
        return np.repeat(pixels, 3, axis=2)


class _Handles:
    """One open file per thread, the last one used, which limits the number of open files."""

    def __init__(self) -> None:
        self._local = threading.local()
        self._all: set[IO[bytes]] = set()
        self._lock = threading.Lock()

    def open(self, path: Path) -> IO[bytes]:
        if getattr(self._local, "path", None) != path:
            with self._lock:
                if old := getattr(self._local, "file", None):
                    old.close()
                    self._all.discard(old)
                self._local.path = None
                try:
                    self._local.file = path.open("rb", buffering=2**16)
                except OSError as error:
                    raise Unreadable((error.strerror or "cannot be read").lower()) from None
                self._local.path = path
                self._all.add(self._local.file)
        file: IO[bytes] = self._local.file
        return file

    def close(self) -> None:
        with self._lock:
            for file in self._all:
                file.close()
            self._all.clear()
            self._local = threading.local()


def _by_class(path: Path) -> dict[str, Path]:
    if not path.exists():
        raise UserError(f"{path}: folder does not exist; it should contain one <class>.npy or <class>.ndjson per class")
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    by_class: dict[str, Path] = {}
    for file in files:
        if file.suffix.lower() not in _SUFFIXES or file.name.startswith(".") or not file.is_file():
            continue
        name = _PREFIX.sub("", file.stem)
        if other := by_class.get(name):
            raise UserError(f"{path}: the class {name!r} is in {other.name} and in {file.name}; keep one of them")
        by_class[name] = file
    if not by_class:
        raise UserError(f"{path}: has no <class>.npy or <class>.ndjson")
    return dict(sorted(by_class.items()))
