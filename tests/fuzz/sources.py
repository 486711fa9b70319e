"""Source data of every kind: functions that write a tiny valid folder, and functions that read all of it."""

import json
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from smatcli.errors import SmatError, UserError


def records(folder: Path) -> None:
    from tests.data.imagefiles import picture
    from tests.data.mdfiles import flat, write_records

    write_records(folder / "toy", flat((1, 1, 1), [2, 1, 1]), {0: [picture(0), picture(1)], 1: [picture(2)], 2: [picture(3)]})


def read_records(folder: Path) -> object:
    from smatcli.data.sources.meta_dataset import MetaDatasetSource

    return read_all(MetaDatasetSource(folder / "toy"))


def read_all(source: object) -> object:
    """Decode every image of a source; single unreadable images are allowed."""
    from smatcli.data.images import Unreadable, decode_image

    try:
        for each in source.classes():  # type: ignore[attr-defined]
            for image in list(each.images)[:20]:
                try:
                    data = source.read(image)  # type: ignore[attr-defined]
                    if isinstance(data, bytes):
                        decode_image(data, 8)
                except Unreadable as reason:
                    assert len(str(reason)) < 400
    finally:
        source.close()  # type: ignore[attr-defined]
    return None


def stores(folder: Path) -> None:
    from smatcli.data.stores.ontology import Node, Ontology
    from smatcli.data.stores.store import write_store
    from tests.data.imagefiles import picture

    pixels = np.zeros((3, 8, 8, 3), np.uint8)
    text = Ontology("bilevel", {"train": (Node("a", "a", (0,)),)}).to_json()
    write_store(folder / "raw.h5", "raw", 8, [("a", 0, pixels), ("b", 2, pixels)], ontology=text, facts={"fit": "squash"})
    jpegs = [("a", 0, iter([picture(0), picture(1)])), ("b", 0, iter([picture(2)]))]
    write_store(folder / "jpeg.h5", "jpeg", 8, jpegs, encoding="jpeg", image_split=[0, 1, 2], facts={"fit": "crop"})


def read_stores(folder: Path) -> object:
    from smatcli.data.stores.store import Store
    from smatcli.data.stores.verify import verify_store

    for path in folder.glob("*.h5"):
        store = Store.open(path)
        verify_store(path)
        rows = store.image_rows("train")[:20], store.image_rows("all")[:20]
        assert store.ontology is None or store.ontology.kind
        if store.image_size <= 512:
            np.asarray(store.images[rows[0]]), np.asarray(store.images[rows[1]])
    return None


def each(reads: list[Callable[[], object]]) -> object:
    """Call each in turn, and raise the last SmatError at the end, without the frames that would keep files open."""
    said: list[SmatError] = []
    for read in reads:
        try:
            read()
        except SmatError as error:
            said.append(type(error)(str(error)) if type(error) is UserError else SmatError(str(error)))
    if said:
        raise said[-1]
    return None


def coco(folder: Path) -> None:
    from tests.data.imagefiles import picture, write_folder
    from tests.data.sources.test_coco import ANNOTATIONS, CATEGORIES, FILES

    write_folder(folder / "images", {name: picture(i, 64, 48) for i, name in FILES.items()})
    body = {
        "info": {"year": 2017},
        "images": [{"id": i, "file_name": name, "width": 64, "height": 48} for i, name in FILES.items()],
        "annotations": ANNOTATIONS,
        "categories": [{"id": i, "name": name} for i, name in CATEGORIES],
    }
    (folder / "instances.json").write_text(json.dumps(body))


def read_coco(folder: Path) -> object:
    from smatcli.data.sources.coco import CocoSource

    return read_all(CocoSource(folder / "images", folder / "instances.json", min_boxes=1))


def quickdraw(folder: Path) -> None:
    from tests.data.sources.test_quickdraw import line

    (folder / "cat.ndjson").write_bytes(line() + line("cat", [[[0, 9], [3, 4]]]))
    np.save(folder / "ant.npy", np.zeros((2, 784), np.uint8))


def read_quickdraw(folder: Path) -> object:
    from smatcli.data.sources.quickdraw import QuickdrawSource

    return read_all(QuickdrawSource(folder))


def specs(folder: Path) -> None:
    from tests.data.mdfiles import bilevel, dag, flat, write_spec

    write_spec(folder / "flat", flat((1, 1, 1), [2, 1, 1]))
    write_spec(folder / "bilevel", bilevel((1, 1, 1), [1, 2, 1]))
    graph = {"r": ["a", "b"], "a": [], "b": []}
    graphs = {split: {f"{split}{n}": [f"{split}{c}" for c in below] for n, below in graph.items()} for split in ("TRAIN", "VALID", "TEST")}
    write_spec(folder / "dag", dag(graphs, [f"{split}{n}" for split in graphs for n in "ab"]))
    (folder / "splits.json").write_text(json.dumps({"train": ["a"], "valid": ["b"], "test": ["c", "d"]}))


def read_specs(folder: Path) -> object:
    from smatcli.data.metadataset.spec import read_spec
    from smatcli.data.stores.splits import match_splits, read_splits

    each([partial(read_spec, path) for path in sorted(folder.iterdir()) if path.is_dir()])
    return match_splits(["a", "b", "c", "d"], read_splits(folder / "splits.json", "toy"), "splits.json")


def archive(folder: Path) -> None:
    from tests.data.imagefiles import picture, write_zip

    files = {f"c{c}/{i}.{kind.lower()}": picture(c + i, kind=kind) for c in range(2) for i, kind in enumerate(("PNG", "JPEG", "GIF"))}
    write_zip(folder / "a.zip", files, zipfile.ZIP_DEFLATED)


def read_archive(folder: Path) -> object:
    from smatcli.data.sources.folder import FolderSource

    return read_all(FolderSource(folder / "a.zip"))


def images(folder: Path) -> None:
    from tests.data.imagefiles import picture

    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA", "PCX", "JPEG2000", "ICNS", "DDS", "SGI"):
        try:
            (folder / kind).write_bytes(picture(1, 16, 16, kind))
        except (OSError, KeyError, ValueError):  # a format that this build of Pillow cannot write
            continue


def read_images(folder: Path) -> object:
    from smatcli.data.images import Unreadable, decode_image

    for path in folder.iterdir():
        try:
            decode_image(path.read_bytes(), 8)
        except Unreadable as reason:
            assert len(str(reason)) < 400
    return None


def pmf(folder: Path) -> None:
    import shutil

    from tests.data.mdfiles import FIXTURE, flat, write_pmf
    from tests.data.sources.test_pmf_episodes import FILE

    assert FIXTURE.is_dir()
    write_pmf(folder / "toy", flat((1, 1, 1), [2, 1, 1]), {i: [np.zeros((4, 4, 3), np.uint8)] * n for i, n in enumerate((2, 1, 1))})
    shutil.copy(FILE, folder / "val.h5")


def read_pmf(folder: Path) -> object:
    import gc

    from smatcli.data.sources.pmf_episodes import PmfEpisodesSource
    from smatcli.data.sources.pmf_h5 import PmfH5Source

    gc.collect(1)  # HDF5 returns cached contents of a file that is still open

    return each([lambda: read_all(PmfH5Source(folder / "toy")), lambda: read_all(PmfEpisodesSource(folder / "val.h5"))])


def tuning_lists(folder: Path) -> None:
    from tests.data.listfiles import write_birds, write_task

    write_task(folder / "task")
    write_birds(folder / "birds")


def read_tuning_lists(folder: Path) -> object:
    from smatcli.data.sources.fgvc import FgvcSource
    from smatcli.data.sources.vtab import VtabSource

    return each([lambda: read_all(VtabSource(folder / "task")), lambda: read_all(FgvcSource(folder / "birds"))])
