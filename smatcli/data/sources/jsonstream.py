"""Stream the elements of lists in large JSON files: at most a chunk and one element are in memory, regardless of the file's size."""

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

import ijson

from smatcli.errors import UserError
from smatcli.safe.files import pointer_kind
from smatcli.safe.text import refuse_special

CHUNK = 2**16  # bytes per read
MAX_ELEMENT = 2**26  # bytes per element; the largest in COCO has about 100,000
MAX_DEPTH = 100

_BOM = b"\xef\xbb\xbf"


def array_elements(path: str | Path, keys: Collection[str]) -> Iterator[tuple[str, int, Any]]:
    """Yield (key, index, element) of the lists `keys` of the JSON object in a file, in the file's order; skip everything else.

    Raises UserError, with file, element and byte, if the file is not JSON, is truncated, is not an object, or lacks one of the lists.
    """
    path = Path(path)
    refuse_special(path)
    try:
        with path.open("rb") as file:
            start = file.read(1000)
            if kind := pointer_kind(start):
                raise UserError(f"{path}: is a {kind} pointer, not the data; fetch it first")
            if not start:
                raise UserError(f"{path}: is empty")
            file.seek(len(_BOM) if start.startswith(_BOM) else 0)
            yield from _ElementStream(path, file, keys).elements()
    except FileNotFoundError:
        raise UserError(f"{path}: does not exist") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()})") from error


class _ElementStream:
    """Converter of parser events to elements. The parser reads through `read`, which limits the bytes per element."""

    def __init__(self, path: Path, file: IO[bytes], keys: Collection[str]) -> None:
        self.path, self.file, self.wanted = path, file, frozenset(keys)
        self.where = "the beginning"
        self.bytes = self.element_start = 0

    def read(self, size: int = -1) -> bytes:
        """Read the next bytes of the file. Raises UserError if the current element is too long."""
        if self.bytes - self.element_start > MAX_ELEMENT:
            raise self.error(f"an element of more than {MAX_ELEMENT:,} bytes")
        data = self.file.read(size)
        self.bytes += len(data)
        return data

    def elements(self) -> Iterator[tuple[str, int, Any]]:
        """Yield (key, index, element) of the wanted lists."""
        missing, events = set(self.wanted), self.events()
        if next(events)[0] != "start_map":
            raise self.error("not JSON, expected an object")
        for event, key in events:
            if event == "end_map":  # of the whole object; the parser rejects anything after it
                continue
            self._at(repr(key))
            start, _ = next(events)
            if start == "start_array":
                missing.discard(key)
                self._at(f"{key}[0]")
                for index, element in enumerate(self._items(events, 0)):
                    if key in self.wanted:
                        yield key, index, element
                    self._at(f"{key}[{index + 1}]")
            elif key in self.wanted:
                raise self.error(f"{key!r} is not a list")
            elif start == "start_map":
                self._map(events, 0)
        if missing:
            raise UserError(f"{self.path}: has no list {min(missing)!r}; is it the right file?")

    def _items(self, events: Iterator[tuple[str, Any]], depth: int) -> Iterator[Any]:
        if depth > MAX_DEPTH:
            raise self.error("nested too deeply")
        for event, value in events:
            if event == "end_array":
                return
            if event == "start_map":
                yield self._map(events, depth + 1)
            elif event == "start_array":
                yield list(self._items(events, depth + 1))
            else:
                yield value

    def _map(self, events: Iterator[tuple[str, Any]], depth: int) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        for event, key in events:
            if event == "end_map":
                break
            entries[key] = next(self._items(events, depth))
        return entries

    def _at(self, where: str) -> None:
        self.where, self.element_start = where, self.bytes

    def events(self) -> Iterator[tuple[str, Any]]:
        """Yield the parser's events. Errors of the parser are raised as UserError.

        Numbers are limited to 64 bits: without `use_float`, ijson 3.6 can crash on an integer of thousands of digits.
        """
        try:
            yield from ijson.basic_parse(self, buf_size=CHUNK, use_float=True)
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise self.error(_reason(str(error))) from None

    def error(self, what: str) -> UserError:
        """Return the error for the current position."""
        return UserError(f"{self.path}: {what} (at {self.where}, near byte {self.bytes:,})")


def _reason(message: str) -> str:
    """Shorten a parser's multi-line message to a few words."""
    first = re.split(r"\n|\\n", message.removeprefix("b'"))[0].rstrip(".")[:80]
    if "premature EOF" in first or "Incomplete JSON" in first:
        return "truncated"
    if "UTF8" in first or "utf-8" in first:
        return "is not JSON (not UTF-8)"
    return f"not JSON, {re.sub('^(parse|lexical) error: ', '', first)}"
