"""The store: one HDF5 file per dataset, images uint8 [N, H, W, 3] contiguous in the file, so that they are memory-mapped and never copied.

Layout (format 1): datasets `images` [N, H, W, 3] uint8, `class_names` [C] UTF-8, `class_offsets` [C + 1] int64 (images of class c are rows
`class_offsets[c]` to `class_offsets[c + 1]`), `class_split` [C] uint8 (0 train, 1 valid, 2 test); attributes `format_version`, `name`,
`image_size`, `source`, `licence`, `content_hash`, `fit`, `unreadable`, `fingerprint` (of the source and the settings).
Behind the HDF5 data stands a seal, see `store_format`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from smatcli.data.store_format import FORMAT_VERSION, SPLITS, hash_content, seal_is_broken
from smatcli.data.store_writer import write_store
from smatcli.errors import UserError, nearest
from smatcli.files import pointer_kind

__all__ = ["FORMAT_VERSION", "SPLITS", "Store", "hash_content", "open_stores", "store_files", "write_store"]

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

    @classmethod
    def open(cls, path: str | Path) -> "Store":
        """Read and check a store's description. Raises UserError for a file that is missing, damaged or no store."""
        path = Path(path)
        _check_head(path)
        try:
            if seal_is_broken(path):
                raise UserError(f"{path}: damaged HDF5 file (its structure was changed after it was prepared); prepare it again")
            with h5py.File(path, "r", locking=False) as file:
                return _read(cls, path, file)
        except UserError:
            raise
        except (OSError, RuntimeError, KeyError, ValueError, TypeError, UnicodeError, AttributeError, OverflowError) as error:
            raise UserError(f"{path}: truncated or damaged HDF5 file ({_short(error)}); prepare it again") from error

    @cached_property
    def images(self) -> np.ndarray:
        """All images, uint8 [N, H, W, 3], mapped from the file (no copy, read-only)."""
        shape = (int(self.class_offsets[-1]), self.image_size, self.image_size, 3)
        try:
            return np.memmap(self.path, np.uint8, "r", self.offset, shape)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path}: the images cannot be mapped ({_short(error)}); prepare it again") from error

    @property
    def counts(self) -> np.ndarray:
        """Images of each class, int64 [C]."""
        return np.diff(self.class_offsets)

    def classes(self, split: str) -> np.ndarray:
        """Class ids of a split ('train', 'valid', 'test' or 'all'), int64, ascending."""
        if split == "all":
            return np.arange(len(self.class_names))
        if split not in SPLITS:
            raise UserError(f"{self.name}: there is no split {split!r} (train, valid, test, all){nearest(split, [*SPLITS, 'all'])}")
        return np.flatnonzero(self.class_split == SPLITS.index(split))

    def __len__(self) -> int:
        return int(self.class_offsets[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "images"}


def store_files(root: str | Path) -> dict[str, Path]:
    """Name (file stem) -> path of every store file in a folder, sorted; temporary files are left out."""
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder of stores; `smat data prepare folder SRC... --out {root}` makes one")
    return {p.stem: p for p in sorted(root.glob("*.h5")) if not p.name.startswith(".")}


def open_stores(root: str | Path, names: Sequence[str]) -> dict[str, Store]:
    """The named stores of a folder, in the order of `names`; UserError with the nearest name for an unknown one."""
    files = store_files(root)
    missing = [name for name in names if name not in files]
    if missing:
        there = f"there: {', '.join(list(files)[:30])}" if files else "it holds no store"
        raise UserError(f"{root}: no dataset {', '.join(map(repr, missing))}{nearest(missing[0], list(files))} ({there})")
    return {name: Store.open(files[name]) for name in dict.fromkeys(names)}


def _check_head(path: Path) -> None:
    try:
        if path.is_dir():
            raise UserError(f"{path}: is a folder, not a store (.h5 file)")
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such store; `smat data ls {path.parent}` lists what is there") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if not head:
        raise UserError(f"{path}: the file is empty; prepare it again")
    if kind := pointer_kind(head):
        fetch = {"git-lfs": "git lfs pull", "git-annex": "git annex get"}[kind]
        raise UserError(f"{path}: is a {kind} pointer, not the data; fetch it first (`{fetch}`)")
    if not head.startswith(_SIGNATURE):
        raise UserError(f"{path}: is not an HDF5 file; stores are made by `smat data prepare`")


def _read(cls: type[Store], path: Path, file: h5py.File) -> Store:
    attrs = {key: (value.item() if isinstance(value, np.generic) else value) for key, value in file.attrs.items()}
    if "format_version" not in attrs or "images" not in file:
        raise UserError(f"{path}: is an HDF5 file, but not a store of smat")
    if attrs["format_version"] != FORMAT_VERSION:
        raise UserError(
            f"{path}: store format {attrs['format_version']}, this smat reads format {FORMAT_VERSION}; prepare it again or update smat"
        )
    images, size = file["images"], int(attrs["image_size"])
    offset = images.id.get_offset()
    if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3) or images.chunks is not None or images.external or offset is None:
        raise UserError(f"{path}: images are not one contiguous uint8 block [N, {size}, {size}, 3]; prepare it again")
    if offset + images.size > path.stat().st_size:
        raise UserError(f"{path}: truncated ({path.stat().st_size:,} bytes, the images end at {offset + images.size:,}); prepare it again")
    if any(file[key].ndim != 1 or file[key].shape[0] > len(images) + 1 for key in ("class_names", "class_offsets", "class_split")):
        raise UserError(f"{path}: lists more classes than images; prepare it again")
    names = [str(name) for name in file["class_names"].asstr()[()]]
    offsets, split = file["class_offsets"][()].astype(np.int64), file["class_split"][()].astype(np.uint8)
    _check(path, len(images), names, offsets, split)
    known = {key: attrs.pop(key) for key in ("name", "source", "licence", "content_hash")}
    facts = {key: value for key, value in attrs.items() if key not in ("format_version", "image_size")}
    return cls(path, image_size=size, class_names=names, class_offsets=offsets, class_split=split, offset=int(offset), facts=facts, **known)


def _check(path: Path, total: int, names: list[str], offsets: np.ndarray, split: np.ndarray) -> None:
    shapes = offsets.shape == (len(names) + 1,) and split.shape == (len(names),) and len(names) > 0
    if not shapes or offsets[0] != 0 or offsets[-1] != total or (np.diff(offsets) < 1).any() or (split > 2).any():
        raise UserError(f"{path}: class names, offsets, splits and images do not fit together; prepare it again")
    if len(set(names)) != len(names):
        raise UserError(f"{path}: a class name occurs twice; prepare it again")


def _short(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
