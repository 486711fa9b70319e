"""Safe opening of untrusted HDF5 files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from smatcli.safe.files import pointer_kind
from smatcli.safe.hdf5_checks import LIMIT, SIGNATURE, WRONG, UnsafeHDF5, array, arrays, attributes, check, groups, member, reason
from smatcli.safe.probe import survives
from smatcli.safe.seal import is_sealed, seal_is_broken

if TYPE_CHECKING:
    import h5py


__all__ = ["LIMIT", "SIGNATURE", "WRONG", "UnsafeHDF5", "array", "arrays", "attributes", "check", "groups", "member", "opened", "reason"]


@contextmanager
def opened(path: Path) -> Iterator["h5py.File"]:
    """Open a file for reading, without locks. Raises one of the errors in `WRONG` if the file is missing, damaged or not HDF5."""
    import h5py

    if not path.is_file():
        raise FileNotFoundError("does not exist") if not path.exists() else UnsafeHDF5("is not a regular file")
    with path.open("rb") as file:
        head = file.read(512)
    if kind := pointer_kind(head):
        raise UnsafeHDF5(f"is a {kind} pointer, not the data; fetch it first")
    if not head.startswith(SIGNATURE):
        raise UnsafeHDF5("is not an HDF5 file" if head else "is empty")
    if seal_is_broken(path):
        raise UnsafeHDF5("its structure was changed after it was written")
    if not is_sealed(path) and not survives(path):
        raise UnsafeHDF5("the HDF5 library hangs or crashes on it")
    with h5py.File(path, "r", locking=False) as file:
        yield file
