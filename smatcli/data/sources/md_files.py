"""What Meta-Dataset's official files and PMF's have in common: one file per class beside `dataset_spec.json`."""

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
    """The specification of a folder and its class files, `fingerprint` over their names, sizes and times; nothing else of them is read.

    `suffix` is the ending of class files where it differs from the spec's. Raises UserError for a folder whose files are not the spec's.
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
            raise UserError(f"{self.root / SPEC_FILE}: has no class")
        there = self._list()
        self._refuse_unknown(there, suffix)
        self._refuse_missing(there)
        facts = [(name, there[name].st_size, there[name].st_mtime_ns) for name in self.files if name in there]
        self.fingerprint = hashlib.sha256(repr((self.spec, facts)).encode()).hexdigest()

    @property
    def name(self) -> str:
        """The spec's name where it can be a file's, else the folder's."""
        named = self.spec.name
        return self.root.resolve().name if "/" in named or named.startswith(".") else named

    def path(self, class_id: int) -> Path:
        """Path of a class's file."""
        return self.root / self.files[class_id]

    def _list(self) -> dict[str, os.stat_result]:
        """Name -> facts of the regular files in the folder, links followed."""
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

    def _refuse_missing(self, there: dict[str, os.stat_result]) -> None:
        missing = [i for i, c in enumerate(self.spec.classes) if c.images and self.files[i] not in there]
        if missing:
            first = missing[0]
            of = "" if len(missing) == 1 else f"; {len(missing):,} of {len(self.files):,} class files are missing"
            raise UserError(f"{self.path(first)}: missing, the file of class {first} ({self.spec.classes[first].name}){of}")
        for i, c in enumerate(self.spec.classes):
            if c.images and there[self.files[i]].st_size < 1000:
                _refuse_stand_in(self.path(i), c.images)

    def _refuse_unknown(self, there: dict[str, os.stat_result], suffix: str | None) -> None:
        before, after = self.spec.pattern.split("{}") if suffix is None else ("", suffix)
        pattern = re.compile(re.escape(before) + r"(\d+)" + re.escape(after))
        known = set(self.files)
        unknown = sorted(name for name in there if name not in known and pattern.fullmatch(name))
        if unknown:
            raise UserError(
                f"{self.root / unknown[0]}: {SPEC_FILE} has classes 0 to {len(self.files) - 1}, but {len(unknown):,} more class "
                f"file{'s are' if len(unknown) > 1 else ' is'} there; the folder holds files of two datasets, or the wrong {SPEC_FILE}"
            )


class OpenFiles(Generic[File]):
    """Class files opened by `opener(class id)`, the last few kept open; safe from any thread.

    A file that is pushed out is closed when the last thread that reads from it lets go of it.
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


def _refuse_stand_in(path: Path, images: int) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(1000)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()})") from error
    if kind := pointer_kind(head):
        raise UserError(f"{path}, byte 0: is a {kind} pointer, not the data; fetch it first")
    if not head:
        raise UserError(f"{path}, byte 0: the file is empty, {SPEC_FILE} says {images:,} images; fetch it again")
