"""Convert images of the user (folders, ZIPs, files, Pillow images, arrays) to uint8 [size, size, 3]."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from smatcli.data.images import Fit, Unreadable, decode_image, fit_image, image_suffixes, to_rgb
from smatcli.data.sources.base import SourceClass
from smatcli.data.sources.folder import FolderSource
from smatcli.data.sources.parts import maybe_image
from smatcli.data.sources.trees import open_tree
from smatcli.errors import UserError

SHOWN = 3


@dataclass(frozen=True)
class PictureSet:
    """Encoded images by name, their classes if they have any, and messages about skipped files. `read` raises `Unreadable`."""

    where: str
    names: list[str]
    read: Callable[[str], bytes]
    labels: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def query_pictures(path: Path) -> PictureSet:
    """Return the images of a folder (searched recursively), a ZIP or a single file. Raises `UserError` if there are none."""
    if path.is_file() and path.suffix.lower() in image_suffixes():
        return PictureSet(str(path.parent), [path.name], open_tree(path.parent).read)
    tree = open_tree(path)
    listed = sorted(item.name for item in tree.files())
    names = [name for name in listed if not _hidden(name) and maybe_image(name)]
    if not names:
        raise UserError(f"{path}: contains no images; give a folder, a ZIP or a single image file")
    return PictureSet(str(path), names, tree.read, remarks=_skipped(path, [n for n in listed if n not in set(names) and not _hidden(n)]))


def support_pictures(path: Path) -> PictureSet:
    """Return the labelled images of a folder or ZIP of class folders.

    Raises `UserError` for fewer than two classes or an empty class.
    """
    source = FolderSource(path)
    names: list[str] = []
    labels: list[str] = []
    other: list[str] = []
    classes, left_out = _training_part(source.classes())
    if not classes:
        raise UserError(f"{path}: has no training part; give a folder with a folder of images per class")
    for each in classes:
        images = [name for name in each.images if maybe_image(name)]
        other += [name for name in each.images if not maybe_image(name)]
        if not images:
            raise UserError(f"{path}: the class folder {each.name} contains no images")
        names += images
        labels += [each.name] * len(images)
    if len(set(labels)) < 2:
        held = f"{len(names)} image{'s' * (len(names) != 1)}"
        raise UserError(
            f"{path}: has one class only ({labels[0]}, {held}); give a folder with a folder of images for each of two or more classes"
        )
    remarks = [f"{path}: {remark}" for remark in source.remarks]
    if left_out:
        remarks.append(f"{path}: has a training part; the {left_out} images of its other parts are not used")
    return PictureSet(str(path), names, source.read, labels, [*remarks, *_skipped(path, other)])


def _training_part(classes: Sequence[SourceClass]) -> tuple[list[SourceClass], int]:
    """Return the classes with their training images, and the number of the other images; everything without a stated split."""
    kept: list[SourceClass] = []
    for each in classes:
        splits = each.image_splits or [each.split or "train"] * len(each.images)
        if images := [image for image, split in zip(each.images, splits, strict=True) if split == "train"]:
            kept.append(SourceClass(each.name, images))
    return kept, sum(len(each.images) for each in classes) - sum(len(each.images) for each in kept)


def read_all(pictures: PictureSet, size: int, fit: Fit, skip: bool = False) -> tuple[list[np.ndarray], list[str], list[str]]:
    """Return decoded images, their labels, and a line per unreadable image. Without `skip`, an unreadable image raises `UserError`."""
    decoded: list[np.ndarray] = []
    labels: list[str] = []
    bad: list[str] = []
    for name, label in zip(pictures.names, pictures.labels, strict=True):
        try:
            decoded.append(decode_image(pictures.read(name), size, fit))
            labels.append(label)
        except Unreadable as reason:
            bad.append(f"{name} ({reason})")
    if bad and not skip:
        raise unreadable(pictures, bad)
    if lost := sorted(set(pictures.labels) - set(labels)):
        raise UserError(f"{pictures.where}: no image of class {lost[0]} can be read: {_some(bad)}")
    return decoded, labels, bad


def unreadable(pictures: PictureSet, bad: Sequence[str]) -> UserError:
    """Return the error for unreadable images."""
    return UserError(
        f"{pictures.where}: {len(bad)} of {len(pictures.names)} images cannot be read: {_some(bad)}; "
        "repair or remove them, or add --skip-unreadable"
    )


def as_list(images: Any, what: str = "images") -> list[Any]:
    """Return the items of a sequence or an array [N, ...] as a list. Raises `UserError` for a single image or an empty sequence."""
    if isinstance(images, str | bytes | Path | Image.Image) or not isinstance(images, Iterable):
        raise UserError(f"{what}: give a list of images, not a single {type(images).__name__}")
    shape = getattr(images, "shape", None)
    if shape is not None and len(shape) != 4:
        raise UserError(f"{what}: an array of images must be [N, H, W, 3] or [N, 3, H, W], not {list(shape)}")
    items = list(images)
    if not items:
        raise UserError(f"{what}: the list is empty")
    return items


def as_pixels(image: Any, size: int, fit: Fit, where: str) -> np.ndarray:
    """Convert a path, encoded bytes, a Pillow image or a uint8 array ([H, W, 3], [3, H, W] or [H, W]) to uint8 [size, size, 3]."""
    try:
        if isinstance(image, str | Path):
            where = str(image)
            return decode_image(Path(image).read_bytes(), size, fit)
        if isinstance(image, bytes):
            return decode_image(image, size, fit)
        picture = image if isinstance(image, Image.Image) else Image.fromarray(_channels_last(np.asarray(image), where))
        return np.asarray(fit_image(to_rgb(picture), size, fit))
    except Unreadable as reason:
        raise UserError(f"{where}: cannot be read: {reason}") from None
    except OSError as error:
        raise UserError(f"{where}: cannot be read: {(error.strerror or str(error)).lower()}") from None


def _channels_last(values: np.ndarray, where: str) -> np.ndarray:
    if values.dtype != np.uint8:
        raise UserError(f"{where}: arrays of {values.dtype} are not supported; give uint8 from 0 to 255, a path or a Pillow image")
    if values.ndim == 3 and values.shape[2] not in (3, 4) and values.shape[0] == 3:
        values = values.transpose(1, 2, 0)
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)) or not values.size:
        raise UserError(f"{where}: an image must be [H, W, 3], [3, H, W] or [H, W], not {list(values.shape)}")
    return np.ascontiguousarray(values)


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def _skipped(path: Path, names: Sequence[str]) -> list[str]:
    return [f"{path}: {len(names)} file{'s' * (len(names) > 1)} skipped (not images): {_some(names)}"] if names else []


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
