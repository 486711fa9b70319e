"""Read TFRecord files without TensorFlow: framing with both checksums verified, and the fields of a `tf.train.Example`.

Record format: length (uint64, little-endian), masked CRC-32C of these 8 bytes, payload, masked CRC-32C of the payload.
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

HEADER, FOOTER = 12, 4  # bytes before and after a payload


class TFRecordError(UserError):
    """The TFRecord file cannot be used; the message names the file and the byte offset of the record."""


class TFRecordFile:
    """A TFRecord file, opened for reading; thread-safe. Raises TFRecordError for an invalid or unreadable file.

    The file is closed with the last reference to it, so that its descriptor is never reused while another thread reads.
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
        """Return the payload size of the record at `offset`, in bytes, after checking the header and that the record is complete."""
        left = self.size - offset
        if left < HEADER:
            raise self.error(offset, f"truncated: the file ends after {left} of the {HEADER} bytes of a record's header; fetch it again")
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
        """Return the payload of the record at `offset`, after verifying both checksums."""
        size = self.payload_size(offset)
        data = self._read(offset + HEADER, size + FOOTER)
        payload = data[:size]
        if masked_crc32c(payload) != int.from_bytes(data[size:], "little"):
            raise self.error(offset, f"wrong CRC-32C of the record's {size:,} bytes; the file is damaged, fetch it again")
        return payload

    def example(self, offset: int) -> dict[str, Values]:
        """Return the fields of the `tf.train.Example` in the record at `offset`."""
        try:
            return parse_example(self.payload(offset))
        except BadExample as error:
            raise self.error(offset, f"not a tf.train.Example ({error}, at byte {offset + HEADER + error.at})") from None

    def offsets(self, offset: int = 0) -> Iterator[int]:
        """Yield the offsets of the records, starting with the one at `offset`; checks the headers, but does not read the payloads."""
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
        """Return the most likely reason why the file does not start with a record."""
        head = self._read(0, min(self.size, 512))
        if kind := pointer_kind(head):
            return f"is a {kind} pointer, not the data; fetch it first"
        if head.startswith(b"\x1f\x8b"):
            return "is compressed with gzip; unpack it first"
        return "wrong CRC-32C of the record's length; this is not a TFRecord file, or it is damaged"

    def error(self, offset: int, reason: str) -> TFRecordError:
        """Return the error for the record at `offset`."""
        return TFRecordError(f"{self.path}, byte {offset}: {reason}")

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
