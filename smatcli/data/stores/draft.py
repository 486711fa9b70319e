"""The images of a store in the making: they stream into the final file, and a mark says how far they are for whoever continues."""

import hashlib
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

START = 4096  # byte offset of the images: one memory page, so that the map is aligned
_RECORD = struct.Struct("<IB")  # of each image: bytes, split code
RECORD = np.dtype([("length", "<u4"), ("split", "u1")])
_BLOCK = 2**20


@dataclass(frozen=True)
class Mark:
    """A point that a draft can be continued from: images, their bytes in all, SHA-256 of these (hex)."""

    images: int
    bytes: int
    digest: str


class Draft:
    """Appends images to `path`, from byte 4096 on; `records`: keeps length and split code of every image in a file beside it.

    With `mark` it continues an earlier draft: everything behind the mark is cut off, everything before it is read and compared with its
    digest; raises ValueError if that is not what the mark says.
    """

    def __init__(self, path: Path, records: bool = False, mark: Mark | None = None) -> None:
        self.path, self.records_path = path, records_path(path)
        self.images = self.bytes = 0
        self.digest = hashlib.sha256()
        self._waiting = bytearray()
        self._open = ExitStack()
        with ExitStack() as failed:
            failed.callback(self._open.close)
            mode = "w+b" if mark is None else "r+b"
            self.file: Any = self._open.enter_context(path.open(mode))
            self._records: Any = self._open.enter_context(self.records_path.open(mode)) if records else None
            if mark is None:
                self.file.write(bytes(START))
            else:
                self._continue(mark)
            failed.pop_all()

    def note(self, images: int, size: int) -> None:
        """`images` more are in the file, `size` bytes in all."""
        self.images += images
        self.bytes += size

    def append(self, data: bytes, split: int = 0) -> None:
        """One encoded image, with its split code."""
        self.digest.update(data)
        self.file.write(data)
        self.note(1, len(data))
        self.record(len(data), split)

    def record(self, length: int, split: int) -> None:
        """Keep length and split code of the image that was just added (only with `records`)."""
        if self._records is not None:
            self._waiting += _RECORD.pack(length, split)
            if len(self._waiting) > _BLOCK:
                self._flush_records()

    def flush(self) -> None:
        """Hand everything to the operating system."""
        self._flush_records()
        self.file.flush()

    def mark(self) -> Mark:
        """The state of now, safe on the disk."""
        self.flush()
        os.fsync(self.file.fileno())
        if self._records is not None:
            os.fsync(self._records.fileno())
        return Mark(self.images, self.bytes, self.digest.hexdigest())

    def records(self, block: int = 2**20) -> Iterator[np.ndarray]:
        """Length and split code of all images, in blocks of a `RECORD` array."""
        self._flush_records()
        self._records.seek(0)
        while data := self._records.read(block * _RECORD.size):
            yield np.frombuffer(data, RECORD)

    def close(self) -> None:
        """Close the files; both stay where they are. Never fails: whoever needs what is in them calls `flush` before."""
        with suppress(OSError):
            self._open.close()

    def _flush_records(self) -> None:
        if self._records is not None:
            self._records.seek(0, 2)
            self._records.write(self._waiting)
            self._records.flush()
            self._waiting.clear()

    def _continue(self, mark: Mark) -> None:
        parts: Sequence[tuple[Any, int]] = [(self.file, START + mark.bytes)]
        if self._records is not None:
            parts = [*parts, (self._records, mark.images * _RECORD.size)]
        for file, length in parts:
            if file.seek(0, 2) < length:
                raise ValueError("shorter than its mark")
            file.truncate(length)
        self.file.seek(START)
        while block := self.file.read(_BLOCK):
            self.digest.update(block)
        if self.digest.hexdigest() != mark.digest:
            raise ValueError("not what its mark says")
        self.images, self.bytes = mark.images, mark.bytes


def records_path(draft: Path) -> Path:
    """The file with the records of a draft."""
    return draft.with_name(draft.name + ".rows")
