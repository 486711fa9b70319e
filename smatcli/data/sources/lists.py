"""Images listed one by one, each with a label and a split, for benchmarks that split images instead of classes."""

import hashlib
from pathlib import Path, PurePosixPath

from smatcli.data.sources.base import SourceClass
from smatcli.data.sources.trees import DirectoryTree
from smatcli.errors import UserError
from smatcli.safe.files import pointer_kind
from smatcli.safe.text import refuse_special


class ListedImages:
    """Collection of (path, label, split) of images below `root`; the classes are the labels in ascending order.

    Paths are relative to the folder `prefix` below `root`. Raises UserError for a path that is outside `root` or listed twice.
    """

    def __init__(self, root: Path, prefix: str = ""):
        self.root = root
        self._tree = DirectoryTree(root)
        self._prefix = PurePosixPath(prefix)
        self._where: dict[str, str] = {}
        self._labels: dict[int, tuple[list[str], list[str]]] = {}  # label -> paths and their splits

    def __len__(self) -> int:
        return len(self._where)

    def add(self, path: str, label: int, split: str, where: str) -> None:
        """Add an image; `where` is its place in a list, for messages."""
        path = str(self._prefix / inside(path, where))
        if other := self._where.get(path):
            raise UserError(f"{where}: {path} is listed twice (first: {other}); an image must have one label and one split")
        self._where[path] = where
        paths, splits = self._labels.setdefault(label, ([], []))
        paths.append(path)
        splits.append(split)

    def classes(self) -> list[SourceClass]:
        """Return one class per label, named by its number."""
        return [SourceClass(str(label), paths, None, splits) for label, (paths, splits) in sorted(self._labels.items())]

    def fingerprint(self) -> str:
        """SHA-256 of labels, splits, paths, sizes and times. Raises UserError if none of the images exists."""
        digest, missing = hashlib.sha256(), 0
        for label, (paths, splits) in sorted(self._labels.items()):
            for path, split in zip(paths, splits, strict=True):
                stamp = stamp_of(self.root / path)
                missing += stamp == MISSING
                digest.update(f"{label}\0{split}\0{path}\0{stamp}\n".encode("utf-8", "surrogateescape"))
        if missing == len(self):
            first = next(iter(self._where))
            raise UserError(f"{self.root}: none of the {missing} listed images exists (first: {first}); put the images beside the lists")
        return digest.hexdigest()

    def read(self, path: str) -> bytes:
        """Return the encoded image. Raises Unreadable."""
        return self._tree.read(path)


MISSING = "missing"


def stamp_of(path: Path) -> str:
    """Size and modification time of a file, "folder" for a folder, or MISSING."""
    try:
        facts = path.stat()
    except OSError:
        return MISSING
    return "folder" if path.is_dir() else f"{facts.st_size} {facts.st_mtime_ns}"


def inside(path: str, where: str) -> PurePosixPath:
    """Return a relative path of a list. Raises UserError if it points outside the dataset's folder."""
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or "\0" in path:
        raise UserError(f"{where}: refused, the path {path[:100]!r} points outside the dataset's folder")
    return pure


def read_list(path: Path, how: str) -> str:
    """Read the text of a list. Raises UserError for a file that is missing (with `how` to get it), not text, or a pointer."""
    refuse_special(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: does not exist; {how}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()})") from error
    if kind := pointer_kind(data[:1000]):
        raise UserError(f"{path}: is a {kind} pointer, not the list; fetch it first")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not a text file (byte {error.start} is not UTF-8)") from error
