"""Temporary file for pixels that a library loads into memory all at once."""

import os
import tempfile

import numpy as np

from smatcli.errors import SmatError

ROWS = 4096  # images copied at a time


class Spill:
    """Images uint8 [N, H, W] or [N, H, W, 3] in an unnamed file that is deleted when the process ends.

    Raises SmatError if the folder for temporary files is full or not writable.
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
            raise SmatError(f"{tempfile.gettempdir()}: {error.strerror or error}; {need} needed; set TMPDIR to another folder") from error

    def image(self, row: int) -> np.ndarray:
        """Return one image, uint8 [H, W, 3]; grey images are repeated over the channels. Thread-safe."""
        data = os.pread(self._file.fileno(), self._bytes, row * self._bytes)
        pixels = np.frombuffer(data, np.uint8).reshape(self._shape)
        return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels

    def close(self) -> None:
        self._file.close()
