"""Images as a user has them (folders, ZIPs, files, Pillow images, arrays) to uint8 [size, size, 3]."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from smatcli.data.images import Fit, Unreadable, decode_image, fit_image, image_suffixes, to_rgb
from smatcli.data.sources.folder import FolderSource
from smatcli.data.sources.trees import open_tree
from smatcli.errors import UserError

SHOWN = 3


@dataclass(frozen=True)
class Pictures:
    """Encoded images by name (`read` raises `Unreadable`), their classes where they have some, and what was left out."""

    where: str
    names: list[str]
    read: Callable[[str], bytes]
    labels: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def query_pictures(path: Path) -> Pictures:
    """The images of a folder (at any depth), of a ZIP, or a single file; `UserError` when there is none."""
    if path.is_file() and path.suffix.lower() in image_suffixes():
        return Pictures(str(path.parent), [path.name], open_tree(path.parent).read)
    tree = open_tree(path)
    listed = sorted(item.name for item in tree.files())
    names = [name for name in listed if not _hidden(name) and _maybe_image(name)]
    if not names:
        raise UserError(f"{path}: holds no images; give a folder, a ZIP or a single image file")
    return Pictures(str(path), names, tree.read, remarks=_left_out(path, [n for n in listed if n not in set(names) and not _hidden(n)]))


def support_pictures(path: Path) -> Pictures:
    """The labelled images of a folder or ZIP of class folders; `UserError` for fewer than two classes, or a class without images."""
    source = FolderSource(path)
    names: list[str] = []
    labels: list[str] = []
    other: list[str] = []
    for found in source.classes():
        images = [name for name in found.images if _maybe_image(name)]
        other += [name for name in found.images if not _maybe_image(name)]
        if not images:
            raise UserError(f"{path}: the class folder {found.name} holds no images")
        names += images
        labels += [found.name] * len(images)
    if len(set(labels)) < 2:
        held = f"{len(names)} image{'s' * (len(names) != 1)}"
        raise UserError(
            f"{path}: has one class only ({labels[0]}, {held}); give a folder with a folder of images for each of two classes or more"
        )
    return Pictures(str(path), names, source.read, labels, [*source.remarks, *_left_out(path, other)])


def read_all(pictures: Pictures, size: int, fit: Fit, skip: bool = False) -> tuple[list[np.ndarray], list[str], list[str]]:
    """Decoded images and their labels, and a line for every unreadable one; these are a `UserError` without `skip`."""
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


def unreadable(pictures: Pictures, bad: Sequence[str]) -> UserError:
    """The error that names images which do not decode."""
    return UserError(
        f"{pictures.where}: {len(bad)} of {len(pictures.names)} images cannot be read: {_some(bad)}; "
        "repair or remove them, or add --skip-unreadable"
    )


def as_list(images: Any, what: str = "images") -> list[Any]:
    """The items of a sequence or of an array [N, ...]; `UserError` for a single image, or none."""
    if isinstance(images, str | bytes | Path | Image.Image) or not isinstance(images, Iterable):
        raise UserError(f"{what}: give a list of images, not a single {type(images).__name__}")
    shape = getattr(images, "shape", None)
    if shape is not None and len(shape) != 4:
        raise UserError(f"{what}: an array of images is [N, H, W, 3] or [N, 3, H, W], not {list(shape)}")
    found = list(images)
    if not found:
        raise UserError(f"{what}: the list is empty")
    return found


def as_pixels(image: Any, size: int, fit: Fit, where: str) -> np.ndarray:
    """uint8 [size, size, 3] of a path, encoded bytes, a Pillow image, or a uint8 array ([H, W, 3], [3, H, W] or [H, W])."""
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
        raise UserError(f"{where}: an array of {values.dtype} is not understood; give uint8 from 0 to 255, a path or a Pillow image")
    if values.ndim == 3 and values.shape[2] not in (3, 4) and values.shape[0] == 3:
        values = values.transpose(1, 2, 0)
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)) or not values.size:
        raise UserError(f"{where}: an image is [H, W, 3], [3, H, W] or [H, W], not {list(values.shape)}")
    return np.ascontiguousarray(values)


def _maybe_image(name: str) -> bool:
    suffix = PurePosixPath(name).suffix.lower()
    return not suffix or suffix in image_suffixes()


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def _left_out(path: Path, names: Sequence[str]) -> list[str]:
    return [f"{path}: {len(names)} file{'s' * (len(names) > 1)} that are no images left out: {_some(names)}"] if names else []


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
