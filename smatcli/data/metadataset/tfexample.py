"""Parser of serialised `tf.train.Example` messages (protocol-buffer wire format), with every bound checked."""

import struct
from collections.abc import Iterator

Values = list[bytes] | list[int] | list[float]

_VARINT, _EIGHT, _LENGTH, _FOUR = 0, 1, 2, 5  # wire types
_BYTES, _FLOATS, _INTS = 1, 2, 3  # field numbers of tf.train.Feature


class BadExample(ValueError):
    """The bytes are not a `tf.train.Example`; `at` is the offset where parsing stopped."""

    def __init__(self, at: int, reason: str):
        super().__init__(reason)
        self.at = at


def parse_example(data: bytes) -> dict[str, Values]:
    """Parse a serialised `tf.train.Example` into a mapping from feature name to values. Raises only BadExample, for any bytes.

    As usual for protocol buffers, unknown fields are skipped, and the last value of a repeated name is used.
    """
    features: dict[str, Values] = {}
    view = memoryview(data)
    for _, start, end in _fields(view, 0, len(data), 1):
        for _, entry, entry_end in _fields(view, start, end, 1):
            name = ""
            values: Values = []
            for number, begin, stop in _fields(view, entry, entry_end, 1, 2):
                if number == 1:
                    name = _text(view, begin, stop)
                else:
                    values = _feature(view, begin, stop)
            features[name] = values
    return features


def _feature(view: memoryview, start: int, end: int) -> Values:
    values: Values = []
    for kind, begin, stop in _fields(view, start, end, _BYTES, _FLOATS, _INTS):
        read = {_BYTES: _bytes, _FLOATS: _floats, _INTS: _ints}[kind]
        values = read(view, begin, stop)
    return values


def _bytes(view: memoryview, start: int, end: int) -> Values:
    return [bytes(view[begin:stop]) for _, begin, stop in _fields(view, start, end, 1)]


def _ints(view: memoryview, start: int, end: int) -> Values:
    """Parse integers, either packed, as all writers produce them, or one field per value."""
    values: list[int] = []
    for wire, begin, stop in _any_fields(view, start, end, 1, (_VARINT, _LENGTH)):
        while begin < stop:
            value, begin = _varint(view, begin, stop)
            values.append(value - 2**64 if value >= 2**63 else value)
            if wire == _VARINT:
                break
    return values


def _floats(view: memoryview, start: int, end: int) -> Values:
    values: list[float] = []
    for _, begin, stop in _any_fields(view, start, end, 1, (_FOUR, _LENGTH)):
        if (stop - begin) % 4:
            raise BadExample(begin, "a list of floats whose length is not a multiple of 4 bytes")
        values.extend(value for (value,) in struct.iter_unpack("<f", view[begin:stop]))
    return values


def _text(view: memoryview, start: int, end: int) -> str:
    try:
        return str(view[start:end], "utf-8")
    except UnicodeDecodeError:
        raise BadExample(start, "a field name that is not UTF-8") from None


def _fields(view: memoryview, start: int, end: int, *wanted: int) -> Iterator[tuple[int, int, int]]:
    """Yield (number, begin, end) of the wanted fields of a message, which must be length-delimited."""
    for number, wire, begin, stop in _walk(view, start, end):
        if number in wanted:
            if wire != _LENGTH:
                raise BadExample(begin, f"field {number} of wire type {wire}, not {_LENGTH}")
            yield number, begin, stop


def _any_fields(view: memoryview, start: int, end: int, wanted: int, wires: tuple[int, int]) -> Iterator[tuple[int, int, int]]:
    """Yield (wire type, begin, end) of the fields with number `wanted`."""
    for number, wire, begin, stop in _walk(view, start, end):
        if number == wanted:
            if wire not in wires:
                raise BadExample(begin, f"field {number} of wire type {wire}")
            yield wire, begin, stop


def _walk(view: memoryview, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (number, wire type, begin, end) of every field of the message at [start, end)."""
    at = start
    while at < end:
        tag_at = at
        tag, at = _varint(view, at, end)
        number, wire = tag >> 3, tag & 7
        begin = at
        if wire == _VARINT:
            _, at = _varint(view, at, end)
        elif wire == _LENGTH:
            size, begin = _varint(view, at, end)
            at = begin + size
        elif wire in (_EIGHT, _FOUR):
            at += 8 if wire == _EIGHT else 4
        else:
            raise BadExample(tag_at, f"invalid wire type {wire}")
        if number == 0:
            raise BadExample(tag_at, "field number 0")
        if at > end:
            raise BadExample(tag_at, f"field {number} reaches {at - end:,} bytes beyond its message")
        yield number, wire, begin, at


def _varint(view: memoryview, at: int, end: int) -> tuple[int, int]:
    """Return the unsigned number at `at`, and the offset after it."""
    value = shift = 0
    for place in range(at, min(end, at + 10)):
        byte = view[place]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (2**64 - 1), place + 1
        shift += 7
    raise BadExample(at, "an unterminated number")
