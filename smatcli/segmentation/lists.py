"""Pairs of images and masks in user folders and in the published layouts of Kvasir-SEG, ISIC and ADE20K."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from smatcli.config.segment import SegmentData
from smatcli.data.images import image_suffixes
from smatcli.errors import UserError, nearest

PARTS = {
    "train": "train", "training": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class ImageMaskPair:
    """An image and its mask; `part` is train, valid or test if the published dataset is split, else empty."""

    name: str
    image: Path
    mask: Path
    part: str = ""


def list_pairs(data: SegmentData) -> list[ImageMaskPair]:
    """Return the pairs of a dataset, sorted by name. Raises `UserError` for files with no partner, or with two."""
    root = Path(data.root)
    if not root.is_dir():
        raise UserError(f"data.root: {root} is not a folder")
    if data.layout == "isic":
        return _isic(root)
    if data.layout == "folders":
        return _paired(_below(root, data.images), _below(root, data.masks), data.suffix)
    inner = {"kvasir": "Kvasir-SEG", "ade20k": "ADEChallengeData2016"}[data.layout]
    root = root / inner if (root / inner).is_dir() else root
    return _paired(_below(root, "images"), _below(root, "masks" if data.layout == "kvasir" else "annotations"), "")


def _below(root: Path, name: str) -> Path:
    folder = root / name
    if folder.is_dir():
        return folder
    there = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    raise UserError(f"data.root: {root} has no folder {name}{nearest(name, there)} (there: {', '.join(there[:10]) or 'no folder'})")


def _isic(root: Path) -> list[ImageMaskPair]:
    """List ISIC 2017 and 2018, task 1: `ISIC*_{Training,Validation,Test}*_{Input,Data}` and `..._GroundTruth` beside it."""
    folders = sorted(p for p in root.iterdir() if p.is_dir())
    pairs: list[ImageMaskPair] = []
    for part in ("Training", "Validation", "Test"):
        mine = [f for f in folders if f"_{part}" in f.name]
        images = [f for f in mine if f.name.endswith(("_Input", "_Data"))]
        masks = [f for f in mine if f.name.endswith("_GroundTruth") and "Part2" not in f.name and "Part3" not in f.name]
        if not images and not masks:
            continue
        if len(images) != 1 or len(masks) != 1:
            names = ", ".join(f.name for f in images + masks)
            raise UserError(f"{root}: expected one folder of images (_Input or _Data) and one _GroundTruth for {part}, found {names}")
        pairs += [
            ImageMaskPair(p.name, p.image, p.mask, PARTS[part.lower()])
            for p in _paired(images[0], masks[0], "_segmentation", "_superpixels")
        ]
    if not pairs:
        raise UserError(f"{root}: no folders of ISIC (ISIC2018_Task1-2_Training_Input and ISIC2018_Task1_Training_GroundTruth)")
    return pairs if len({p.part for p in pairs}) > 1 else [ImageMaskPair(p.name, p.image, p.mask) for p in pairs]


def _paired(images: Path, masks: Path, suffix: str, without: str = "\0") -> list[ImageMaskPair]:
    """Pair images and masks by name, sorted. If all images are in folders named after parts, the folder is the part."""
    ours = _named(images, "", without)
    theirs = _named(masks, suffix, without)
    if not ours:
        raise UserError(f"{images}: contains no readable image")
    _only(ours, theirs, images, f"no mask in {masks}")
    _only(theirs, ours, masks, f"no image in {images}")
    parts = {name: PARTS.get(name.split("/")[0].lower(), "") if "/" in name else "" for name in ours}
    split = all(parts.values()) and len(set(parts.values())) > 1
    return [ImageMaskPair(name, ours[name], theirs[name], parts[name] if split else "") for name in sorted(ours)]


def _only(here: dict[str, Path], there: dict[str, Path], folder: Path, said: str) -> None:
    alone = sorted(here.keys() - there.keys())
    if alone:
        more = f" (and {len(alone) - 1} more)" if alone[1:] else ""
        raise UserError(f"{folder}: {here[alone[0]].name} has {said}{more}{nearest(alone[0], sorted(there))}")


def _named(folder: Path, suffix: str, without: str) -> dict[str, Path]:
    """Map names, without extension and `suffix`, to the files below a folder."""
    files: dict[str, Path] = {}
    for path in _files(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name.endswith(without):
            continue
        if not name.endswith(suffix):
            raise UserError(f"{path}: a mask's name must end in {suffix!r}, the image's name before it; see data.suffix")
        name = name.removesuffix(suffix) if suffix else name
        if name in files:
            raise UserError(f"{path}: has the same name as {files[name].name}, so the pair is ambiguous; move one of them away")
        files[name] = path
    return files


def _files(folder: Path) -> Iterator[Path]:
    kinds = image_suffixes()
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and path.suffix.lower() in kinds and path.is_file():
            yield path
