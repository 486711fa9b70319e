"""Drawings of Quick, Draw!: random access to the lines of large `.ndjson` files, and rendering of strokes."""

import json
import threading
from array import array
from bisect import bisect_right
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageDraw

from smatcli.data.images import Unreadable
from smatcli.errors import UserError
from smatcli.safe.files import pointer_kind

SIDE = 256  # pixels of a rendered drawing
PEN = 16 / 304  # width of lines and margins as a fraction of the side, as in the published bitmaps
MAX_POINTS = 200_000
_BLOCK = 64  # lines between two indexed offsets
_CHUNK = 2**20
_MAX_BLOCK = 2**24  # bytes
_OVERSAMPLING = 2  # drawings are rendered so many times larger, then averaged


class LineIndex:
    """Index of the lines of a file: the offset of every 64th line, built in one pass on first use. Thread-safe."""

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        self._count: int | None = None
        self._lines, self._offsets = array("q"), array("q")
        with path.open("rb") as file:
            head = file.read(1000)
        if kind := pointer_kind(head):
            raise UserError(f"{path}: is a {kind} pointer, not the data; fetch it first")
        if not head.lstrip().startswith(b"{"):
            raise UserError(f"{path}: is not .ndjson (one drawing {{...}} per line)")

    def __len__(self) -> int:
        if self._count is None:
            with self._lock:
                if self._count is None:
                    self._scan()
        assert self._count is not None
        return self._count

    def block(self, line: int) -> int:
        """Return the number of a line's block."""
        if not 0 <= line < len(self):
            raise IndexError(line)
        return bisect_right(self._lines, line) - 1

    def first(self, block: int) -> int:
        """Return the number of a block's first line."""
        return self._lines[block]

    def read(self, file: IO[bytes], block: int) -> list[bytes]:
        """Read the lines of a block. Raises Unreadable for lines that are too long."""
        start, stop = self._offsets[block], self._offsets[block + 1]
        if stop - start > _MAX_BLOCK:
            raise Unreadable(f"in a line of more than {_MAX_BLOCK - _CHUNK:,} bytes (near byte {start:,})")
        file.seek(start)
        data = file.read(stop - start)
        lines = data.split(b"\n")
        if len(data) < stop - start or len(lines) < self._lines[block + 1] - self._lines[block]:
            raise UserError(f"{self.path}: changed while being read (byte {start:,})")
        return lines

    def _scan(self) -> None:
        """Build the index: a block starts at the beginning of the file, at the first new line of each chunk, and every 64 lines after."""
        lines, offsets = array("q", [0]), array("q", [0])
        count = at = 0
        ended = True
        with self.path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                ends = np.flatnonzero(np.frombuffer(chunk, np.uint8) == 10)
                for position in range(0, len(ends), _BLOCK):
                    lines.append(count + position + 1)
                    offsets.append(at + int(ends[position]) + 1)
                count += len(ends)
                at += len(chunk)
                ended = chunk.endswith(b"\n")
        count += not ended
        if lines[-1] < count or len(lines) == 1:
            lines.append(count)
            offsets.append(at)
        self._lines, self._offsets, self._count = lines, offsets, count


def render_line(line: bytes) -> np.ndarray:
    """Render a line of an `.ndjson` file, uint8 [256, 256, 3]. Raises Unreadable if it is not a drawing."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise Unreadable("empty line" if not line.strip() else "not JSON") from None
    if not isinstance(entry, dict) or "drawing" not in entry:
        raise Unreadable("has no drawing")
    return render(entry["drawing"])


def render(drawing: Any, side: int = SIDE) -> np.ndarray:
    """Render strokes [[x, ...], [y, ...], ...] in black on white, antialiased, centred and scaled to the frame: uint8 [side, side, 3].

    Coordinates may have any unit: simplified and raw drawings look the same. Raises Unreadable for invalid strokes.
    """
    strokes = _strokes(drawing)
    points = np.concatenate(strokes, axis=1)
    low, high = points.min(axis=1), points.max(axis=1)
    large = side * _OVERSAMPLING
    pen = PEN * large
    extent = float((high - low).max())
    scale = (large - 3 * pen) / extent if extent > 0 else 0.0
    canvas = Image.new("L", (large, large), 255)
    draw = ImageDraw.Draw(canvas)
    for stroke in strokes:
        points = (stroke - (low + high)[:, None] / 2) * scale + (large - 1) / 2
        _draw(draw, points.T, pen)
    pixels = np.asarray(canvas.reduce(_OVERSAMPLING))
    return np.repeat(pixels[:, :, None], 3, axis=2)


def _draw(draw: ImageDraw.ImageDraw, points: np.ndarray, pen: float) -> None:
    """Draw a line with round joints and ends."""
    path = [(float(x), float(y)) for x, y in points]
    draw.line(path, fill=0, width=max(round(pen), 1), joint="curve")
    for x, y in (path[0], path[-1]):
        draw.ellipse((x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2), fill=0)


def _strokes(drawing: Any) -> list[np.ndarray]:
    """Validate the strokes and return them as float64 [2, n] each."""
    if not isinstance(drawing, list) or not drawing:
        raise Unreadable("a drawing without strokes")
    strokes, points = [], 0
    for stroke in drawing:
        if not isinstance(stroke, list) or len(stroke) < 2 or not all(isinstance(axis, list) for axis in stroke[:2]):
            raise Unreadable("a stroke that is not [[x, ...], [y, ...]]")
        try:
            coordinates = np.array(stroke[:2], np.float64)
        except (ValueError, TypeError, OverflowError):
            raise Unreadable("a stroke that is not [[x, ...], [y, ...]]") from None
        if coordinates.ndim != 2 or not np.isfinite(coordinates).all() or np.abs(coordinates).max(initial=0) > 1e9:
            raise Unreadable("a stroke with invalid coordinates")
        points += coordinates.shape[1]
        if points > MAX_POINTS:
            raise Unreadable(f"more than {MAX_POINTS:,} points")
        if coordinates.shape[1]:
            strokes.append(coordinates)
    if not strokes:
        raise Unreadable("a drawing without points")
    return strokes
