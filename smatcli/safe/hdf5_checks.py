"""Structural checks of HDF5 files from strangers: types, filters, links and sizes, before anything is read."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import h5py


SIGNATURE = b"\x89HDF\r\n\x1a\n"


LIMIT = 2**28  # bytes of one array; the largest that smat reads as a whole are an evaluation's scores, some MB


MAX_CHUNK = 2**24


MAX_TEXT = 2**26  # bytes of all texts of an array


_GZIP = 1


_FILTERS = {_GZIP, 2, 3, 32000}  # gzip, shuffle, fletcher32, lzf


_TEXT_PLACE = np.dtype([("length", "<u4"), ("collection", "<u8"), ("index", "<u4")])  # where a text of any length lies in the file


WRONG = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError, OverflowError, MemoryError, UnicodeError)
"""What h5py raises for damaged files, one way or another."""


class Refused(ValueError):
    """A file or dataset that claims what it cannot hold; the message says what, in a few words."""


def reason(error: BaseException) -> str:
    """The first line of what went wrong, short."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


def groups(parent: "h5py.Group") -> Iterator[tuple[str, "h5py.Group"]]:
    """Name and group of every member; links to other places or files, and members that are no groups, are refused."""
    import h5py

    for name in parent:
        found = member(parent, name)
        if not isinstance(found, h5py.Group):
            raise Refused(f"{name!r} is no group")
        yield name, found


def member(parent: "h5py.Group", name: str) -> Any:
    """A member that lies in the group itself; Refused for links to other places or files, KeyError where there is none."""
    import h5py

    link = parent.get(name, getlink=True)
    if link is not None and not isinstance(link, h5py.HardLink):
        raise Refused(f"{name!r} is a link")
    return parent[name]


def arrays(group: "h5py.Group") -> dict[str, np.ndarray]:
    """All arrays of a group."""
    return {name: array(group, name) for name in group}


def array(group: "h5py.Group", name: str, limit: int = LIMIT) -> np.ndarray:
    """A whole array of numbers, or of text (object array of str); Refused for anything else, or for more bytes than the file can hold."""
    data = member(group, name)
    check(data, limit)
    if data.dtype.kind in "OS":
        _check_texts(data)
        return np.array([str(v) for v in np.atleast_1d(data.asstr()[()]).ravel()], dtype=object).reshape(data.shape)
    return np.asarray(data[()])


def check(data: Any, limit: int = LIMIT) -> None:
    """Refused unless `data` is a dataset of numbers, bytes or text that the file itself holds, of at most `limit` bytes."""
    import h5py

    if not isinstance(data, h5py.Dataset):
        raise Refused(f"{getattr(data, 'name', data)!r} is no dataset")
    if data.external or data.is_virtual:
        raise Refused(f"{data.name!r} lies in another file")
    text = h5py.check_string_dtype(data.dtype) is not None
    if data.dtype.kind == "O" and not text:  # references, lists of any length
        raise Refused(f"{data.name!r} holds objects, not numbers or text")
    if data.dtype.kind not in "biufSO" or data.dtype.subdtype is not None:
        raise Refused(f"{data.name!r} holds {data.dtype}, not numbers or text")
    if data.shape is None:
        raise Refused(f"{data.name!r} is empty")
    if data.nbytes > limit:
        raise Refused(f"{data.name!r} claims {data.nbytes:,} bytes, more than {limit:,}")
    if data.chunks is None:
        stored = data.id.get_storage_size()
        if data.nbytes > max(stored, 2**16):
            raise Refused(f"{data.name!r} claims {data.nbytes:,} bytes, the file has {stored:,} of it")
    else:
        _check_chunks(data)


def attributes(holder: Any) -> dict[str, Any]:
    """Attributes of a file or group as plain values; Refused for those that are neither numbers nor text."""
    import h5py

    found = {}
    for name in holder.attrs:
        kind = holder.attrs.get_id(name)
        if kind.dtype.kind not in "biufSO" or (kind.dtype.kind == "O" and h5py.check_string_dtype(kind.dtype) is None):
            raise Refused(f"the attribute {name!r} holds {kind.dtype}, not numbers or text")
        count = int(np.prod(kind.shape or (), dtype=object))
        if count * kind.dtype.itemsize > 2**20 or (kind.dtype.kind == "O" and count > 100):
            raise Refused(f"the attribute {name!r} claims {list(kind.shape)} values")
        value = holder.attrs[name]
        if isinstance(value, h5py.Empty):
            raise Refused(f"the attribute {name!r} is empty")
        found[name] = value.item() if isinstance(value, np.generic) else value
    return found


def _check_texts(data: Any) -> None:
    """The lengths of all texts before one is read: thousands of places may name the same large one."""
    if data.dtype.kind == "S" or not data.size:
        return
    start = data.id.get_offset()
    if start is None:
        raise Refused(f"{data.name!r} holds texts that are not in one block")
    with Path(data.file.filename).open("rb") as file:
        file.seek(start)
        lengths = np.frombuffer(file.read(data.size * _TEXT_PLACE.itemsize), _TEXT_PLACE)["length"]
    if (total := int(lengths.sum(dtype=np.int64))) > MAX_TEXT:
        raise Refused(f"{data.name!r} claims texts of {total:,} bytes, more than {MAX_TEXT:,}")


def _check_chunks(data: Any) -> None:
    """Every chunk is unpacked once with a bound: HDF5 itself unpacks without any, a megabyte to a gigabyte."""
    made = data.id.get_create_plist()
    filters = {made.get_filter(index)[0] for index in range(made.get_nfilters())}
    if unknown := filters - _FILTERS:
        raise Refused(f"{data.name!r} is packed by a filter that is not supported ({min(unknown)})")
    size = int(np.prod(data.chunks, dtype=object)) * data.dtype.itemsize
    if size > MAX_CHUNK:
        raise Refused(f"{data.name!r} has chunks of {size:,} bytes, more than {MAX_CHUNK:,}")
    most = int(np.prod([-(-n // c) for n, c in zip(data.shape, data.chunks, strict=True)], dtype=object))
    stored = data.id.get_num_chunks() if data.size else 0
    if stored < most and data.nbytes > 2**16:
        raise Refused(f"{data.name!r} claims {most:,} chunks, the file has {stored:,} of them")
    for index in range(stored if _GZIP in filters else 0):
        info = data.id.get_chunk_info(index)
        if info.size > size + size // 100 + 1024:
            raise Refused(f"{data.name!r} has a chunk of {info.size:,} bytes for {size:,}")
        _, packed = data.id.read_direct_chunk(info.chunk_offset)
        try:
            unpacked = zlib.decompressobj().decompress(packed, size + 5)
        except zlib.error as error:
            raise Refused(f"{data.name!r} is damaged ({error})") from None
        if len(unpacked) > size + 4:  # fletcher32's sum
            raise Refused(f"{data.name!r} unpacks to more than its {size:,} bytes a chunk (decompression bomb)")
