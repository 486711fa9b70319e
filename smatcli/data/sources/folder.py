"""Source `folder`: a directory or a ZIP with one folder of images per class."""

import hashlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from smatcli.data.images import image_suffixes
from smatcli.data.sources.base import SourceClass
from smatcli.data.sources.trees import open_tree
from smatcli.errors import UserError

PARTS = {"train": "train", "training": "train", "val": "valid", "valid": "valid", "validation": "valid", "test": "test", "testing": "test"}
_JUNK = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini"}

Parts = tuple[str, ...]


class FolderSource:
    """Class folders with images, both sorted by name. Single folders around the class folders are skipped.

    With `depth` 1, the class is the first folder, including its subfolders; with 2, the first two ("alphabet/character"), and so on.
    Folders train, val (or valid, validation) and test with the same classes are a split of the images.
    Hidden files and files of file managers are skipped silently, other files outside a class folder with a remark.
    Raises UserError for a source that is missing, damaged, malicious (see `trees.ZipTree`) or without class folders.
    """

    kind = "folder"

    def __init__(self, path: str | Path, depth: int = 1):
        self.path = Path(path)
        self.name = self.path.resolve().name if self.path.is_dir() else self.path.stem
        self.ontology = None
        self.remarks: list[str] = []
        self._tree = open_tree(self.path)
        try:
            listed = {parts: item for item in self._tree.files() if not _junk(parts := PurePosixPath(item.name).parts)}
            lines = sorted(f"{item.name}\0{item.size}\0{item.stamp}\n" for item in listed.values())
            deep = f"depth {depth}\n" if depth > 1 else ""
            self.fingerprint = hashlib.sha256("".join([*lines, deep]).encode("utf-8", "surrogateescape")).hexdigest()
            top = _descend(list(listed))
            self._classes = self._group(top, list(listed), depth)
        except BaseException:
            self._tree.close()
            raise

    def classes(self) -> Sequence[SourceClass]:
        return self._classes

    def read(self, image: str) -> bytes:
        return self._tree.read(image)

    def close(self) -> None:
        self._tree.close()

    def _group(self, top: Parts, files: list[Parts], depth: int) -> list[SourceClass]:
        grouped: dict[str, list[str]] = {}
        outside: list[PurePosixPath] = []
        in_parts = depth == 1 and _by_image(files, top)
        start = len(top) + in_parts
        for parts in files:
            if parts[: len(top)] == top and len(parts) - start > depth:
                grouped.setdefault("/".join(parts[start : start + depth]), []).append("/".join(parts))
            else:
                outside.append(PurePosixPath(*parts))
        if not grouped:
            raise UserError(f"{self.path}: has {'no files' if not files else 'files but no class folders'}; expected <class name>/<image>")
        if not in_parts:
            self._refuse_nested(grouped, start + depth, depth)
        for name in grouped:
            try:
                name.encode("utf-8")
            except UnicodeEncodeError:
                raise UserError(f"{self.path}: the folder name {name!r} is not valid UTF-8; rename it") from None
        self._remark(outside)
        by_class = {name: sorted(grouped[name]) for name in sorted(grouped)}
        if not in_parts:
            return [SourceClass(name, images) for name, images in by_class.items()]
        return [SourceClass(n, images, None, [PARTS[i.split("/")[len(top)].lower()] for i in images]) for n, images in by_class.items()]

    def _refuse_nested(self, grouped: dict[str, list[str]], level: int, depth: int) -> None:
        """Refuse class folders that contain only folders, several each: they are probably splits (train/, test/) or groups of classes."""
        for images in grouped.values():
            inner = {image.split("/")[level] if image.count("/") > level else "" for image in images}
            if len(inner) < 2 or "" in inner:
                return
        first = next(iter(grouped.values()))[0]
        raise UserError(
            f"{self.path}: images are one folder deeper than expected ({first}); "
            f"give the inner folder alone, or --depth {depth + 1} to make every inner folder a class"
        )

    def _remark(self, outside: list[PurePosixPath]) -> None:
        if outside:
            names = ", ".join(str(name) for name in sorted(outside)[:5]) + (", ..." if len(outside) > 5 else "")
            self.remarks.append(f"{len(outside)} file{'s' * (len(outside) > 1)} outside the class folders skipped: {names}")


def _by_image(files: list[Parts], top: Parts) -> bool:
    """Return whether `top` contains only folders named as in `PARTS`, including train and test, and train has all classes.

    If valid or test have other classes, the split is by class, as for meta-learning.
    """
    start, classes = len(top), dict[str, set[str]]()
    for parts in files:
        if parts[:start] == top and len(parts) > start + 1:
            split = PARTS.get(parts[start].lower())
            if split is None or len(parts) < start + 3:
                return False
            classes.setdefault(split, set()).add(parts[start + 1])
    return {"train", "test"} <= classes.keys() and all(names <= classes["train"] for names in classes.values())


def _junk(parts: Parts) -> bool:
    return any(part.startswith(".") or part.lower() in _JUNK for part in parts)


def _descend(files: list[Parts]) -> Parts:
    """Return the folder of the class folders: follow single folders as long as no image is beside or directly in them."""
    top: Parts = ()
    while True:
        here = [parts[len(top) :] for parts in files if parts[: len(top)] == top]
        folders = {parts[0] for parts in here if len(parts) > 1}
        beside = [parts for parts in here if len(parts) == 1]
        inside = [parts for parts in here if len(parts) == 2]
        if len(folders) != 1 or any(map(_is_image, [*beside, *inside])) or not any(len(parts) > 2 for parts in here):
            return top
        top = (*top, folders.pop())


def _is_image(parts: Parts) -> bool:
    return PurePosixPath(parts[-1]).suffix.lower() in image_suffixes()
