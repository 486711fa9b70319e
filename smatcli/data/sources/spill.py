"""Pixels that a library insists on loading as a whole, moved from memory to a temporary file."""

import os
import tempfile

import numpy as np

from smatcli.errors import SmatError

ROWS = 4096  # images copied at a time


class Spill:
    """uint8 [N, H, W] or [N, H, W, 3] in a file that has no name and vanishes with the process.

    Raises SmatError if the folder for temporary files is full or cannot be written.
    """

    def __init__(self, pixels: np.ndarray):
        self._shape = pixels.shape[1:]
        self._bytes = int(np.prod(self._shape))
        try:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  # closed by close()
            for start in range(0, len(pixels), ROWS):
                self._file.write(np.ascontiguousarray(pixels[start : start + ROWS]).data)
            self._file.flush()
        except OSError as error:
            need = f"{self._bytes * len(pixels) / 2**20:.0f} MiB of temporary space"
            raise SmatError(f"{tempfile.gettempdir()}: {error.strerror or error}; {need} needed, TMPDIR chooses another folder") from error

    def image(self, row: int) -> np.ndarray:
        """uint8 [H, W, 3] of one image (grey ones thrice); may be called from many threads."""
        data = os.pread(self._file.fileno(), self._bytes, row * self._bytes)
        pixels = np.frombuffer(data, np.uint8).reshape(self._shape)
        return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels

    def close(self) -> None:
        self._file.close()
