"""Source `meta-dataset`: output of Meta-Dataset's official conversion, one TFRecord file per class beside `dataset_spec.json`."""

from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple, overload

from smatcli.data.metadataset.spec import SPEC_FILE
from smatcli.data.metadataset.tfrecord import TFRecordFile
from smatcli.data.sources.base import SourceClass
from smatcli.data.sources.md_files import OpenFiles, SpecFolder


class Record(NamedTuple):
    """Key of an image: its class id and the byte offset of its record in the class's file."""

    class_id: int
    offset: int


class MetaDatasetSource:
    """Classes, splits and ontology of the spec, images in the order of their records. Both checksums of every record are verified.

    The constructor raises UserError for a folder without a spec or with files that do not match it. Reading raises UserError, with file
    and byte offset, for wrong checksums, truncated records, missing fields, and labels or record counts that contradict the spec.
    """

    kind = "meta-dataset"
    strict = True

    def __init__(self, path: str | Path):
        self._folder = SpecFolder(path)
        self.name, self.fingerprint = self._folder.name, self._folder.fingerprint
        self.ontology = self._folder.spec.ontology
        self.remarks: list[str] = []
        self._files = OpenFiles(lambda class_id: _RecordFile(self._folder, class_id))

    def classes(self) -> Sequence[SourceClass]:
        return [SourceClass(c.name, _Records(self._files, i, c.images), c.split) for i, c in enumerate(self._folder.spec.classes)]

    def read(self, image: Record) -> bytes:
        return self._files.get(image.class_id).image(image.offset)

    def describe(self, image: Record) -> str:
        """Return the file and byte offset of an image's record."""
        return f"{self._folder.files[image.class_id]}, byte {image.offset}"

    def close(self) -> None:
        self._files.close()


class _RecordFile:
    """File of a class, with a lazily extended index of record offsets."""

    def __init__(self, folder: SpecFolder, class_id: int):
        self.class_id, self.ids = class_id, len(folder.files)
        self.expected = folder.spec.classes[class_id].images
        self.file = TFRecordFile(folder.path(class_id))
        self._offsets = array("q")

    def scan(self, after: int | None = None, count: int = 0) -> Iterator[int]:
        """Yield the offsets of the records, starting after the offset `after` (that of record `count` - 1) if given.

        A record is yielded only after the next one, or the end of the file, was found: when the last one is yielded, the number of
        records has been checked.
        """
        last = after
        for offset in self.file.offsets(after or 0):
            if offset == after:
                continue
            if count == self.expected:
                raise self.file.error(offset, f"more records than the {self.expected:,} of {SPEC_FILE}; the wrong file, or the wrong spec")
            count += 1
            if last != after and last is not None:
                yield last
            last = offset
        if count < self.expected:
            reason = f"the file ends after {count:,} records, but {SPEC_FILE} has {self.expected:,}; fetch it again"
            raise self.file.error(self.file.size, reason)
        if last is not None and last != after:
            yield last

    def offset(self, position: int) -> int:
        """Return the offset of the record at `position`."""
        offsets = self._offsets
        while len(offsets) <= position:  # threads may repeat each other's work, but never see a partial result
            more = array("q", islice(self.scan(offsets[-1] if offsets else None, len(offsets)), max(1024, position + 1 - len(offsets))))
            offsets = self._offsets = offsets + more
        return offsets[position]

    def image(self, offset: int) -> bytes:
        fields = self.file.example(offset)
        label, image = fields.get("label"), fields.get("image")
        for name, values, kind in (("image", image, bytes), ("label", label, int)):
            if not values:
                listed = ", ".join(repr(field[:40]) for field in list(fields)[:8]) or "none"
                raise self.file.error(offset, f"the record has no field {name!r} (its fields: {listed})")
            if len(values) != 1 or not isinstance(values[0], kind):
                raise self.file.error(offset, f"the field {name!r} is not a single {'byte string' if kind is bytes else 'whole number'}")
        assert label
        assert image
        if label[0] != self.class_id:
            valid = 0 <= int(label[0]) < self.ids
            why = "the file was renamed, or belongs to another dataset" if valid else f"{SPEC_FILE} has classes 0 to {self.ids - 1}"
            raise self.file.error(offset, f"label {label[0]!r} in the file of class {self.class_id}; {why}")
        data = image[0]
        assert isinstance(data, bytes)
        return data


class _Records(Sequence[Record]):
    """Lazy sequence of the keys of a class's images; offsets are cached only while the class's file is open."""

    def __init__(self, files: OpenFiles[_RecordFile], class_id: int, count: int):
        self._files, self._class_id, self._count = files, class_id, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Record]:
        if self._count:
            for offset in self._files.get(self._class_id).scan():
                yield Record(self._class_id, offset)

    @overload
    def __getitem__(self, position: int) -> Record: ...
    @overload
    def __getitem__(self, position: slice) -> list[Record]: ...
    def __getitem__(self, position: int | slice) -> Record | list[Record]:
        if isinstance(position, slice):
            return [self[i] for i in range(self._count)[position]]
        position = range(self._count)[position]
        return Record(self._class_id, self._files.get(self._class_id).offset(position))
