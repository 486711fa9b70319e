"""The split that folders state: train, val (or valid, validation) and test around class folders."""

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from smatcli.data.images import image_suffixes
from smatcli.errors import UserError

PARTS = {"train": "train", "training": "train", "val": "valid", "valid": "valid", "validation": "valid", "test": "test", "testing": "test"}
NAMED = 5

Parts = tuple[str, ...]  # of a file's relative name


@dataclass(frozen=True)
class StatedSplit:
    """`folders` maps the folders that are read to train, valid or test; `kind` is how they split.

    images: all parts have the classes of train; classes: each part has its own classes; none: only a training part is usable.
    """

    kind: str
    folders: Mapping[str, str]
    remarks: list[str] = field(default_factory=list)


def class_key(name: str) -> str:
    """Return the name without differences of case, Unicode form and blanks."""
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()).split())


def stated_split(where: str, files: Sequence[Parts], depth: int = 1) -> StatedSplit | None:
    """Return the split that the top folders of `files` state, or None if none of them has the name of a part and holds folders.

    Class names have `depth` levels inside a part. A part in another form (images without class folders, a single folder that is not a
    class of train) is skipped with a remark. Raises UserError, with the folder to give instead, for parts that cannot be read as a split.
    """
    top = _TopFolders(where, files, depth)
    named = [folder for folder in top.images if folder.lower() in PARTS]
    nested = [folder for folder in named if folder in top.nested]
    others = [folder for folder in top.images if folder not in named]
    if not nested:
        if named and not others:
            raise UserError(f"{where}: the folders {_listed(named)} hold images without class folders; expected <class name>/<image>")
        return None
    train = [folder for folder in nested if PARTS[folder.lower()] == "train"]
    if others and (len(named) < 2 or not train):
        raise top.refused(nested[0], f"has the name of a part and holds folders, beside the folders {_listed(others)}")
    for folder in nested:
        if not top.classes[folder]:
            raise UserError(
                f"{where}: the folders {_listed(named)} are the split, and {folder} has no classes at depth {depth}; remove --depth"
            )
    if train and len(top.joined(train)) < 2:
        raise UserError(f"{where}: {train[0]} has a single folder ({_listed(top.joined(train))}), expected a folder per class")
    if not train and (len(nested) < 2 or len(nested) < len(named)):
        raise top.refused(nested[0], f"has class folders, but there is no training part (folders: {_listed(named)})")
    remarks = [f"skipped {folder}: {top.images[folder]} images in a folder beside the parts" for folder in others]
    remarks += [f"skipped {folder}: {top.images[folder]} images without class folders" for folder in named if folder not in nested]
    return _compared(top, train, [folder for folder in nested if folder not in train], remarks)


class _TopFolders:
    """Number of images, class names, and images in folders of each top folder."""

    def __init__(self, where: str, files: Sequence[Parts], depth: int) -> None:
        self.where = where
        self.images: dict[str, int] = {}
        self.classes: dict[str, set[str]] = {}
        self.nested: set[str] = set()
        for parts in sorted(files):
            if len(parts) > 1 and maybe_image(parts[-1]):
                folder = parts[0]
                self.images[folder] = self.images.get(folder, 0) + 1
                classes = self.classes.setdefault(folder, set())
                if len(parts) > 2:
                    self.nested.add(folder)
                if len(parts) > depth + 1:
                    classes.add("/".join(parts[1 : depth + 1]))

    def joined(self, folders: Collection[str]) -> set[str]:
        """Return the classes of several folders."""
        return set().union(*(self.classes[folder] for folder in folders))

    def refused(self, folder: str, why: str) -> UserError:
        return UserError(f"{self.where}: the folder {folder} {why}; give {self.where}/{folder} alone, or rename or move the folders")


def _compared(top: _TopFolders, train: Sequence[str], rest: Sequence[str], remarks: list[str]) -> StatedSplit:
    """Compare the classes of the other parts with those of train."""
    train_classes = top.joined(train)
    keys = {class_key(name) for name in train_classes}
    same, own = [], []
    for folder in rest:
        classes = top.classes[folder]
        if train_classes and classes <= train_classes:
            same.append(folder)
        elif not keys & {class_key(name) for name in classes}:
            if train_classes and len(classes) == 1:
                count = top.images[folder]
                remarks.append(f"skipped {folder}: {count} images in the single folder {_listed(classes)}, which is not in {train[0]}")
            else:
                own.append(folder)
        else:
            raise top.refused(train[0], f"shares some classes with {folder}, which has others too ({_listed(classes - train_classes)})")
    if same and own:
        raise top.refused(train[0], f"has the classes of {_listed(same)}, but {_listed(own)} has classes of its own")
    folders = {folder: PARTS[folder.lower()] for folder in (*train, *same, *own)}
    if same:
        return StatedSplit("images", folders, remarks)
    if not own:
        return StatedSplit("none", folders, [*remarks, f"only {_listed(train)} is read"])
    _check_disjoint(top, own)
    counts = {part: len({c for f, p in folders.items() if p == part for c in top.classes[f]}) for part in ("train", "valid", "test")}
    said = ", ".join(f"{count} {part}" for part, count in counts.items())
    return StatedSplit("classes", folders, [*remarks, f"the folders {', '.join(folders)} are the split: {said} classes"])


def _check_disjoint(top: _TopFolders, folders: Sequence[str]) -> None:
    owner: dict[str, str] = {}
    for folder in folders:
        for name in sorted(top.classes[folder]):
            other = owner.setdefault(class_key(name), folder)
            if PARTS[other.lower()] != PARTS[folder.lower()]:
                raise UserError(f"{top.where}: the class {name} is in {other} and in {folder}; a class belongs to one part")


def refuse_inner_parts(where: str, files: Sequence[Parts], level: int) -> None:
    """Raise UserError if the folders at `level` inside some class or group are parts (ant/train, ant/test)."""
    inner: dict[Parts, set[str]] = {}
    for parts in files:
        if maybe_image(parts[-1]):
            inner.setdefault(parts[:level], set()).add(parts[level] if len(parts) > level + 1 else "")
    for outer, names in inner.items():
        if len({PARTS.get(name.lower(), "") for name in names} - {""}) > 1 and all(name.lower() in PARTS for name in names):
            raise UserError(
                f"{where}: the parts {_listed(names)} lie inside {'/'.join(outer)}; put them outside (train/<class name>/<image>)"
            )


def maybe_image(name: str) -> bool:
    """Whether a file has the suffix of an image, or none."""
    suffix = PurePosixPath(name).suffix.lower()
    return not suffix or suffix in image_suffixes()


def _listed(names: Collection[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:NAMED]) + (f" and {len(ordered) - NAMED} more" if len(ordered) > NAMED else "")
