"""Source `fgvc`: a fine-grained dataset with the JSON lists of visual prompt tuning (VPT), which split by image."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from smatcli.data.sources.base import SourceClass
from smatcli.data.sources.lists import ListedImages, inside, read_list
from smatcli.errors import UserError

if TYPE_CHECKING:
    from smatcli.data.stores.ontology import Ontology

LISTS = {"train.json": "train", "val.json": "valid", "test.json": "test"}
FOLDERS = ("images", "Images", "")  # CUB and NABirds; Stanford Dogs; Stanford Cars and Oxford Flowers
HOW = "put VPT's lists train.json, val.json and test.json beside the images of the original download"
MAX_SAMPLES = 100  # images to look for in a folder before it is rejected


class FgvcSource:
    """Lists that map image paths to class numbers; classes are sorted by number, as in VPT.

    Paths are relative to `images/`, `Images/` or the folder itself, whichever contains the images. Classes are named by folder if there is
    exactly one folder per class, else by number.
    Raises UserError for a missing or damaged list, or an image in two lists.
    """

    kind = "fgvc"
    strict = True  # with missing images it would be a different benchmark

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()
        if not self.path.is_dir():
            raise UserError(f"{self.path}: folder does not exist; {HOW}")
        self.name = f"fgvc_{self.path.resolve().name.removeprefix('fgvc_')}"
        self.remarks: list[str] = []
        self.ontology: Ontology | None = None
        lists = {name: _read(self.path / name) for name in LISTS}
        self._images = ListedImages(self.path, _image_folder(self.path, lists))
        for name, split in LISTS.items():
            for image, label in lists[name].items():
                self._images.add(image, label, split, str(self.path / name))
        self._classes = _named_by_folder(self._images.classes())
        untrained = [c.name for c in self._classes if "train" not in (c.image_splits or ())]
        if untrained:
            self.remarks.append(f"{len(untrained)} of {len(self._classes)} classes have no training image: {', '.join(untrained[:5])}")
        self.fingerprint = self._images.fingerprint()

    def classes(self) -> Sequence[SourceClass]:
        return self._classes

    def read(self, image: str) -> bytes:
        return self._images.read(image)

    def close(self) -> None: ...


def _named_by_folder(classes: list[SourceClass]) -> list[SourceClass]:
    """Rename the classes to their folders if each class has its own folder (CUB, NABirds, Stanford Dogs), else return them unchanged."""
    folders = [{PurePosixPath(image).parent.name for image in c.images} for c in classes]
    names = [names.pop() for names in folders if len(names) == 1]
    if len(set(names)) < len(classes):
        return classes
    return [replace(c, name=name) for c, name in zip(classes, names, strict=True)]


def _read(path: Path) -> dict[str, int]:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(items)
        if len(entries) < len(items):
            repeated = next(name for name, count in Counter(name for name, _ in items).items() if count > 1)
            raise UserError(f"{path}: {repeated[:100]!r} is listed twice; an image must have one label and one split")
        return entries

    try:
        listed = json.loads(read_list(path, HOW), object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(listed, dict) or not listed:
        raise UserError(
            f'{path}: expected {{"image path": class number, ...}}, found {"nothing" if listed == {} else type(listed).__name__}'
        )
    return {image: _label(label, path, image) for image, label in listed.items()}


def _label(value: Any, path: Path, image: str) -> int:
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9:
        return value
    raise UserError(f"{path}: {image[:100]!r} has the class {str(value)[:40]!r}; expected its number")


def _image_folder(root: Path, lists: dict[str, dict[str, int]]) -> str:
    samples = [inside(image, str(root / name)) for name, listed in lists.items() for image in list(listed)[: MAX_SAMPLES // len(lists)]]
    for folder in FOLDERS:
        if any((root / folder / image).is_file() for image in samples):
            return folder
    tried = ", ".join(str(root / folder / samples[0]) for folder in FOLDERS)
    raise UserError(f"{root}: the listed images do not exist (tried {tried}); {HOW}")
