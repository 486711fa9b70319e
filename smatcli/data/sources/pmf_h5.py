"""Source `pmf-h5`: PMF's layout of Meta-Dataset (Hu et al., CVPR 2022), one HDF5 file per class beside `dataset_spec.json`.

A class file has one group per image, "0", "1", ...: `image` uint8 [H, W, 3], `label` int32 [1] (the absolute class id), and `id`, the
byte offset of the image's record in the original TFRecord file.
"""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np

from smatcli.data.images import MAX_PIXELS, Unreadable
from smatcli.data.metadataset.spec import SPEC_FILE
from smatcli.data.sources.base import SourceClass
from smatcli.data.sources.foreign_hdf5 import ForeignHdf5
from smatcli.data.sources.md_files import OpenFiles, SpecFolder
from smatcli.errors import UserError


class ImageGroup(NamedTuple):
    """Key of an image: its class id and the number of its group in the class's file."""

    class_id: int
    group: int


class PmfH5Source:
    """Classes, splits and ontology of the spec; images sorted by `id`, the order of the original records, or by group if they have no id.

    The constructor raises UserError for a folder without a spec or with files that do not match it. Reading raises UserError, with file
    and group, for damaged files, missing fields, and labels or group counts that contradict the spec.
    """

    kind = "pmf-h5"
    strict = True

    def __init__(self, path: str | Path):
        self._folder = SpecFolder(path, ".h5")
        self.name, self.fingerprint = self._folder.name, self._folder.fingerprint
        self.ontology = self._folder.spec.ontology
        self.remarks: list[str] = []
        self._files = OpenFiles(lambda class_id: _GroupedFile(self._folder, class_id))

    def classes(self) -> Sequence[SourceClass]:
        return [SourceClass(c.name, _GroupKeys(self._files, i, c.images), c.split) for i, c in enumerate(self._folder.spec.classes)]

    def read(self, image: ImageGroup) -> np.ndarray:
        return self._files.get(image.class_id).image(image.group)

    def describe(self, image: ImageGroup) -> str:
        """Return the file and group of an image."""
        return f"{self._folder.files[image.class_id]}, group {image.group}"

    def close(self) -> None:
        self._files.close()


class _GroupedFile:
    """File of a class, with the order of its images."""

    def __init__(self, folder: SpecFolder, class_id: int):
        self.path, self.class_id, self.ids = folder.path(class_id), class_id, len(folder.files)
        self.count = folder.spec.classes[class_id].images
        self._order: np.ndarray | None = None
        self._lock = threading.Lock()
        self._file = ForeignHdf5(self.path)
        if self._file.groups != self.count:
            raise UserError(
                f"{self.path}: has {self._file.groups:,} groups, but {SPEC_FILE} has {self.count:,} images; wrong file or wrong spec"
            )

    @property
    def order(self) -> np.ndarray:
        """Group numbers in the order of the images, int64."""
        with self._lock:
            if self._order is None:
                ids = [self._file.number(group, "id") for group in range(self.count)]
                unique = None not in ids and len(set(ids)) == len(ids)
                self._order = np.argsort(np.array(ids, np.int64)) if unique else np.arange(self.count)
            return self._order

    def image(self, group: int) -> np.ndarray:
        label = self._file.array(group, "label")
        if label.shape not in ((), (1,)) or label.dtype.kind not in "iu":
            raise UserError(f"{self.path}, group {group}: the field 'label' is not a single whole number")
        with self._file.user_errors(group):
            value = int(np.ravel(self._file.checked(label)[()])[0])
        if value != self.class_id:
            why = (
                "the file was renamed, or belongs to another dataset"
                if 0 <= value < self.ids
                else f"{SPEC_FILE} has classes 0 to {self.ids - 1}"
            )
            raise UserError(f"{self.path}, group {group}: label {value} in the file of class {self.class_id}; {why}")
        data = self._file.array(group, "image")
        if data.dtype != np.uint8 or data.ndim != 3 or data.shape[2] != 3 or 0 in data.shape:
            raise Unreadable(f"an array {data.dtype} {list(data.shape)}, not uint8 [H, W, 3]")
        if data.shape[0] * data.shape[1] > MAX_PIXELS:
            raise Unreadable(f"decompression bomb: {data.shape[1]} x {data.shape[0]} pixels, more than {MAX_PIXELS:,}")
        with self._file.user_errors(group):
            return np.asarray(self._file.checked(data)[()])


class _GroupKeys(Sequence[ImageGroup]):
    """Lazy sequence of the keys of a class's images; their order is cached only while the class's file is open."""

    def __init__(self, files: OpenFiles[_GroupedFile], class_id: int, count: int):
        self._files, self._class_id, self._count = files, class_id, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[ImageGroup]:
        if self._count:
            for group in self._files.get(self._class_id).order.tolist():
                yield ImageGroup(self._class_id, group)

    @overload
    def __getitem__(self, position: int) -> ImageGroup: ...
    @overload
    def __getitem__(self, position: slice) -> list[ImageGroup]: ...
    def __getitem__(self, position: int | slice) -> ImageGroup | list[ImageGroup]:
        if isinstance(position, slice):
            return [self[i] for i in range(self._count)[position]]
        position = range(self._count)[position]
        return ImageGroup(self._class_id, int(self._files.get(self._class_id).order[position]))
