"""Safe access to HDF5 files from other sources: library errors become one line with file and group."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smatcli.errors import UserError
from smatcli.safe import hdf5 as safe_hdf5
from smatcli.safe import probe as safe_probe
from smatcli.safe.files import pointer_kind
from smatcli.safe.text import refuse_special

PROBE_TIMEOUT = 600.0  # seconds; enough for a file of thousands of groups on a slow disk
LARGEST = 2**36  # bytes per array; readers load one row at a time

_SIGNATURE = b"\x89HDF\r\n\x1a\n"


class ForeignHdf5:
    """A file whose groups "0", "1", ... contain arrays. Thread-safe, as h5py serialises all calls.

    Raises UserError for a file that is missing, damaged, or refers to another file.
    """

    def __init__(self, path: Path):
        import h5py

        self.path = path
        refuse_special(path)
        with self.user_errors():
            with path.open("rb") as file:
                head = file.read(1000)
            if kind := pointer_kind(head):
                raise UserError(f"{path}, byte 0: is a {kind} pointer, not the data; fetch it first")
            if not head.startswith(_SIGNATURE):
                raise UserError(f"{path}, byte 0: is {'not an HDF5 file' if head else 'empty'}; fetch it again")
            if not safe_probe.survives(path, PROBE_TIMEOUT):
                raise UserError(f"{path}: truncated or damaged HDF5 file (the HDF5 library hangs or crashes on it); fetch it again")
            self._file = h5py.File(path, "r", locking=False)
            self.groups = len(self._file)
            self._checked: set[str] = set()

    def array(self, group: int, name: str) -> Any:
        """Return the array `name` of a group, as an h5py dataset."""
        data = self.find(group, name)
        if data is None:
            raise UserError(f"{self.path}, group {group}: has no field {name!r}")
        return data

    def find(self, group: int, name: str) -> Any:
        """Return the array `name` of a group, or None if it does not exist."""
        import h5py

        with self.user_errors(group):
            path = self.locate(group, name)
            data = None if path is None else self._file[path]
            if not isinstance(data, h5py.Dataset):
                return None
            if data.external or data.is_virtual:
                raise UserError(f"{self.path}, group {group}: refused, {name!r} is in another file")
        return data

    def checked(self, data: Any) -> Any:
        """Return `data`, an h5py dataset, after checking that the file contains all of it. Raises ValueError otherwise."""
        if data.name not in self._checked:
            safe_hdf5.check(data, LARGEST)
            if data.chunks is not None:  # the check decompresses all chunks
                self._checked.add(data.name)
        return data

    def locate(self, group: int, name: str) -> bytes | None:
        """Return the path of a field, or None if it does not exist. Raises UserError for soft and external links."""
        from h5py import h5l

        links, parent = self._file.id.links, str(group).encode()
        if not links.exists(parent):
            raise UserError(f"{self.path}: has {self.groups:,} groups, but no group {group}; they must be 0 to {self.groups - 1}")
        for path in (parent, field := parent + b"/" + name.encode()):
            if not links.exists(path):
                return None
            if links.get_info(path).type != h5l.TYPE_HARD:
                raise UserError(f"{self.path}, group {group}: refused, {path.decode()!r} is a link")
        return field

    def number(self, group: int, name: str) -> int | None:
        """Return an integer, or None if it does not exist, with h5py's low-level API (four times faster; called once per image)."""
        import numpy as np
        from h5py import h5d, h5s

        with self.user_errors(group):
            path = self.locate(group, name)
            if path is None:
                return None
            dataset = h5d.open(self._file.id, path)
            if dataset.shape not in ((), (1,)):
                return None
            value = np.empty(dataset.shape, np.int64)
            dataset.read(h5s.ALL, h5s.ALL, value)
            return int(value.ravel()[0])

    def close(self) -> None:
        self._file.close()

    @contextmanager
    def user_errors(self, group: int | None = None) -> Iterator[None]:
        """Raise errors inside the block as UserError with file and group."""
        where = str(self.path) if group is None else f"{self.path}, group {group}"
        try:
            yield
        except UserError:
            raise
        except FileNotFoundError:
            raise UserError(f"{where}: does not exist") from None
        except IsADirectoryError:
            raise UserError(f"{where}: is a folder, not an HDF5 file") from None
        except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, OverflowError, MemoryError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0][:120]
            raise UserError(f"{where}: truncated or damaged HDF5 file ({reason}); fetch it again") from error
