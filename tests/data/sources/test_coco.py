"""The source `coco`: crops of enlarged boxes as in Meta-Dataset, from annotations in MSCOCO's layout."""

import io
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from smatcli.data.images import Unreadable
from smatcli.data.sources.coco import CocoSource, crop_window
from smatcli.errors import UserError
from tests.data.imagefiles import picture, write_folder, write_zip

FILES = {139: "000000000139.jpg", 285: "000000000285.jpg", 632: "000000000632.jpg"}
CATEGORIES = [(18, "dog"), (1, "person"), (90, "toothbrush")]  # ids have gaps, and no order


def png(image_id):
    return picture(image_id, 64, 48)  # losslessly, under the name of a JPEG


def annotation(number, image, category, box, crowd=0, **more):
    shape = {"counts": [5, 3, 9], "size": [48, 64]} if crowd else [[float(v) for v in range(12)]]
    area = box[2] * box[3] if len(box) == 4 else 0
    return {
        "segmentation": shape,
        "area": area,
        "iscrowd": crowd,
        "image_id": image,
        "bbox": box,
        "category_id": category,
        "id": number,
        **more,
    }


ANNOTATIONS = [
    annotation(7, 285, 1, [10.25, 20.25, 30, 20]),
    annotation(8, 139, 18, [0, 0, 64, 48]),
    annotation(9, 139, 1, [60.5, 40.25, 3.4, 7.6]),
    annotation(900100000139, 139, 1, [1, 1, 40, 40], crowd=1),
    annotation(10, 285, 18, [31.07, 11.5, 0.4, 0.3]),
    annotation(11, 632, 90, [5, 5, 9, 9]),
    annotation(12, 139, 1, [12, 3, 8, 30]),
]


def instances(annotations=None, **changes):
    return {
        "info": {"description": "COCO 2017 Dataset", "year": 2017},
        "licenses": [{"url": "http://creativecommons.org/licenses/by-nc-sa/2.0/", "id": 1, "name": "x"}],
        "images": [{"license": 1, "file_name": f, "height": 48, "width": 64, "id": i} for i, f in FILES.items()],
        "annotations": ANNOTATIONS if annotations is None else annotations,
        "categories": [{"supercategory": "any", "id": i, "name": n} for i, n in CATEGORIES],
        **changes,
    }


@pytest.fixture
def made(tmp_path):
    def make(data=None, files=None, **options):
        write_folder(tmp_path / "train2017", {FILES[i]: png(i) for i in FILES} if files is None else files)
        (tmp_path / "annotations").mkdir(exist_ok=True)
        path = tmp_path / "annotations" / "instances_train2017.json"
        path.write_text(json.dumps(instances() if data is None else data))
        return CocoSource(tmp_path / "train2017", path, **{"crowd": False, **options})

    return make


def pixels(image_id):
    return np.asarray(Image.open(io.BytesIO(png(image_id))))


def test_classes_boxes_and_skipped_ones(made):
    source = made()
    assert [(c.name, len(c.images), c.split) for c in source.classes()] == [("person", 3, None), ("dog", 2, None)]
    assert source.remarks == ["1 crowd boxes skipped", "1 classes with fewer than 2 boxes skipped: 'toothbrush'"]
    assert source.dropped == ["toothbrush"]
    assert (source.kind, source.name) == ("coco", "mscoco")
    # the boxes of a class are sorted by image
    assert [key.split("#")[0] for key in source.classes()[0].images] == [FILES[139], FILES[139], FILES[285]]


def test_crowds_and_few_boxes_may_stay(made):
    source = made(crowd=True, min_boxes=1)
    assert [(c.name, len(c.images)) for c in source.classes()] == [("person", 4), ("dog", 2), ("toothbrush", 1)]
    assert source.remarks == []
    assert source.dropped == []


def test_crops_worked_out_by_hand(made):
    """[10.25, 20.25, 30, 20] enlarged by 1.2 is x 7.25 to 43.25, y 18.25 to 42.25: columns round(6.75) to round(42.75), rows 18 to 42."""
    source = made()
    person, dog = source.classes()
    third = source.read(person.images[2])
    assert third.dtype == np.uint8
    np.testing.assert_array_equal(third, pixels(285)[18:43, 7:44])
    np.testing.assert_array_equal(source.read(dog.images[0]), pixels(139))  # clipped to the image
    np.testing.assert_array_equal(source.read(person.images[0]), pixels(139)[39:48, 60:64])  # at the corner
    assert source.read(dog.images[1]).shape == (1, 1, 3)  # smaller than a pixel, and kept


def test_enlarge_one_is_the_box(made):
    source = made(enlarge=1.0)
    assert source.read(source.classes()[0].images[1]).shape == (31, 9, 3)  # 12 to 20 through both half pixels, 3 to 33


numbers = st.floats(-50, 150, allow_nan=False).map(lambda v: round(v, 2))
sides = st.floats(0, 120).map(lambda v: round(v, 2))


@given(st.tuples(numbers, numbers, sides, sides), st.integers(1, 100), st.integers(1, 100), st.sampled_from([1.0, 1.2, 1.5, 2.0]))
def test_windows_cover_the_enlarged_box(box, width, height, enlarge):
    """The window is the enlarged box clipped to the image, up to half a pixel of rounding."""
    window = crop_window(box, (width, height), enlarge)
    left, top, w, h = map(Fraction, box)
    more = Fraction(enlarge) - 1
    ends = [(left - w * more / 2, left + w + w * more / 2, width), (top - h * more / 2, top + h + h * more / 2, height)]
    if window is None:
        assert any(last < Fraction(1, 2) or first > size - Fraction(1, 2) for first, last, size in ends)
        return
    for (first, last, size), start, stop in zip(ends, window[:2], window[2:], strict=True):
        assert 0 <= start < stop <= size
        slack = 1 + Fraction(1, 10**6)
        assert start <= max(first, Fraction(0)) + slack / 2
        assert stop >= min(last, Fraction(size)) - slack / 2
        assert start >= min(first - slack, size) or start == 0
        assert stop <= last + slack or stop == size


def test_a_box_inside_the_image_keeps_a_pixel():
    for x in np.linspace(0, 9.99, 37):
        assert crop_window((x, 4.2, 0.0, 0.0), (10, 10)) is not None or math.floor(x + 0.5) == 10


def test_images_may_lie_in_a_zip_with_a_folder(made, tmp_path):
    made()
    path = write_zip(tmp_path / "train2017.zip", {f"train2017/{FILES[i]}": png(i) for i in FILES})
    source = CocoSource(path, tmp_path / "annotations" / "instances_train2017.json")
    np.testing.assert_array_equal(source.read(source.classes()[1].images[0]), pixels(139))
    source.close()


def test_missing_images_and_boxes_outside_are_unreadable(made):
    far = annotation(20, 285, 18, [100, 100, 5, 5])
    source = made(instances([*ANNOTATIONS, far]), {FILES[285]: png(285), FILES[632]: b"broken"})
    person, dog = source.classes()
    with pytest.raises(Unreadable, match="missing"):
        source.read(person.images[0])
    with pytest.raises(Unreadable, match="outside the image"):
        source.read(dog.images[2])
    with pytest.raises(Unreadable, match="not an image"):
        source.read(f"{FILES[632]}#0")
    assert source.read(person.images[2]).shape == (25, 37, 3)  # a failure before does not matter


def test_keys_are_made_lazily_and_slice(made):
    keys = made().classes()[0].images
    assert list(keys[1:]) == [keys[1], keys[2]] == list(keys)[1:]
    assert keys[-1] == keys[2]
    with pytest.raises(IndexError):
        keys[3]


def test_fingerprint_follows_images_annotations_and_settings(made, tmp_path):
    first = made().fingerprint
    paths = tmp_path / "train2017", tmp_path / "annotations" / "instances_train2017.json"
    again = [CocoSource(*paths, enlarge=enlarge, crowd=False) for enlarge in (1.2, 1.5)]
    assert again[0].fingerprint == first != again[1].fingerprint
    assert made(instances(ANNOTATIONS[:-1])).fingerprint != first


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (instances([annotation(1, 139, 2, [0, 0, 5, 5])]), "1 annotations have an unknown category id, the first 2"),
        (instances([annotation(1, 7, 1, [0, 0, 5, 5])]), "1 annotations have an unknown image id, the first 7"),
        (instances([annotation(1, 139, 1, [0, 0, 5])]), r"annotations\[0\]: bbox is \[0, 0, 5\], not \[x, y, width, height\]"),
        (instances([ANNOTATIONS[0], annotation(1, 139, 1, [0, 0, 5, float("nan")])]), r"not JSON.* \(at annotations\[1\]"),
        (instances([annotation(1, 139, 1, [0, 0, 5, 10**400])]), r"not JSON.* \(at annotations\[0\]"),
        (instances([{"image_id": 139, "category_id": 1}]), "bbox is missing"),
        (instances([{"bbox": [0, 0, 1, 1], "category_id": 1}]), "image_id is missing"),
        (instances([annotation(1, "139", 1, [0, 0, 5, 5])]), "image_id is '139', not a number"),
        (instances([3]), r"annotations\[0\]: is not an object"),
        (instances([]), "no class has 2 boxes"),
        (instances(categories=[]), "unknown category id"),
        (instances(categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]), "duplicate category id 1"),
        (instances(categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]), "the same name"),
        (instances(images=[{"id": 1, "file_name": "../../etc/passwd"}]), "path traversal"),
        (instances(images=[{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "a.jpg"}]), "the same file name"),
        ({"images": [], "categories": []}, "no list 'annotations'"),
    ],
)
def test_annotations_that_contradict_themselves(made, data, said):
    with pytest.raises(UserError, match=rf"instances_train2017\.json.*{said}"):
        made(data)


def test_wrong_folders_and_options(made, tmp_path):
    with pytest.raises(UserError, match="has none of the 3 images"):
        made(files={"a/other.jpg": png(139)})
    with pytest.raises(UserError, match=r"enlarge 0\.5"):
        CocoSource(tmp_path, tmp_path / "x.json", enlarge=0.5)
    with pytest.raises(UserError, match=r"x\.json: does not exist"):
        CocoSource(tmp_path, tmp_path / "x.json")
    with pytest.raises(UserError, match=r"may be a/000000000139\.jpg or b/000000000139\.jpg"):
        made(files={f"{part}/{FILES[139]}": png(139) for part in "ab"})
