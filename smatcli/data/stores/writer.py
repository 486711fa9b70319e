"""Writer of stores: images stream into the final file, and the HDF5 structure is put around them at the end, without a copy."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypedDict, Unpack

import h5py
import numpy as np

from smatcli.data.stores.draft import START, Draft
from smatcli.data.stores.format import ENCODINGS, FORMAT_VERSION, hash_content, seal
from smatcli.errors import UserError
from smatcli.safe.files import atomic_path

Images = np.ndarray | Iterable[np.ndarray] | Iterable[bytes]


class OptionalParts(TypedDict, total=False):
    """Optional parts of a store."""

    facts: Mapping[str, Any] | None  # further attributes: `fit`, `unreadable`, `fingerprint`
    encoding: str  # raw (default) or jpeg
    image_split: Sequence[int] | np.ndarray | None  # a split code per image instead of per class
    ontology: str | None  # JSON text


@dataclass(frozen=True)
class Contents:
    """Description of a finished store: names, numbers of images and split codes (0 train, 1 valid, 2 test) of the classes, ..."""

    name: str
    image_size: int
    classes: Sequence[str]
    counts: Sequence[int]
    split: Sequence[int]
    encoding: str = "raw"
    split_by_image: bool = False
    ontology: str | None = None  # JSON
    source: str = ""
    licence: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def offsets(self) -> list[int]:
        """First row of each class, and the number of images."""
        return [0, *np.cumsum(self.counts, dtype=np.int64).tolist()]


def write_store(
    path: str | Path,
    name: str,
    image_size: int,
    classes: Iterable[tuple[str, int, Images]],
    source: str = "",
    licence: str = "",
    *,
    replace: bool = False,
    **optional: Unpack[OptionalParts],
) -> Path:
    """Write a store atomically and return its path; memory use does not depend on the size.

    `classes` yields (class name, split code 0 train / 1 valid / 2 test, images), where images is uint8 [n, H, W, 3] or an iterator of
    [H, W, 3] or [b, H, W, 3]; with encoding "jpeg" an iterator of encoded images. `optional` is described in `OptionalParts`.
    Raises UserError for an existing file without `replace`, a class without images or given twice, a wrong shape or type.
    """
    path, encoding, image_split = Path(path), optional.get("encoding", "raw"), optional.get("image_split")
    if path.exists() and not replace:
        raise UserError(f"{path}: exists already and is not overwritten; choose another name, or replace it explicitly")
    if not name or not name.isprintable() or "/" in name or name.startswith("."):
        raise UserError(f"{path}: {name!r} cannot be a dataset's name")
    if encoding not in ENCODINGS:
        raise UserError(f"{path}: there is no encoding {encoding!r} ({', '.join(ENCODINGS)})")
    split: dict[str, int] = {}  # ordered, and quick to look up
    counts = []
    with atomic_path(path) as place:
        draft = Draft(place, records=encoding == "jpeg" or image_split is not None)
        try:
            for class_name, code, images in classes:
                if class_name in split:
                    raise UserError(f"{name}: the class {class_name!r} is given twice")
                if code not in (0, 1, 2):
                    raise UserError(f"{name}: class {class_name!r} has the split {code!r}, not 0 (train), 1 (valid) or 2 (test)")
                counts.append(append(draft, images, image_size, f"{name}, class {class_name!r}", encoding, image_split))
                if counts[-1] == 0:
                    raise UserError(f"{name}: class {class_name!r} has no image")
                split[class_name] = int(code)
            if image_split is not None and len(image_split) != draft.images:
                raise UserError(f"{name}: {len(image_split)} split codes for {draft.images} images")
            finish(draft, Contents(
                name, image_size, list(split), counts, list(split.values()), encoding, image_split is not None, optional.get("ontology"),
                source, licence, optional.get("facts") or {},
            ))  # fmt: skip
        finally:
            draft.close()
            draft.records_path.unlink(missing_ok=True)
    return path


def append(
    draft: Draft, images: Images, size: int, where: str, encoding: str = "raw", codes: Sequence[int] | np.ndarray | None = None
) -> int:
    """Add the images of one class (as in `write_store`) and return their number; `codes` are the split codes of all images of the store."""
    first = draft.images
    if encoding == "raw":
        count = _append(draft.file, draft.digest, images, size, where)
        draft.note(count, count * size * size * 3)
        if codes is not None:
            for row in range(first, draft.images):
                draft.record(0, _code(codes, row))
        return count
    for data in images:
        if not isinstance(data, bytes) or not data:
            raise UserError(f"{where}: an image is {type(data).__name__}, not an encoded file")
        draft.append(data, 0 if codes is None else _code(codes, draft.images))
    return draft.images - first


def _code(codes: Sequence[int] | np.ndarray, row: int) -> int:
    return int(codes[row]) if row < len(codes) else 0  # their number is checked at the end


def finish(draft: Draft, contents: Contents) -> None:
    """Turn the draft into a store, in place; the file is closed and can be renamed. Raises UserError if it has no class."""
    if not contents.classes:
        raise UserError(f"{contents.name}: has no class")
    draft.flush()
    start = _wrap(draft, contents)
    draft.close()
    if start != START:
        os.replace(frame_path(draft.path), draft.path)
    seal(draft.path, start, start + draft.bytes)


def _append(file: IO[bytes], digest: Any, images: Any, size: int, where: str) -> int:
    count = 0
    for block in [images] if isinstance(images, np.ndarray) else images:
        block = np.ascontiguousarray(block)
        if block.dtype != np.uint8 or block.ndim not in (3, 4) or block.shape[-3:] != (size, size, 3):
            raise UserError(f"{where}: images are {block.dtype} {list(block.shape)}, not uint8 [..., {size}, {size}, 3]")
        digest.update(block)
        file.write(block.data)
        count += 1 if block.ndim == 3 else len(block)
    return count


def frame_path(draft: Path) -> Path:
    """Return the path of the temporary file in which the structure of a draft is built."""
    return draft.with_name(draft.name + ".frame")


def _wrap(draft: Draft, contents: Contents) -> int:
    """Build the same HDF5 file with unwritten (sparse) images and copy the bytes around the images into the draft; return their offset."""
    size = contents.image_size
    raw = contents.encoding == "raw"
    frame = frame_path(draft.path)
    kept = False
    try:
        with h5py.File(frame, "w", libver=("earliest", "v110"), alignment_threshold=draft.bytes, alignment_interval=START) as file:
            shape = (draft.images, size, size, 3) if raw else (draft.bytes,)
            images = _unwritten(file, "images" if raw else "jpeg", shape, h5py.h5t.STD_U8LE)
            file.create_dataset("class_names", data=np.array(contents.classes, dtype=object), dtype=h5py.string_dtype())
            file.create_dataset("class_offsets", data=np.array(contents.offsets, np.int64))
            file.create_dataset("class_split", data=np.array(contents.split, np.uint8))
            extras = _extras(draft, contents, file)
            file.attrs.update(_attributes(draft, contents, extras))
            file.flush()
            start = images.get_offset()
        if start == START:
            _copy_around(frame, draft.path, START + draft.bytes)
        else:  # images smaller than the structure: HDF5 aligned the structure as well
            with draft.path.open("rb") as written, frame.open("r+b") as whole:
                written.seek(START)
                whole.seek(start)
                whole.write(written.read(draft.bytes))
            kept = True
    finally:
        if not kept:
            frame.unlink(missing_ok=True)
    return int(start)


def _unwritten(file: h5py.File, name: str, shape: tuple[int, ...], kind: Any) -> h5py.h5d.DatasetID:
    """Create a contiguous dataset whose space in the file is allocated at once but not written."""
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.CONTIGUOUS)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_obj_track_times(0)  # equal content gives equal bytes
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    return h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(shape), plan)


def _extras(draft: Draft, contents: Contents, file: h5py.File) -> dict[str, str]:
    """Write the optional datasets block by block; return their contribution to the content hash."""
    extras = {} if contents.encoding == "raw" else {"encoding": contents.encoding}
    fill: dict[str, tuple[Any, Callable[[np.ndarray], np.ndarray]]] = {}
    if contents.encoding != "raw":
        _unwritten(file, "image_offsets", (draft.images + 1,), h5py.h5t.STD_I64LE)
        file["image_offsets"][0] = 0
        fill["image_offsets"] = (hashlib.sha256(np.int64(0).tobytes()), lambda block: block["length"])
    if contents.split_by_image:
        _unwritten(file, "image_split", (draft.images,), h5py.h5t.STD_U8LE)
        fill["image_split"] = (hashlib.sha256(), lambda block: block["split"])
    done, last = 0, 0
    for block in draft.records() if fill else ():
        for key, (digest, column) in fill.items():
            values, shift = column(block), 0
            if key == "image_offsets":
                values, shift = last + np.cumsum(values, dtype=np.int64), 1
                last = int(values[-1])
            values = np.ascontiguousarray(values)
            file[key][done + shift : done + shift + len(block)] = values
            digest.update(values)
        done += len(block)
    extras |= {key: digest.hexdigest() for key, (digest, _) in fill.items()}
    if contents.ontology is not None:
        file.create_dataset("ontology", data=contents.ontology, dtype=h5py.string_dtype())
        extras["ontology"] = hashlib.sha256(contents.ontology.encode()).hexdigest()
    return extras


def _attributes(draft: Draft, contents: Contents, extras: Mapping[str, str]) -> dict[str, Any]:
    digest = draft.digest.digest()
    return {
        "format_version": FORMAT_VERSION,
        "name": contents.name,
        "image_size": contents.image_size,
        "encoding": contents.encoding,
        "source": contents.source,
        "licence": contents.licence,
        "content_hash": hash_content(digest, contents.image_size, contents.classes, contents.offsets, contents.split, extras),
        **{"fit": "none", "unreadable": 0, "fingerprint": "", **contents.facts},
    }


def _copy_around(frame: Path, draft: Path, stop: int) -> None:
    with frame.open("rb") as around, draft.open("r+b") as file:
        file.write(around.read(START))
        around.seek(stop)
        file.seek(stop)
        shutil.copyfileobj(around, file, 2**20)
        file.truncate()
