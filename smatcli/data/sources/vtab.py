"""Source `vtab`: one task of VTAB-1k as list files beside `images/`, which split by image."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from smatcli.data.images import Unreadable
from smatcli.data.sources.base import SourceClass
from smatcli.data.sources.lists import ListedImages, inside, read_list
from smatcli.data.sources.trees import DirectoryTree
from smatcli.errors import UserError

if TYPE_CHECKING:
    from smatcli.data.stores.ontology import Ontology

LISTS = {"train800.txt": "train", "val200.txt": "valid", "test.txt": "test"}
UNION = "train800val200.txt"
EXPECTED = {"train800.txt": 800, "val200.txt": 200, UNION: 1000}
HOW = "the folder of a task contains images/, train800.txt, val200.txt, train800val200.txt and test.txt"

Row = tuple[str, int, str]  # path, label, where


class VtabSource:
    """Train, valid and test images are listed in train800.txt, val200.txt and test.txt; classes are the labels, named by their numbers.

    Every line is `path label`, with the path relative to the task's folder. train800val200.txt, the training list of final models, must
    contain the same images as the two shorter lists, as the same paths or as copies with the same bytes. If the shorter lists are missing,
    its images are used for training.
    Raises UserError for a missing or damaged list, an image in two lists, or a train800val200.txt with other images.
    """

    kind = "vtab"
    strict = True  # with missing images it would be a different benchmark

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()
        if not self.path.is_dir():
            raise UserError(f"{self.path}: folder does not exist; {HOW}")
        self.name = f"vtab_{self.path.resolve().name.removeprefix('vtab_')}"
        self.remarks: list[str] = []
        self.ontology: Ontology | None = None
        self._images = ListedImages(self.path)
        rows = {name: _rows(self.path / name) for name in self._lists()}
        for name, split in self._lists().items():
            for image, label, where in rows[name]:
                self._images.add(image, label, split, where)
            if name in EXPECTED and len(rows[name]) != EXPECTED[name]:
                self.remarks.append(f"{name} lists {len(rows[name])} images, not {EXPECTED[name]}")
        self._classes = self._images.classes()
        self.fingerprint = self._images.fingerprint()
        if UNION in rows:
            self.remarks.append("train800.txt and val200.txt do not exist: there are no validation images")
        elif (self.path / UNION).exists():
            _check_union(self.path, rows["train800.txt"] + rows["val200.txt"], _rows(self.path / UNION))
        else:
            self.remarks.append(f"{UNION} does not exist, so the two shorter lists are not checked against it")

    def _lists(self) -> dict[str, str]:
        """Return the lists to use, with their splits; some copies of the benchmark lack the two shorter lists."""
        short = any((self.path / name).exists() for name in ("train800.txt", "val200.txt"))
        return LISTS if short or not (self.path / UNION).exists() else {UNION: "train", "test.txt": "test"}

    def classes(self) -> Sequence[SourceClass]:
        return self._classes

    def read(self, image: str) -> bytes:
        return self._images.read(image)

    def close(self) -> None: ...


def _rows(path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(read_list(path, HOW).splitlines(), 1):
        where = f"{path}, line {number}"
        match line.strip().rsplit(None, 1):
            case []:
                continue
            case [image, label] if label.isdecimal() and len(label) < 10:
                rows.append((image, int(label), where))
            case _:
                raise UserError(f"{where}: expected a path and a label, such as images/test/000000.jpg 3, found {line[:80]!r}")
    if not rows:
        raise UserError(f"{path}: lists no image; fetch it again")
    return rows


def _check_union(root: Path, parts: list[Row], union: list[Row]) -> None:
    """Refuse a union with other images. Common tools write separate image files for every list, so if paths differ, contents decide."""
    if Counter((str(inside(path, where)), label) for path, label, where in union) == Counter(
        (str(inside(path, where)), label) for path, label, where in parts
    ):
        return
    tree = DirectoryTree(root)

    def content(row: Row) -> tuple[bytes, int]:
        path, label, where = row
        try:
            return hashlib.sha256(tree.read(str(inside(path, where)))).digest(), label
        except Unreadable as error:
            raise UserError(f"{where}: {path} cannot be compared with the other lists ({error}); fetch the task again") from None

    short, long = [content(row) for row in parts], [content(row) for row in union]
    lost, added = Counter(short) - Counter(long), Counter(long) - Counter(short)
    if not lost and not added:
        return
    odd = next(
        row for row, key in [*zip(parts, short, strict=True), *zip(union, long, strict=True)] if lost.get(key, 0) or added.get(key, 0)
    )
    raise UserError(
        f"{root / UNION}: is not the union of train800.txt and val200.txt: {lost.total()} of their images (with their labels) are missing, "
        f"{added.total()} are in neither of them (first: {odd[2]}); fetch the task again"
    )
