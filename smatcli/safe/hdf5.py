"""HDF5 files from strangers: what a dataset claims to hold is compared with what the file has before any of it is allocated."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from smatcli.safe.files import pointer_kind
from smatcli.safe.hdf5_checks import LIMIT, SIGNATURE, WRONG, Refused, array, arrays, attributes, check, groups, member, reason
from smatcli.safe.probe import survives
from smatcli.safe.seal import is_sealed, seal_is_broken

if TYPE_CHECKING:
    import h5py


__all__ = ["LIMIT", "SIGNATURE", "WRONG", "Refused", "array", "arrays", "attributes", "check", "groups", "member", "opened", "reason"]


@contextmanager
def opened(path: Path) -> Iterator["h5py.File"]:
    """The file, open for reading without locks; raises one of `WRONG` whatever is wrong with it."""
    import h5py

    if not path.is_file():
        raise FileNotFoundError("there is no such file") if not path.exists() else Refused("is not a regular file")
    with path.open("rb") as file:
        head = file.read(512)
    if kind := pointer_kind(head):
        raise Refused(f"is a {kind} pointer, not the data; fetch it first")
    if not head.startswith(SIGNATURE):
        raise Refused("is no HDF5 file" if head else "is empty")
    if seal_is_broken(path):
        raise Refused("its structure was changed after it was written")
    if not is_sealed(path) and not survives(path):
        raise Refused("HDF5 does not come back from reading it")
    with h5py.File(path, "r", locking=False) as found:
        yield found
