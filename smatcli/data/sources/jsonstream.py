"""Large JSON files, element by element: memory stays at a few chunks however long the lists in them are."""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

from smatcli.errors import UserError
from smatcli.safe.files import pointer_kind
from smatcli.safe.text import refuse_special

CHUNK = 2**18  # characters read at a time
MAX_ELEMENT = 2**26  # characters of one element; COCO's largest is some 100,000

_SPACE = " \t\n\r"


def array_elements(path: str | Path, keys: Collection[str]) -> Iterator[tuple[str, int, Any]]:
    """Yields (key, index, element) of the lists `keys` of the JSON object in a file, in the file's order; the rest of it is skipped.

    Raises UserError, with file and character offset, for what is not JSON, truncated, no object, or without one of the lists.
    """
    path = Path(path)
    refuse_special(path)
    try:
        with path.open("rb") as head:
            start = head.read(1000)
        if kind := pointer_kind(start):
            raise UserError(f"{path}: is a {kind} pointer, not the data; fetch it first")
        with path.open(encoding="utf-8-sig") as file:
            yield from _Reader(path, file).arrays(set(keys))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not JSON (not UTF-8: {error.reason})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()})") from error


class _Reader:
    def __init__(self, path: Path, file: IO[str]):
        self.path, self.file = path, file
        self.buffer, self.at = "", 0
        self.dropped = 0  # characters before the buffer
        self.ended = False
        self.decoder = json.JSONDecoder()

    def arrays(self, wanted: set[str]) -> Iterator[tuple[str, int, Any]]:
        missing = set(wanted)
        self.expect("{", "an object")
        if not self.accept("}"):
            while True:
                key = self.value()
                if not isinstance(key, str):
                    raise self.error("a key that is no text")
                self.expect(":", "a colon")
                if self.peek() == "[":
                    for index, element in enumerate(self.elements()):
                        if key in wanted:
                            yield key, index, element
                elif key in wanted:
                    raise self.error(f"{key!r} is not a list")
                else:
                    self.value()
                missing.discard(key)
                if self.accept("}"):
                    break
                self.expect(",", "a comma")
        if self.peek():
            raise self.error("more after the end of the object")
        if missing:
            raise UserError(f"{self.path}: has no list {sorted(missing)[0]!r}; is it the right file?")

    def elements(self) -> Iterator[Any]:
        self.expect("[", "a list")
        if self.accept("]"):
            return
        while True:
            yield self.value()
            if self.accept("]"):
                return
            self.expect(",", "a comma")

    def value(self) -> Any:
        if not self.peek():
            raise self.error("truncated")
        while True:
            try:
                value, end = self.decoder.raw_decode(self.buffer, self.at)
            except RecursionError:
                raise self.error("nested too deeply") from None
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos > len(self.buffer) - 16
                if self.ended or not cut:
                    cut = error.pos >= len(self.buffer.rstrip()) or error.msg.startswith("Unterminated")
                    self.at = error.pos
                    raise self.error("truncated" if cut else f"not JSON, {error.msg[:1].lower()}{error.msg[1:]}") from None
            except ValueError as error:  # a number of thousands of digits
                raise self.error(str(error)[:80]) from None
            else:
                if self.ended or len(self.buffer) - end > 4 or isinstance(value, (dict, list, str)):  # "1.5e+" may be a number yet
                    self.at = end
                    return value
            if len(self.buffer) - self.at > MAX_ELEMENT:
                raise self.error(f"an element of more than {MAX_ELEMENT:,} characters")
            self.fill()

    def peek(self) -> str:
        """The next character that is no white space, or '' at the end."""
        while True:
            while self.at < len(self.buffer):
                if self.buffer[self.at] not in _SPACE:
                    return self.buffer[self.at]
                self.at += 1
            if self.ended:
                return ""
            self.fill()

    def accept(self, character: str) -> bool:
        if self.peek() != character:
            return False
        self.at += 1
        return True

    def expect(self, character: str, what: str) -> None:
        if not self.accept(character):
            raise self.error(f"not JSON, expected {what}" if self.peek() else "truncated" if self.dropped or self.buffer else "empty")

    def fill(self) -> None:
        """Read on, at least as much again as is waiting, so that a long element is not scanned often."""
        self.dropped += self.at
        rest = self.buffer[self.at :]
        chunk = self.file.read(max(CHUNK, len(rest)))
        self.ended = not chunk
        self.buffer, self.at = rest + chunk, 0

    def error(self, what: str) -> UserError:
        return UserError(f"{self.path}: {what} (at character {self.dropped + self.at:,})")
