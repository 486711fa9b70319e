"""Source `folder`: a directory or a ZIP with one folder of images per class."""

import hashlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from smatcli.data.images import image_suffixes
from smatcli.data.sources.base import SourceClass
from smatcli.data.sources.parts import Parts, StatedSplit, refuse_inner_parts, stated_split
from smatcli.data.sources.trees import open_tree
from smatcli.errors import UserError

_JUNK = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini"}


class FolderSource:
    """Class folders with images, both sorted by name. Single folders around the class folders are skipped.

    With `depth` 1, the class is the first folder, including its subfolders; with 2, the first two ("alphabet/character"), and so on.
    Folders train, val (or valid, validation) and test around class folders are a split: of the images if they have the same classes, else
    of the classes (see `parts.stated_split`).
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
            top = _descend(list(listed))
            split = stated_split(
                "/".join([str(self.path), *top]), [parts[len(top) :] for parts in listed if parts[: len(top)] == top], depth
            )
            layout = "" if split is None or (split.kind == "images" and not split.remarks) else f"split by folders: {split.kind}\n"
            self.fingerprint = hashlib.sha256("".join([*lines, deep, layout]).encode("utf-8", "surrogateescape")).hexdigest()
            self._classes = self._group(top, list(listed), depth, split)
            self._remark_empty(top, depth, split)
        except BaseException:
            self._tree.close()
            raise

    def classes(self) -> Sequence[SourceClass]:
        return self._classes

    def read(self, image: str) -> bytes:
        return self._tree.read(image)

    def close(self) -> None:
        self._tree.close()

    def _group(self, top: Parts, files: list[Parts], depth: int, split: StatedSplit | None) -> list[SourceClass]:
        grouped: dict[str, list[str]] = {}
        outside: list[PurePosixPath] = []
        start = len(top) + (split is not None)
        for parts in files:
            inside = parts[: len(top)] == top
            if inside and len(parts) - start > depth and (split is None or parts[len(top)] in split.folders):
                grouped.setdefault("/".join(parts[start : start + depth]), []).append("/".join(parts))
            elif not inside or split is None or len(parts) <= len(top) + 1 or parts[len(top)] in split.folders:
                outside.append(PurePosixPath(*parts))
        if not grouped:
            raise UserError(f"{self.path}: has {'no files' if not files else 'files but no class folders'}; expected <class name>/<image>")
        kept = [tuple(image.split("/")) for images in grouped.values() for image in images]
        for level in range(start + 1, start + depth + 1):
            refuse_inner_parts(str(self.path), kept, level)
        if split is None:
            self._refuse_nested(grouped, start + depth, depth)
        for name in grouped:
            try:
                name.encode("utf-8")
            except UnicodeEncodeError:
                raise UserError(f"{self.path}: the folder name {name!r} is not valid UTF-8; rename it") from None
        self._remark(outside)
        by_class = {name: sorted(grouped[name]) for name in sorted(grouped)}
        if split is None or split.kind == "none":
            classes = [SourceClass(name, images) for name, images in by_class.items()]
        else:
            parts_of = {name: [split.folders[image.split("/")[len(top)]] for image in images] for name, images in by_class.items()}
            if split.kind == "images":
                classes = [SourceClass(name, images, None, parts_of[name]) for name, images in by_class.items()]
            else:
                classes = [SourceClass(name, images, parts_of[name][0]) for name, images in by_class.items()]
        self.remarks += split.remarks if split is not None else []
        return classes

    def _remark_empty(self, top: Parts, depth: int, split: StatedSplit | None) -> None:
        """Name the empty folders where class folders are expected."""
        start = len(top) + (split is not None)
        for parts in sorted(PurePosixPath(name).parts for name in self._tree.empty_folders()):
            read = split is None or parts[len(top) : len(top) + 1] in [(folder,) for folder in split.folders]
            if read and len(parts) == start + depth and parts[: len(top)] == top and not _junk(parts):
                self.remarks.append(f"the class folder {'/'.join(parts)} is empty; skipped")

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
