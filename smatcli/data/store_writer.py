"""Writing a store: the images stream into the final file, the HDF5 structure is put around them at the end (nothing is held or copied)."""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np

from smatcli.data.store_format import FORMAT_VERSION, hash_content, seal
from smatcli.errors import UserError
from smatcli.files import atomic_path

_START = 4096  # byte offset of the images: one memory page, so that the map is aligned

Images = np.ndarray | Iterable[np.ndarray]


def write_store(
    path: str | Path,
    name: str,
    image_size: int,
    classes: Iterable[tuple[str, int, Images]],
    source: str = "",
    licence: str = "",
    *,
    facts: Mapping[str, Any] | None = None,
    assign: Callable[[list[str]], Sequence[int]] | None = None,
    replace: bool = False,
) -> Path:
    """Write `path` whole or not at all and return it; memory stays small whatever the size.

    `classes` yields (class name, split code 0 train / 1 valid / 2 test, images), where images is uint8 [n, H, W, 3] or an iterator of
    [H, W, 3] or [b, H, W, 3]. `facts` are further attributes (`fit`, `unreadable`, `fingerprint`), read after the last image;
    `assign` gives the split codes of the final class names instead of the codes of `classes`.
    Raises UserError for an existing file without `replace`, a class without images or given twice, a wrong shape or type.
    """
    path = Path(path)
    if path.exists() and not replace:
        raise UserError(f"{path}: exists already and is not overwritten; choose another name, or replace it explicitly")
    if not name or not name.isprintable() or "/" in name or name.startswith("."):
        raise UserError(f"{path}: {name!r} cannot be a dataset's name")
    names: dict[str, None] = {}  # ordered, and quick to look up
    split: list[int] = []
    offsets = [0]
    digest = hashlib.sha256()
    with atomic_path(path) as draft:
        with draft.open("xb") as file:
            file.write(bytes(_START))
            for class_name, code, images in classes:
                if class_name in names:
                    raise UserError(f"{name}: the class {class_name!r} is given twice")
                if code not in (0, 1, 2):
                    raise UserError(f"{name}: class {class_name!r} has the split {code!r}, not 0 (train), 1 (valid) or 2 (test)")
                count = _append(file, digest, images, image_size, f"{name}, class {class_name!r}")
                if count == 0:
                    raise UserError(f"{name}: class {class_name!r} has no image")
                names[class_name] = None
                split.append(int(code))
                offsets.append(offsets[-1] + count)
        if not names:
            raise UserError(f"{name}: there is no class")
        split = [int(code) for code in assign(list(names))] if assign else split
        described = {
            "format_version": FORMAT_VERSION,
            "name": name,
            "image_size": image_size,
            "source": source,
            "licence": licence,
            "content_hash": hash_content(digest.digest(), image_size, list(names), offsets, split),
            **{"fit": "none", "unreadable": 0, "fingerprint": "", **(facts or {})},
        }
        _wrap(draft, image_size, list(names), offsets, split, described)
    return path


def _append(file: IO[bytes], digest: Any, images: Images, size: int, where: str) -> int:
    count = 0
    for block in [images] if isinstance(images, np.ndarray) else images:
        block = np.ascontiguousarray(block)
        if block.dtype != np.uint8 or block.ndim not in (3, 4) or block.shape[-3:] != (size, size, 3):
            raise UserError(f"{where}: images are {block.dtype} {list(block.shape)}, not uint8 [..., {size}, {size}, 3]")
        digest.update(block)
        file.write(block.data)
        count += 1 if block.ndim == 3 else len(block)
    return count


def _wrap(draft: Path, size: int, names: list[str], offsets: list[int], split: list[int], attrs: Mapping[str, Any]) -> None:
    """Build the same HDF5 file with unwritten (sparse) images, then copy all bytes around the images into `draft`."""
    shape = (offsets[-1], size, size, 3)
    stop = _START + int(np.prod(shape, dtype=np.int64))
    frame = draft.with_name(draft.name.replace(".tmp", ".frame.tmp"))
    try:
        with h5py.File(frame, "x", libver=("earliest", "v110"), alignment_threshold=stop - _START, alignment_interval=_START) as file:
            plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plan.set_layout(h5py.h5d.CONTIGUOUS)
            plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            plan.set_obj_track_times(False)  # equal content gives equal bytes
            plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            images = h5py.h5d.create(file.id, b"images", h5py.h5t.STD_U8LE, h5py.h5s.create_simple(shape), plan)
            file.create_dataset("class_names", data=np.array(names, dtype=object), dtype=h5py.string_dtype())
            file.create_dataset("class_offsets", data=np.array(offsets, np.int64))
            file.create_dataset("class_split", data=np.array(split, np.uint8))
            file.attrs.update(attrs)
            file.flush()
            start = images.get_offset()
        if start == _START:
            _copy_around(frame, draft, stop)
        else:  # images smaller than the structure itself: HDF5 aligned that too
            with draft.open("rb") as written, frame.open("r+b") as file:
                written.seek(_START)
                file.seek(start)
                file.write(written.read(stop - _START))
            os.replace(frame, draft)
        seal(draft, start, start + stop - _START)
    finally:
        frame.unlink(missing_ok=True)


def _copy_around(frame: Path, draft: Path, stop: int) -> None:
    with frame.open("rb") as around, draft.open("r+b") as file:
        file.write(around.read(_START))
        around.seek(stop)
        file.seek(stop)
        file.write(around.read())
