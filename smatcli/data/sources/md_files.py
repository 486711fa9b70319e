"""Common parts of Meta-Dataset's official files and PMF's: one file per class beside `dataset_spec.json`."""

import hashlib
import os
import re
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from smatcli.data.metadataset.spec import SPEC_FILE, Spec, read_spec
from smatcli.errors import UserError
from smatcli.safe.files import pointer_kind

_OPEN = 8  # class files open at once, far below any limit of the system

File = TypeVar("File")


class SpecFolder:
    """A folder's specification and class files. `fingerprint` is a hash of their names, sizes and times; the files are not read.

    `suffix` replaces the spec's suffix of class files. Raises UserError if the files in the folder do not match the spec.
    """

    def __init__(self, path: str | Path, suffix: str | None = None):
        self.root = Path(path)
        if self.root.is_file() and self.root.name == SPEC_FILE:
            self.root = self.root.parent
        if not self.root.is_dir():
            raise UserError(f"{self.root}: {'is a file, not a folder' if self.root.exists() else 'folder does not exist'}")
        self.spec: Spec = read_spec(self.root)
        self.files = [self.spec.file(i, suffix) for i in range(len(self.spec.classes))]
        if not self.files:
            raise UserError(f"{self.root / SPEC_FILE}: has no classes")
        present = self._list()
        self._refuse_unknown(present, suffix)
        self._refuse_missing(present)
        facts = [(name, present[name].st_size, present[name].st_mtime_ns) for name in self.files if name in present]
        self.fingerprint = hashlib.sha256(repr((self.spec, facts)).encode()).hexdigest()

    @property
    def name(self) -> str:
        """Name of the dataset in the spec if it is a valid file name, else the name of the folder."""
        name = self.spec.name
        return self.root.resolve().name if "/" in name or name.startswith(".") else name

    def path(self, class_id: int) -> Path:
        """Return the path of a class's file."""
        return self.root / self.files[class_id]

    def _list(self) -> dict[str, os.stat_result]:
        """Return name -> stat result of the regular files in the folder, following links."""
        files = {}
        try:
            with os.scandir(self.root) as entries:
                for entry in entries:
                    try:
                        facts = entry.stat()
                    except FileNotFoundError:  # a broken link is a missing file
                        continue
                    if stat.S_ISREG(facts.st_mode):
                        files[entry.name] = facts
        except OSError as error:
            raise UserError(f"{self.root}: cannot be listed ({(error.strerror or str(error)).lower()})") from error
        return files

    def _refuse_missing(self, present: dict[str, os.stat_result]) -> None:
        missing = [i for i, c in enumerate(self.spec.classes) if c.images and self.files[i] not in present]
        if missing:
            first = missing[0]
            of = "" if len(missing) == 1 else f"; {len(missing):,} of {len(self.files):,} class files are missing"
            raise UserError(f"{self.path(first)}: missing, the file of class {first} ({self.spec.classes[first].name}){of}")
        for i, c in enumerate(self.spec.classes):
            if c.images and present[self.files[i]].st_size < 1000:
                _refuse_placeholder(self.path(i), c.images)

    def _refuse_unknown(self, present: dict[str, os.stat_result], suffix: str | None) -> None:
        before, after = self.spec.pattern.split("{}") if suffix is None else ("", suffix)
        pattern = re.compile(re.escape(before) + r"(\d+)" + re.escape(after))
        expected = set(self.files)
        unknown = sorted(name for name in present if name not in expected and pattern.fullmatch(name))
        if unknown:
            raise UserError(
                f"{self.root / unknown[0]}: {SPEC_FILE} has classes 0 to {len(self.files) - 1}, but {len(unknown):,} more class "
                f"file{'s exist' if len(unknown) > 1 else ' exists'}; the folder has files of two datasets, or the wrong {SPEC_FILE}"
            )


class OpenFiles(Generic[File]):
    """Thread-safe cache of the last few class files, opened by `opener(class id)`.

    An evicted file is closed when no thread reads from it any more.
    """

    def __init__(self, opener: Callable[[int], File]):
        self._opener = opener
        self._open: OrderedDict[int, File] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, class_id: int) -> File:
        with self._lock:
            file = self._open.get(class_id)
            if file is None:
                file = self._open[class_id] = self._opener(class_id)
                if len(self._open) > _OPEN:
                    self._open.popitem(last=False)
            self._open.move_to_end(class_id)
            return file

    def close(self) -> None:
        with self._lock:
            self._open.clear()


def _refuse_placeholder(path: Path, images: int) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(1000)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()})") from error
    if kind := pointer_kind(head):
        raise UserError(f"{path}, byte 0: is a {kind} pointer, not the data; fetch it first")
    if not head:
        raise UserError(f"{path}, byte 0: the file is empty, but should have {images:,} images by {SPEC_FILE}; fetch it again")
