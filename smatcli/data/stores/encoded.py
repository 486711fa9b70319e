"""Images of a store by row: pixels read without the memory map, and encoded images that are decoded on access."""

import os
import struct
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from smatcli.errors import UserError

AGAIN = "prepare the store again with --replace"


class RowFile:
    """Open file with thread-safe random access; it is closed with the last reference."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._file)

    def read(self, place: int, size: int) -> bytes:
        """Return `size` bytes from byte `place` on. Raises UserError if the file has become shorter."""
        data = os.pread(self._file, size, place)
        while len(data) < size:
            more = os.pread(self._file, size - len(data), place + len(data))
            if not more:
                raise self._short()
            data += more
        return data

    def read_rows(self, start: int, chosen: np.ndarray, out: np.ndarray, places: np.ndarray) -> None:
        """Copy out[places[i]] = row chosen[i] of the rows like out[0] that begin at byte `start`."""
        file, size, preadv = self._file, out[0].nbytes, os.preadv
        for row, place in zip(chosen.tolist(), places.tolist(), strict=True):
            target = out[place]
            done = preadv(file, (target,), start + row * size)
            if done < size:
                rest = self.read(start + row * size + done, size - done)
                target.reshape(-1)[done:] = np.frombuffer(rest, np.uint8)

    def _short(self) -> UserError:
        return UserError(f"{self.path}: truncated after it was opened; {AGAIN}")


class MappedImages(np.memmap):
    """Memory map of raw images [N, H, W, 3]; `read` bypasses the map, so that its pages do not accumulate in the process."""

    rows: RowFile | None = None  # of the whole map only, not of views of it

    def read(self, chosen: np.ndarray, out: np.ndarray, places: np.ndarray) -> None:
        """Copy out[places[i]] = self[chosen[i]]."""
        assert self.rows is not None
        if len(chosen) and not 0 <= chosen.min() <= chosen.max() < len(self):
            raise IndexError(f"rows {chosen.min()} to {chosen.max()} of {len(self)} images")
        self.rows.read_rows(self.offset, chosen, out, places)


class EncodedImages:
    """Array-like uint8 [N, size, size, 3], indexed by row, slice or int64 [n]; thread-safe.

    The file has `length` bytes of concatenated encoded images from byte `start` on, and their first bytes as int64 [N + 1] from byte
    `index` on. An image that cannot be decoded raises UserError with its row and its position in the file.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, path: Path, images: int, size: int, fit: str, start: int, length: int, index: int) -> None:
        self.path, self.fit = path, fit
        self.shape = (images, size, size, 3)
        self._start, self._length, self._index = start, length, index
        self._file = RowFile(path)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        if isinstance(rows, int | np.integer):
            return self._decode(range(len(self))[int(rows)])
        chosen = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows)
        if chosen.dtype == bool:
            chosen = np.flatnonzero(chosen)
        out = np.empty((len(chosen), *self.shape[1:]), np.uint8)
        self.read(chosen, out, np.arange(len(chosen)))
        return out

    def read(self, chosen: np.ndarray, out: np.ndarray, places: np.ndarray) -> None:
        """Copy out[places[i]] = self[chosen[i]]."""
        for row, place in zip(chosen.tolist(), places.tolist(), strict=True):
            out[place] = self._decode(range(len(self))[row])

    def file(self, row: int) -> bytes:
        """Return the encoded image. Raises UserError if its position is invalid."""
        begin, end = self._place(row)
        return self._file.read(self._start + begin, end - begin)

    def _place(self, row: int) -> tuple[int, int]:
        begin, end = struct.unpack("<qq", self._file.read(self._index + 8 * row, 16))
        if not 0 <= begin < end <= self._length:
            raise UserError(f"{self.path}: image {row} has an invalid position ({begin} to {end}); {AGAIN}")
        return begin, end

    def _decode(self, row: int) -> np.ndarray:
        from smatcli.data.images import Unreadable, decode_image

        try:
            return decode_image(self.file(row), self.shape[1], "squash" if self.fit == "squash" else "crop")
        except Unreadable as error:
            place = self._start + self._place(row)[0]
            raise UserError(f"{self.path}: image {row}, at byte {place:,}: {error}; {AGAIN}") from error
