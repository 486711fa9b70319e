"""TFRecord files without TensorFlow: framing with both checksums checked, and the fields of a `tf.train.Example`.

A record is its length (uint64, little-endian), the masked CRC-32C of these 8 bytes, the payload, and the masked CRC-32C of the payload.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from smatcli.data.images import MAX_BYTES
from smatcli.data.metadataset.crc32c import masked_crc32c
from smatcli.data.metadataset.tfexample import BadExample, Values, parse_example
from smatcli.errors import UserError
from smatcli.safe.files import pointer_kind

HEADER, FOOTER = 12, 4  # bytes before and behind a payload


class TFRecordError(UserError):
    """A TFRecord file that cannot be used; the message names the file and the byte offset of the record."""


class TFRecordFile:
    """One file, opened for reading; every call may come from any thread. Raises TFRecordError for whatever is wrong with it.

    The file is closed when the last reference is gone, so that a reader in another thread never finds its descriptor reused.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._descriptor = -1
        try:
            if not stat.S_ISREG(os.stat(self.path).st_mode):  # opening a pipe would wait for a writer
                raise TFRecordError(f"{self.path}: is not a regular file")
            self._descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            self.size = os.fstat(self._descriptor).st_size
        except FileNotFoundError:
            raise TFRecordError(f"{self.path}: does not exist") from None
        except OSError as error:
            raise TFRecordError(f"{self.path}: cannot be read ({(error.strerror or str(error)).lower()})") from error

    def payload_size(self, offset: int) -> int:
        """Bytes of the payload of the record at `offset`, after checking the record's header and that the file holds all of it."""
        left = self.size - offset
        if left < HEADER:
            raise self.error(offset, f"truncated: the file ends {left} bytes into the {HEADER} of a record's header; fetch it again")
        header = self._read(offset, HEADER)
        if masked_crc32c(header[:8]) != int.from_bytes(header[8:], "little"):
            raise self.error(
                offset, "wrong CRC-32C of the record's length; the file is damaged, fetch it again" if offset else self._no_record()
            )
        size = int.from_bytes(header[:8], "little")
        if size > left - HEADER - FOOTER:
            raise self.error(
                offset, f"truncated: the record needs {size + HEADER + FOOTER:,} bytes, the file has {left:,} more; fetch it again"
            )
        if size > MAX_BYTES:
            raise self.error(offset, f"a record of {size:,} bytes, larger than {MAX_BYTES:,}")
        return size

    def payload(self, offset: int) -> bytes:
        """The payload of the record at `offset`, both checksums checked."""
        size = self.payload_size(offset)
        data = self._read(offset + HEADER, size + FOOTER)
        payload = data[:size]
        if masked_crc32c(payload) != int.from_bytes(data[size:], "little"):
            raise self.error(offset, f"wrong CRC-32C of the record's {size:,} bytes; the file is damaged, fetch it again")
        return payload

    def example(self, offset: int) -> dict[str, Values]:
        """The fields of the `tf.train.Example` in the record at `offset`."""
        try:
            return parse_example(self.payload(offset))
        except BadExample as error:
            raise self.error(offset, f"no tf.train.Example ({error}, at byte {offset + HEADER + error.at})") from None

    def offsets(self, offset: int = 0) -> Iterator[int]:
        """Where the records begin, from the one at `offset` on; their headers are checked, their payloads are not read."""
        while offset < self.size:
            size = self.payload_size(offset)
            yield offset
            offset += HEADER + size + FOOTER

    def _read(self, offset: int, size: int) -> bytes:
        try:
            data = os.pread(self._descriptor, size, offset)
            while len(data) < size and (more := os.pread(self._descriptor, size - len(data), offset + len(data))):
                data += more
        except OSError as error:
            raise self.error(offset, f"cannot be read ({(error.strerror or str(error)).lower()})") from error
        if len(data) < size:
            raise self.error(offset, "truncated: the file became shorter while it was read")
        return data

    def _no_record(self) -> str:
        """What a file is that does not begin with a record."""
        head = self._read(0, min(self.size, 512))
        if kind := pointer_kind(head):
            return f"is a {kind} pointer, not the data; fetch it first"
        if head.startswith(b"\x1f\x8b"):
            return "is compressed with gzip; unpack it first"
        return "wrong CRC-32C of the record's length; this is not a TFRecord file, or it is damaged"

    def error(self, offset: int, reason: str) -> TFRecordError:
        """The error that says what is wrong with the record at `offset`."""
        return TFRecordError(f"{self.path}, byte {offset}: {reason}")

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
