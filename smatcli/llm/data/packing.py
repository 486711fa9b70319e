"""Pack whole examples into rows of a fixed length, by best fit, longest first; an example is never cut."""

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Return the positions of `lengths` by row, each row at most `capacity` tokens; rows in the order of their first example.

    Best-fit decreasing: at most 11/9 of the fewest possible rows, plus one (Johnson 1973). Raises ValueError for a length above `capacity`.
    """
    if lengths and max(lengths) > capacity:
        raise ValueError(f"an example of {max(lengths)} tokens does not fit a row of {capacity}")
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = bisect_left(room, (lengths[index], -1))
        if place == len(room):
            rows.append([index])
            insort(room, (capacity - lengths[index], len(rows) - 1))
            continue
        free, row = room.pop(place)
        rows[row].append(index)
        insort(room, (free - lengths[index], row))
    return sorted((sorted(row) for row in rows), key=lambda row: row[0])
