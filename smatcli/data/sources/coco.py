"""Source `coco`: the objects of MSCOCO (Lin et al., 2014), cropped by their enlarged bounding boxes as in Meta-Dataset."""

import math
import threading
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image

from smatcli.data.images import Unreadable, decode_whole
from smatcli.data.sources.base import SourceClass
from smatcli.data.sources.imagetree import ImageTree, digest, file_stamp, first_few, safe_name
from smatcli.data.sources.jsonstream import array_elements
from smatcli.errors import UserError

Box = tuple[float, float, float, float]  # left, top, width, height in pixels, as in the annotations

_MAX_COORDINATE = 1e9


class CocoSource:
    """One image per bounding box: crops of `images` (folder or ZIP) by the boxes in `annotations` (`instances_*.json`), see `crop_window`.

    Classes are the categories, sorted by id. Those with fewer than `min_boxes` boxes are skipped (`dropped`) with a remark.
    Crowd boxes (`iscrowd`) are kept, as in Meta-Dataset's own records, unless `crowd` is false. Small boxes are kept too.
    Annotations are streamed and take about 50 bytes per box in memory. Raises UserError for annotations that are missing, damaged or
    inconsistent. For a missing image or a box outside its image, `read` raises Unreadable.
    """

    kind = "coco"
    name = "mscoco"

    def __init__(self, images: str | Path, annotations: str | Path, enlarge: float = 1.2, min_boxes: int = 2, crowd: bool = True):
        if not (math.isfinite(enlarge) and 1 <= enlarge <= 100):
            raise UserError(f"enlarge {enlarge:g}: give 1 (the box itself) or more")
        if min_boxes < 1:
            raise UserError(f"min-boxes {min_boxes}: give 1 or more")
        self.path, self.enlarge, self.ontology = Path(annotations), enlarge, None
        self.remarks: list[str] = []
        self.dropped: list[str] = []
        self._last = threading.local()  # last decoded image per thread, as the boxes of a class are sorted by image
        self._boxes = _Boxes(self.path, crowd)
        self._tree = ImageTree(Path(images))
        try:
            self._paths = self._find_images()
            self.fingerprint = digest([self._tree.fingerprint, file_stamp(self.path), repr((enlarge, min_boxes, crowd))])
            self._classes = self._group(min_boxes)
        except BaseException:
            self._tree.close()
            raise

    def classes(self) -> Sequence[SourceClass]:
        return self._classes

    def read(self, image: str) -> np.ndarray:
        """Return the crop, uint8 [h, w, 3], of a key "<file name>#<box number>"."""
        name, _, row = image.rpartition("#")
        whole = self._decode(name)
        window = crop_window(self._boxes.box(int(row)), whole.size, self.enlarge)
        if window is None:
            raise Unreadable("the box lies outside the image")
        return np.asarray(whole.crop(window))

    def close(self) -> None:
        self._tree.close()

    def _decode(self, name: str) -> Image.Image:
        if getattr(self._last, "name", None) != name:
            self._last.name = None
            self._last.image = decode_whole(self._tree.read(self._paths.get(name, name)))
            self._last.name = name
        image: Image.Image = self._last.image
        return image

    def _find_images(self) -> dict[str, str]:
        """Map file names in the annotations to names in the tree where their folders differ (`train2017/...` in a ZIP)."""
        available = self._tree.names
        wanted = {Path(name).name: name for name in self._boxes.files if name not in available}
        paths: dict[str, str] = {}
        for name in sorted(available) if wanted else ():
            listed = wanted.get(Path(name).name)
            if listed is not None and paths.setdefault(listed, name) != name:
                raise UserError(f"{self._tree.path}: {listed!r} may be {paths[listed]} or {name}; give the folder of one of them")
        if not paths and len(wanted) == len(self._boxes.files):
            raise UserError(f"{self._tree.path}: has none of the {len(wanted)} images in {self.path}; do they belong together?")
        return paths

    def _group(self, min_boxes: int) -> list[SourceClass]:
        boxes = self._boxes
        if boxes.crowds:
            self.remarks.append(f"{boxes.crowds:,} crowd boxes skipped")
        classes = []
        for label in np.argsort(boxes.category_ids, kind="stable"):
            rows = np.flatnonzero(boxes.labels == label)
            if len(rows) < min_boxes:
                self.dropped.append(boxes.names[label])
            else:
                classes.append(SourceClass(boxes.names[label], _Keys(boxes, rows[np.argsort(boxes.images[rows], kind="stable")])))
        if self.dropped:
            self.remarks.append(f"{len(self.dropped)} classes with fewer than {min_boxes} boxes skipped: {first_few(self.dropped)}")
        if not classes:
            raise UserError(f"{self.path}: no class has {min_boxes} boxes")
        return classes


def crop_window(box: Box, size: tuple[int, int], enlarge: float = 1.2) -> tuple[int, int, int, int] | None:
    """Enlarge a box about its centre and clip it to an image of `size` (width, height): left, top, right, bottom (exclusive).

    The rounding is Meta-Dataset's: COCO's coordinates refer to pixel centres, hence the halves; ends are inclusive before clipping, so
    that a box within the image has at least one pixel. None for a box outside the image.
    """
    left, top, width, height = box
    left -= 0.5 * width * (enlarge - 1.0)
    top -= 0.5 * height * (enlarge - 1.0)
    x0, y0 = max(round(left - 0.5), 0), max(round(top - 0.5), 0)
    x1 = min(round(left + width * enlarge - 0.5) + 1, size[0])
    y1 = min(round(top + height * enlarge - 0.5) + 1, size[1])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


class _Boxes:
    """Annotations as columns with one row per box: `labels` (category positions), `images` (image positions), and the boxes."""

    def __init__(self, path: Path, crowd: bool):
        self.path, self.crowds = path, 0
        self.names: list[str] = []
        self.files: list[str] = []
        category_ids, image_ids = array("q"), array("q")
        labels, images, self._corners = array("q"), array("q"), array("d")
        for key, index, entry in array_elements(path, ("images", "annotations", "categories")):
            where = f"{path}, {key}[{index}]"
            if not isinstance(entry, dict):
                raise UserError(f"{where}: is not an object")
            if key == "categories":
                category_ids.append(_id(entry, "id", where))
                self.names.append(_text(entry, "name", where))
            elif key == "images":
                image_ids.append(_id(entry, "id", where))
                self.files.append(safe_name(_text(entry, "file_name", where), where))
            elif entry.get("iscrowd") and not crowd:
                self.crowds += 1
            else:
                labels.append(_id(entry, "category_id", where))
                images.append(_id(entry, "image_id", where))
                self._corners.extend(_box(entry.get("bbox"), where))
        if len(set(self.names)) < len(self.names):
            raise UserError(f"{path}: two categories have the same name")
        if len(set(self.files)) < len(self.files):
            raise UserError(f"{path}: two images have the same file name")
        self.category_ids = np.asarray(category_ids)
        self.labels = _positions(labels, category_ids, path, "category")
        self.images = _positions(images, image_ids, path, "image")

    def box(self, row: int) -> Box:
        left, top, width, height = self._corners[4 * row : 4 * row + 4]
        return left, top, width, height


class _Keys(Sequence[str]):
    """Lazy sequence of the keys of a class's boxes."""

    def __init__(self, boxes: _Boxes, rows: np.ndarray):
        self._boxes, self._rows = boxes, rows.astype(np.uint32)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "_Keys": ...
    def __getitem__(self, index: int | slice) -> "str | _Keys":
        if isinstance(index, slice):
            return _Keys(self._boxes, self._rows[index])
        row = int(self._rows[index])
        return f"{self._boxes.files[self._boxes.images[row]]}#{row}"


def _positions(ids: "array[int]", available: "array[int]", path: Path, what: str) -> np.ndarray:
    """Return the position of each of `ids` in `available`, int32. Raises UserError for duplicate or unknown ids."""
    order = np.argsort(np.asarray(available), kind="stable")
    ascending = np.asarray(available)[order]
    if (repeated := ascending[1:][np.diff(ascending) == 0]).size:
        raise UserError(f"{path}: duplicate {what} id {repeated[0]}")
    wanted = np.asarray(ids)
    places = np.minimum(np.searchsorted(ascending, wanted), max(len(ascending) - 1, 0))
    unknown = wanted[ascending[places] != wanted] if len(ascending) else wanted
    if unknown.size:
        raise UserError(f"{path}: {unknown.size} annotations have an unknown {what} id, the first {unknown[0]}")
    return order[places].astype(np.int32) if wanted.size else np.zeros(0, np.int32)


def _id(entry: dict[str, Any], key: str, where: str) -> int:
    value = entry.get(key)
    if type(value) is not int or abs(value) >= 2**62:
        raise UserError(f"{where}: {key} is {'missing' if value is None else f'{str(value)[:40]!r}, not a number'}")
    return value


def _text(entry: dict[str, Any], key: str, where: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise UserError(f"{where}: {key} is missing or not text")
    return value


def _box(value: Any, where: str) -> Box:
    valid = isinstance(value, list) and len(value) == 4 and all(type(v) in (int, float) and abs(v) <= _MAX_COORDINATE for v in value)
    if not valid:
        raise UserError(f"{where}: bbox is {'missing' if value is None else f'{str(value)[:60]}, not [x, y, width, height]'}")
    left, top, width, height = value
    return left, top, width, height
