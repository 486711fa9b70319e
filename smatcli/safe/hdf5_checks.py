"""Structural checks of untrusted HDF5 files before anything is read: types, filters, links and sizes."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import h5py


SIGNATURE = b"\x89HDF\r\n\x1a\n"


LIMIT = 2**28  # bytes per array; the largest arrays that smat reads as a whole are the scores of an evaluation, a few MB


MAX_CHUNK = 2**24


MAX_TEXT = 2**26  # bytes of all strings of an array


_GZIP = 1


_FILTERS = {_GZIP, 2, 3, 32000}  # gzip, shuffle, fletcher32, lzf


_TEXT_PLACE = np.dtype([("length", "<u4"), ("collection", "<u8"), ("index", "<u4")])  # reference to a string of variable length


WRONG = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError, OverflowError, MemoryError, UnicodeError)
"""Exceptions that h5py raises for damaged files."""


class UnsafeHDF5(ValueError):
    """A file or dataset that claims more than it can contain; the message is a short reason."""


def reason(error: BaseException) -> str:
    """Return the first line of an error message, shortened."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


def groups(parent: "h5py.Group") -> Iterator[tuple[str, "h5py.Group"]]:
    """Yield name and group of every member. Raises UnsafeHDF5 for links and for members that are not groups."""
    import h5py

    for name in parent:
        child = member(parent, name)
        if not isinstance(child, h5py.Group):
            raise UnsafeHDF5(f"{name!r} is not a group")
        yield name, child


def member(parent: "h5py.Group", name: str) -> Any:
    """Return a direct member of a group. Raises UnsafeHDF5 for links to other places or files, KeyError if it does not exist."""
    import h5py

    link = parent.get(name, getlink=True)
    if link is not None and not isinstance(link, h5py.HardLink):
        raise UnsafeHDF5(f"{name!r} is a link")
    return parent[name]


def arrays(group: "h5py.Group") -> dict[str, np.ndarray]:
    """Return all arrays of a group."""
    return {name: array(group, name) for name in group}


def array(group: "h5py.Group", name: str, limit: int = LIMIT) -> np.ndarray:
    """Return a whole array of numbers or text (objects of type str).

    Raises UnsafeHDF5 for anything else, or if it exceeds `limit` or the file.
    """
    data = member(group, name)
    check(data, limit)
    if data.dtype.kind in "OS":
        _check_texts(data)
        return np.array([str(v) for v in np.atleast_1d(data.asstr()[()]).ravel()], dtype=object).reshape(data.shape)
    return np.asarray(data[()])


def check(data: Any, limit: int = LIMIT) -> None:
    """Raise UnsafeHDF5 unless `data` is a dataset of numbers, bytes or text in the file itself, of at most `limit` bytes."""
    import h5py

    if not isinstance(data, h5py.Dataset):
        raise UnsafeHDF5(f"{getattr(data, 'name', data)!r} is not a dataset")
    if data.external or data.is_virtual:
        raise UnsafeHDF5(f"{data.name!r} lies in another file")
    text = h5py.check_string_dtype(data.dtype) is not None
    if data.dtype.kind == "O" and not text:  # references, lists of any length
        raise UnsafeHDF5(f"{data.name!r} has objects, not numbers or text")
    if data.dtype.kind not in "biufSO" or data.dtype.subdtype is not None:
        raise UnsafeHDF5(f"{data.name!r} has type {data.dtype}, not numbers or text")
    if data.shape is None:
        raise UnsafeHDF5(f"{data.name!r} is empty")
    if data.nbytes > limit:
        raise UnsafeHDF5(f"{data.name!r} claims {data.nbytes:,} bytes, more than {limit:,}")
    if data.chunks is None:
        stored = data.id.get_storage_size()
        if data.nbytes > max(stored, 2**16):
            raise UnsafeHDF5(f"{data.name!r} claims {data.nbytes:,} bytes, the file contains {stored:,} of them")
    else:
        _check_chunks(data)


def attributes(holder: Any) -> dict[str, Any]:
    """Return the attributes of a file or group as plain values. Raises UnsafeHDF5 for attributes that are neither numbers nor text."""
    import h5py

    values = {}
    for name in holder.attrs:
        kind = holder.attrs.get_id(name)
        if kind.dtype.kind not in "biufSO" or (kind.dtype.kind == "O" and h5py.check_string_dtype(kind.dtype) is None):
            raise UnsafeHDF5(f"the attribute {name!r} has type {kind.dtype}, not numbers or text")
        count = int(np.prod(kind.shape or (), dtype=object))
        if count * kind.dtype.itemsize > 2**20 or (kind.dtype.kind == "O" and count > 100):
            raise UnsafeHDF5(f"the attribute {name!r} claims {list(kind.shape)} values")
        value = holder.attrs[name]
        if isinstance(value, h5py.Empty):
            raise UnsafeHDF5(f"the attribute {name!r} is empty")
        values[name] = value.item() if isinstance(value, np.generic) else value
    return values


def _check_texts(data: Any) -> None:
    """Check the total length of all strings before any is read: thousands of references may point to the same long string."""
    if data.dtype.kind == "S" or not data.size:
        return
    start = data.id.get_offset()
    if start is None:
        raise UnsafeHDF5(f"{data.name!r} has strings that are not in one block")
    with Path(data.file.filename).open("rb") as file:
        file.seek(start)
        lengths = np.frombuffer(file.read(data.size * _TEXT_PLACE.itemsize), _TEXT_PLACE)["length"]
    if (total := int(lengths.sum(dtype=np.int64))) > MAX_TEXT:
        raise UnsafeHDF5(f"{data.name!r} claims strings of {total:,} bytes, more than {MAX_TEXT:,}")


def _check_chunks(data: Any) -> None:
    """Decompress every chunk once with a size limit: HDF5 itself has none and may expand a megabyte to a gigabyte."""
    plist = data.id.get_create_plist()
    filters = {plist.get_filter(index)[0] for index in range(plist.get_nfilters())}
    if unknown := filters - _FILTERS:
        raise UnsafeHDF5(f"{data.name!r} is compressed with a filter that is not supported ({min(unknown)})")
    size = int(np.prod(data.chunks, dtype=object)) * data.dtype.itemsize
    if size > MAX_CHUNK:
        raise UnsafeHDF5(f"{data.name!r} has chunks of {size:,} bytes, more than {MAX_CHUNK:,}")
    most = int(np.prod([-(-n // c) for n, c in zip(data.shape, data.chunks, strict=True)], dtype=object))
    stored = data.id.get_num_chunks() if data.size else 0
    if stored < most and data.nbytes > 2**16:
        raise UnsafeHDF5(f"{data.name!r} claims {most:,} chunks, the file contains {stored:,} of them")
    for index in range(stored if _GZIP in filters else 0):
        info = data.id.get_chunk_info(index)
        if info.size > size + size // 100 + 1024:
            raise UnsafeHDF5(f"{data.name!r} has a chunk of {info.size:,} bytes for {size:,}")
        _, packed = data.id.read_direct_chunk(info.chunk_offset)
        try:
            unpacked = zlib.decompressobj().decompress(packed, size + 5)
        except zlib.error as error:
            raise UnsafeHDF5(f"{data.name!r} is damaged ({error})") from None
        if len(unpacked) > size + 4:  # the checksum of fletcher32
            raise UnsafeHDF5(f"{data.name!r} expands to more than its {size:,} bytes per chunk (decompression bomb)")
