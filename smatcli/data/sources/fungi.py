"""Source `fungi`: the FGVCx Fungi classification challenge of 2018 as published (`images/`, `train.json`, `val.json`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smatcli.data.sources.base import SourceClass
from smatcli.data.sources.imagetree import ImageTree, digest, file_stamp, first_few, safe_name
from smatcli.data.sources.jsonstream import array_elements
from smatcli.errors import UserError

_FILES = ("train.json", "val.json")


class FungiSource:
    """All labelled images, of `train.json` and `val.json` together, as in Meta-Dataset (the test images have no labels).

    Class names are "<category id, four digits>.<category name>", as in Meta-Dataset's splits; names alone are not unique.
    Raises UserError for annotations that are missing, damaged or inconsistent.
    """

    kind = "fungi"
    name = "fungi"

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.remarks: list[str] = []
        self.dropped: list[str] = []
        self.ontology = None
        for file in _FILES:
            if not (self.path / file).is_file():
                raise UserError(f"{self.path}: {file} is missing; unpack fungi_train_val.tgz and train_val_annotations.tgz here")
        if not (self.path / "images").is_dir():
            raise UserError(f"{self.path}: the folder images is missing; unpack fungi_train_val.tgz here")
        self._tree = ImageTree(self.path / "images")
        try:
            self.fingerprint = digest([self._tree.fingerprint, *(file_stamp(self.path / file) for file in _FILES)])
            self._classes = self._read()
        except BaseException:
            self._tree.close()
            raise

    def classes(self) -> Sequence[SourceClass]:
        return self._classes

    def read(self, image: str) -> bytes:
        return self._tree.read(image.removeprefix("images/"))

    def close(self) -> None:
        self._tree.close()

    def _read(self) -> list[SourceClass]:
        categories: dict[int, str] = {}
        images: dict[int, list[str]] = {}
        seen: set[int] = set()
        for position, file in enumerate(_FILES):
            part = _Part(self.path / file)
            if position and part.categories != categories:
                raise UserError(f"{part.path}: its categories differ from those of {_FILES[0]}")
            categories = part.categories
            if repeated := seen & part.files.keys():
                raise UserError(f"{part.path}: the image id {min(repeated)} is in {_FILES[0]} too")
            seen |= part.files.keys()
            for image, name in part.files.items():
                if image not in part.labels:
                    raise UserError(f"{part.path}: no annotation for image {image} ({name})")
                images.setdefault(part.labels[image], []).append(name)
        self._compare(images)
        self.dropped = [f"{number:04d}.{name}" for number, name in categories.items() if number not in images]
        if self.dropped:
            self.remarks.append(f"{len(self.dropped)} categories without images skipped: {first_few(self.dropped)}")
        return [SourceClass(f"{number:04d}.{categories[number]}", images[number]) for number in sorted(images)]

    def _compare(self, images: dict[int, list[str]]) -> None:
        listed = {name.removeprefix("images/") for group in images.values() for name in group}
        if not listed & self._tree.names:
            raise UserError(f"{self.path / 'images'}: has none of the {len(listed)} images in {' and '.join(_FILES)}")
        if extra := sorted(name for name in self._tree.names - listed if not Path(name).name.startswith(".")):
            self.remarks.append(f"{len(extra)} files without annotations skipped: {first_few(extra)}")


class _Part:
    """Contents of an annotation file: category id -> name, image id -> file name, image id -> category id."""

    def __init__(self, path: Path):
        self.path = path
        self.categories: dict[int, str] = {}
        self.files: dict[int, str] = {}
        self.labels: dict[int, int] = {}
        for key, index, entry in array_elements(path, ("categories", "images", "annotations")):
            where = f"{path}, {key}[{index}]"
            if key == "annotations":
                self._add(self.labels, _field(entry, "image_id", int, where), _field(entry, "category_id", int, where), where)
            elif key == "images":
                name = safe_name(_field(entry, "file_name", str, where), where)
                self._add(self.files, _field(entry, "id", int, where), name, where)
            else:
                self._add(self.categories, _field(entry, "id", int, where), _field(entry, "name", str, where), where)
        for image, label in self.labels.items():
            if image not in self.files:
                raise UserError(f"{path}: an annotation is for image {image}, which is not in the file")
            if label not in self.categories:
                raise UserError(f"{path}: image {image} has the category {label}, which is not in the file")

    @staticmethod
    def _add(table: dict[int, Any], key: int, value: Any, where: str) -> None:
        if key in table:
            raise UserError(f"{where}: duplicate id {key}")
        table[key] = value


def _field(entry: Any, key: str, kind: type, where: str) -> Any:
    value = entry.get(key) if isinstance(entry, dict) else None
    if type(value) is not kind:
        raise UserError(f"{where}: {key} is {'missing' if value is None else f'not of type {kind.__name__}: {str(value)[:40]!r}'}")
    return value
