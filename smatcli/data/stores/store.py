"""The store: one HDF5 file per dataset. Its images, uint8 [N, H, W, 3], are contiguous in the file, so that they can be memory-mapped.

Layout (format 2): datasets `images` [N, H, W, 3] uint8, `class_names` [C] UTF-8, `class_offsets` [C + 1] int64 (images of class c are rows
`class_offsets[c]` to `class_offsets[c + 1]`), `class_split` [C] uint8 (0 train, 1 valid, 2 test); attributes `format_version`, `name`,
`image_size`, `encoding`, `source`, `licence`, `content_hash`, `fit`, `unreadable`, `fingerprint` (of the source and the settings).
Encoding "jpeg" has, instead of `images`, `jpeg` [B] uint8 (all encoded images, concatenated) and `image_offsets` [N + 1] int64.
Optional: `image_split` [N] uint8, a split by image for tuning (then all classes are train), and `ontology`, JSON text.
A seal follows the HDF5 data, see `smatcli.safe.seal`.
"""

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from smatcli.data.stores.encoded import EncodedImages, MappedImages, RowFile
from smatcli.data.stores.format import ENCODINGS, FORMAT_VERSION, SPLITS, hash_content, seal_is_broken
from smatcli.data.stores.writer import write_store
from smatcli.errors import UserError, nearest
from smatcli.safe import hdf5 as safe_hdf5
from smatcli.safe.files import pointer_kind
from smatcli.safe.text import refuse_special

if TYPE_CHECKING:
    from smatcli.data.stores.ontology import Ontology

__all__ = ["FORMAT_VERSION", "SPLITS", "Store", "hash_content", "write_store"]

_SIGNATURE = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True, eq=False)
class Store:
    """One dataset, read-only. Everything but the images is in memory; the file is not kept open."""

    path: Path
    name: str
    image_size: int
    class_names: list[str]
    class_offsets: np.ndarray  # int64 [C + 1]
    class_split: np.ndarray  # uint8 [C]
    source: str
    licence: str
    content_hash: str
    offset: int  # byte offset of the images in the file
    facts: dict[str, Any] = field(default_factory=dict)  # further attributes: fit, unreadable, fingerprint
    encoding: str = "raw"
    image_bytes: int = 0  # of all images in the file
    index_offset: int = 0  # jpeg: byte offset of `image_offsets`
    image_split: np.ndarray | None = None  # uint8 [N], for stores that are split by image
    ontology_text: str | None = None  # JSON

    @classmethod
    def open(cls, path: str | Path) -> "Store":
        """Read and check the description of a store. Raises UserError if the file is missing, damaged or not a store."""
        path = Path(path)
        _check_head(path)
        try:
            if seal_is_broken(path):
                raise UserError(f"{path}: damaged HDF5 file (its structure was changed after it was prepared); prepare it again")
            with safe_hdf5.opened(path) as file:
                return _read(cls, path, file)
        except UserError:
            raise
        except safe_hdf5.WRONG as error:
            raise UserError(f"{path}: truncated or damaged HDF5 file ({_short(error)}); prepare it again") from error

    @cached_property
    def images(self) -> np.ndarray | EncodedImages:
        """All images, uint8 [N, H, W, 3]: mapped from the file (no copy, read-only), or decoded on access (jpeg)."""
        rows, size = len(self), self.image_size
        try:
            if self.encoding != "raw":
                fit = str(self.facts.get("fit", "crop"))
                return EncodedImages(self.path, rows, size, fit, self.offset, self.image_bytes, self.index_offset)
            mapped = MappedImages(self.path, np.uint8, "r", self.offset, (rows, size, size, 3))
            if hasattr(os, "preadv"):
                mapped.rows = RowFile(self.path)
            return mapped
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path}: the images cannot be mapped ({_short(error)}); prepare it again") from error

    @cached_property
    def ontology(self) -> "Ontology | None":
        """The groups of the classes, or None. Raises UserError if they are damaged."""
        if self.ontology_text is None:
            return None
        from smatcli.data.stores.ontology import Ontology

        try:
            return Ontology.from_json(self.ontology_text, len(self.class_names))
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from error

    @property
    def counts(self) -> np.ndarray:
        """Images per class, int64 [C]."""
        return np.diff(self.class_offsets)

    def classes(self, split: str) -> np.ndarray:
        """Return the class ids of a split ('train', 'valid', 'test' or 'all'), int64, ascending."""
        if split == "all":
            return np.arange(len(self.class_names))
        if split not in SPLITS:
            raise UserError(f"{self.name}: unknown split {split!r} (train, valid, test, all){nearest(split, [*SPLITS, 'all'])}")
        return np.flatnonzero(self.class_split == SPLITS.index(split))

    def image_rows(self, split: str) -> np.ndarray:
        """Return the image rows of a split ('train', 'valid', 'test' or 'all'), int64 [n], ascending."""
        chosen = self.classes(split)
        if split == "all":
            return np.arange(len(self))
        if self.image_split is not None:
            return np.flatnonzero(self.image_split == SPLITS.index(split))
        starts, counts = self.class_offsets[chosen], self.counts[chosen]
        ahead = np.cumsum(counts) - counts  # images of the preceding chosen classes
        return np.repeat(starts - ahead, counts) + np.arange(counts.sum())

    def __len__(self) -> int:
        return int(self.class_offsets[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("images", "ontology")}


def _check_head(path: Path) -> None:
    try:
        refuse_special(path)
        if path.is_dir():
            raise UserError(f"{path}: is a folder, not a store (.h5 file)")
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        raise UserError(f"{path}: does not exist; `smat data ls {path.parent}` lists the stores there") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if not head:
        raise UserError(f"{path}: the file is empty; prepare it again")
    if kind := pointer_kind(head):
        fetch = {"git-lfs": "git lfs pull", "git-annex": "git annex get"}[kind]
        raise UserError(f"{path}: is a {kind} pointer, not the data; fetch it first (`{fetch}`)")
    if not head.startswith(_SIGNATURE):
        raise UserError(f"{path}: is not an HDF5 file; `smat data prepare` writes stores")


def _read(cls: type[Store], path: Path, file: h5py.File) -> Store:
    attrs = safe_hdf5.attributes(file)
    if "format_version" not in attrs or not ("images" in file or "jpeg" in file):
        raise UserError(f"{path}: is an HDF5 file, but not a store of smat")
    if (version := attrs.pop("format_version")) != FORMAT_VERSION:
        action = "prepare it again" if version == 1 else "prepare it again or update smat"
        raise UserError(f"{path}: store format {version}, this smat reads format {FORMAT_VERSION}; {action}")
    size, encoding = int(attrs.pop("image_size")), attrs.pop("encoding")
    total, offset, length, index = _locate(path, file, size, encoding)
    if any(safe_hdf5.member(file, key).shape[:1] > (total + 1,) for key in ("class_names", "class_offsets", "class_split")):
        raise UserError(f"{path}: lists more classes than images; prepare it again")
    names = [str(name) for name in safe_hdf5.array(file, "class_names")]
    offsets, split = safe_hdf5.array(file, "class_offsets").astype(np.int64), safe_hdf5.array(file, "class_split").astype(np.uint8)
    _check(path, total, names, offsets, split)
    by_image = None
    if "image_split" in file:
        by_image = safe_hdf5.array(file, "image_split").astype(np.uint8)
        if by_image.shape != (total,) or (by_image > 2).any():
            raise UserError(f"{path}: the splits of the images do not match them; prepare it again")
    texts = {key: attrs.pop(key) for key in ("name", "source", "licence", "content_hash")}
    text = str(safe_hdf5.array(file, "ontology").item()) if "ontology" in file else None
    return cls(path, image_size=size, class_names=names, class_offsets=offsets, class_split=split, offset=offset, facts=attrs,
        encoding=encoding, image_bytes=length, index_offset=index, image_split=by_image, ontology_text=text, **texts)  # fmt: skip


def _locate(path: Path, file: h5py.File, size: int, encoding: str) -> tuple[int, int, int, int]:
    """Return number of images, offset and length of their block, offset of their index (jpeg); UserError if they exceed the file."""
    if encoding not in ENCODINGS:
        raise UserError(f"{path}: its images are encoded as {encoding!r}, which this smat cannot read; prepare it again or update smat")
    blocks: list[tuple[Any, Any, tuple[int, ...], str]]
    if encoding == "raw":
        said = f"images are not one contiguous uint8 block [N, {size}, {size}, 3]"
        blocks = [(safe_hdf5.member(file, "images"), np.uint8, (size, size, 3), said)]
    else:
        said = "image_offsets is not one contiguous int64 block [N + 1]"
        blocks = [(safe_hdf5.member(file, "jpeg"), np.uint8, (), "jpeg is not one contiguous uint8 block [B]"),
                  (safe_hdf5.member(file, "image_offsets"), np.dtype("<i8"), (), said)]  # fmt: skip
    there = path.stat().st_size
    for block, kind, shape, said in blocks:
        start = block.id.get_offset()
        if block.dtype != kind or block.shape[1:] != shape or block.ndim < 1 or block.chunks is not None or block.external or start is None:
            raise UserError(f"{path}: {said}; prepare it again")
        if start + block.nbytes > there:
            raise UserError(f"{path}: truncated ({there:,} bytes, the images end at {start + block.nbytes:,}); prepare it again")
    data = blocks[0][0]
    if encoding == "raw":
        return len(data), int(data.id.get_offset()), int(data.nbytes), 0
    index = blocks[1][0]
    if len(index) < 2 or index[0] != 0 or index[-1] != len(data):
        raise UserError(f"{path}: image_offsets and images do not fit together; prepare it again")
    return len(index) - 1, int(data.id.get_offset()), int(data.nbytes), int(index.id.get_offset())


def _check(path: Path, total: int, names: list[str], offsets: np.ndarray, split: np.ndarray) -> None:
    shapes = offsets.shape == (len(names) + 1,) and split.shape == (len(names),) and len(names) > 0
    if not shapes or offsets[0] != 0 or offsets[-1] != total or (np.diff(offsets) < 1).any() or (split > 2).any():
        raise UserError(f"{path}: class names, offsets, splits and images do not fit together; prepare it again")
    if len(set(names)) != len(names):
        raise UserError(f"{path}: a class name occurs twice; prepare it again")


def _short(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
