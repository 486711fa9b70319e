"""Source `cub`: Caltech-UCSD Birds-200-2011 (Wah et al., 2011) as published."""

from collections.abc import Sequence
from pathlib import Path

from smatcli.data.sources.base import SourceClass
from smatcli.data.sources.imagetree import ImageTree, digest, file_stamp, first_few, read_pairs, safe_name, whole_number
from smatcli.errors import UserError

_LISTS = ("images.txt", "classes.txt", "image_class_labels.txt")


class CubSource:
    """The folder `CUB_200_2011` (or the one around it): `classes.txt`, `images.txt`, `image_class_labels.txt` and `images/`.

    Class names are those in `classes.txt` ("001.Black_footed_Albatross"), as in Meta-Dataset's splits. Images are not cropped.
    Raises UserError, with file and line, for lists that are missing, damaged or inconsistent.
    """

    kind = "cub"
    name = "cu_birds"

    def __init__(self, path: str | Path):
        self.path = _find(Path(path))
        self.remarks: list[str] = []
        self.ontology = None
        self._tree = ImageTree(self.path / "images")
        try:
            self.fingerprint = digest([self._tree.fingerprint, *(file_stamp(self.path / name) for name in _LISTS)])
            self._classes = self._read()
        except BaseException:
            self._tree.close()
            raise

    def classes(self) -> Sequence[SourceClass]:
        return self._classes

    def read(self, image: str) -> bytes:
        return self._tree.read(image)

    def close(self) -> None:
        self._tree.close()

    def _read(self) -> list[SourceClass]:
        files, names, labels = (_numbered(self.path / name) for name in _LISTS)
        images: dict[int, list[str]] = {number: [] for number in names}
        if len(set(names.values())) < len(names):
            raise UserError(f"{self.path / 'classes.txt'}: duplicate class name")
        for number, text in labels.items():
            where = f"{self.path / 'image_class_labels.txt'}: image {number}"
            label = whole_number(text, where)
            if number not in files:
                raise UserError(f"{where} is not in images.txt")
            if label not in names:
                raise UserError(f"{where} has the class {label}, which is not in classes.txt")
            file = safe_name(files[number], str(self.path / "images.txt"))
            if "/" in file and file.split("/")[0] != names[label]:
                raise UserError(f"{where} has the class {names[label]!r}, but is in the folder {file.split('/')[0]!r}")
            images[label].append(file)
        if unlabelled := [file for number, file in files.items() if number not in labels]:
            raise UserError(f"{self.path / 'image_class_labels.txt'}: no class for {first_few(unlabelled)}")
        listed = set(files.values())
        if not listed & self._tree.names:
            raise UserError(f"{self.path / 'images'}: has none of the {len(listed)} images in images.txt; unpack the archive again")
        if extra := sorted(name for name in self._tree.names - listed if not Path(name).name.startswith(".")):
            self.remarks.append(f"{len(extra)} files not in images.txt skipped: {first_few(extra)}")
        return [SourceClass(names[number], images[number]) for number in sorted(names)]


def _find(path: Path) -> Path:
    for folder in (path, path / "CUB_200_2011"):
        if (folder / "images.txt").is_file() and (folder / "images").is_dir():
            missing = [name for name in _LISTS if not (folder / name).is_file()]
            if missing:
                raise UserError(f"{folder}: {missing[0]} is missing; unpack CUB_200_2011.tgz again")
            return folder
    what = "folder does not exist" if not path.exists() else "no images.txt and images/ here"
    raise UserError(f"{path}: {what}; give the folder CUB_200_2011 of CUB_200_2011.tgz")


def _numbered(path: Path) -> dict[int, str]:
    by_number: dict[int, str] = {}
    for line, first, rest in read_pairs(path):
        number = whole_number(first, f"{path}, line {line}")
        if number in by_number:
            raise UserError(f"{path}, line {line}: duplicate number {number}")
        by_number[number] = rest
    if not by_number:
        raise UserError(f"{path}: is empty")
    return by_number
