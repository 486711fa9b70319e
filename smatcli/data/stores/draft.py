"""Images of an unfinished store: they stream into the final file, and a mark records the progress for a continuation."""

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
_RECORD = struct.Struct("<IB")  # per image: bytes, split code
RECORD = np.dtype([("length", "<u4"), ("split", "u1")])
_BLOCK = 2**20


@dataclass(frozen=True)
class Mark:
    """Point from which a draft can be continued: number of images, their total bytes, SHA-256 of these (hex)."""

    images: int
    bytes: int
    digest: str


class Draft:
    """Append images to `path`, from byte 4096 on; with `records`, keep length and split code of every image in a file beside it.

    With `mark` it continues an earlier draft: bytes after the mark are cut off, bytes before it are read and compared with its digest.
    Raises ValueError if they differ.
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
        """Count `images` more images of `size` bytes in total."""
        self.images += images
        self.bytes += size

    def append(self, data: bytes, split: int = 0) -> None:
        """Append an encoded image with its split code."""
        self.digest.update(data)
        self.file.write(data)
        self.note(1, len(data))
        self.record(len(data), split)

    def record(self, length: int, split: int) -> None:
        """Record length and split code of the last image (only with `records`)."""
        if self._records is not None:
            self._waiting += _RECORD.pack(length, split)
            if len(self._waiting) > _BLOCK:
                self._flush_records()

    def flush(self) -> None:
        """Flush all buffers to the operating system."""
        self._flush_records()
        self.file.flush()

    def mark(self) -> Mark:
        """Flush everything to the disk and return the current mark."""
        self.flush()
        os.fsync(self.file.fileno())
        if self._records is not None:
            os.fsync(self._records.fileno())
        return Mark(self.images, self.bytes, self.digest.hexdigest())

    def records(self, block: int = 2**20) -> Iterator[np.ndarray]:
        """Yield length and split code of all images, in blocks of a `RECORD` array."""
        self._flush_records()
        self._records.seek(0)
        while data := self._records.read(block * _RECORD.size):
            yield np.frombuffer(data, RECORD)

    def close(self) -> None:
        """Close the files without deleting them. Never fails: call `flush` first if their content is needed."""
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
            raise ValueError("differs from its mark")
        self.images, self.bytes = mark.images, mark.bytes


def records_path(draft: Path) -> Path:
    """Return the path of the file with the records of a draft."""
    return draft.with_name(draft.name + ".rows")
