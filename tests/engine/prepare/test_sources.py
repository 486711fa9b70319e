"""`prepare` with all kinds of sources: encodings, splits by image, ontologies, lazy keys, two processes, a full disk."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smatcli.data.images import Unreadable
from smatcli.data.sources import SourceClass
from smatcli.data.stores.ontology import Node, Ontology
from smatcli.data.stores.store import Store
from smatcli.data.stores.verify import verify_store
from smatcli.engine.prepare import convert
from smatcli.engine.prepare.journal import Journal
from smatcli.engine.prepare.preparation import PrepareError, PrepareJob, folder_jobs, prepare
from smatcli.errors import SmatError, UserError
from smatcli.runs.reporter import SilentReporter
from tests.data.imagefiles import tree, write_zip

ROOT = Path(__file__).resolve().parents[3]


class Numbers:
    """Source of `counts` images drawn from their number; `bad` numbers are unreadable, `fatal` ones raise an error that ends `prepare`."""

    kind, name, remarks, fingerprint = "numbers", "digits", ["drawn, not photographed"], "1"

    def __init__(self, counts, ontology=None, bad=(), fatal=(), splits=None, image_splits=None, side=6):
        self.counts, self.ontology, self.bad, self.fatal, self.side = counts, ontology, bad, fatal, side
        self.splits, self.image_splits, self.closed, self.seen = splits, image_splits, 0, []

    def classes(self):
        starts = np.cumsum([0, *self.counts[:-1]]).tolist()
        return [
            SourceClass(
                f"c{i}",
                range(start, start + count),
                self.splits[i] if self.splits else None,
                self.image_splits[start : start + count] if self.image_splits else None,
            )
            for i, (start, count) in enumerate(zip(starts, self.counts, strict=True))
        ]

    def read(self, image):
        self.seen.append(image)
        if image in self.fatal:
            raise UserError(f"file {image}: wrong CRC at byte {image * 7}; fetch it again")
        if image in self.bad:
            raise Unreadable("scrawled")
        return drawn(image, self.side)

    def describe(self, image):
        return f"numbers.bin at byte {image * 7}"

    def close(self):
        self.closed += 1


def drawn(number, side=6):
    return np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)


def run(tmp_path, source, **options):
    reporter = SilentReporter()
    result = prepare(
        [PrepareJob(None, None, lambda: source, "numbers here")], tmp_path, workers=2, reporter=reporter, **{"size": 6, **options}
    )[0]
    return Store.open(result.path), result, reporter.lines


def test_a_source_names_itself_and_its_splits(tmp_path):
    source = Numbers([3, 4, 2], splits=["test", "train", "valid"], bad=[1, 8, 7][:1])
    store, result, lines = run(tmp_path, source)
    assert (store.name, store.source, result.path.name) == ("digits", "numbers digits", "digits.h5")
    assert source.closed == 1
    assert store.counts.tolist() == [2, 4, 2]
    assert store.class_split.tolist() == [2, 0, 1]
    np.testing.assert_array_equal(store.images, np.stack([drawn(n) for n in (0, 2, 3, 4, 5, 6, 7, 8)]))
    assert result.unreadable == [("numbers.bin at byte 7", "scrawled")]
    assert lines[:2] == ["digits: drawn, not photographed", "digits: unreadable: numbers.bin at byte 7: scrawled"]


def test_splits_that_are_given_twice_or_by_halves_are_refused(tmp_path):
    with pytest.raises(PrepareError, match=r"its files define the split of every class; remove --split"):
        run(tmp_path, Numbers([3, 3], splits=["test", "train"]), split="100/0/0")
    with pytest.raises(PrepareError, match="no split for class 'c1'"):
        run(tmp_path, Numbers([3, 3], splits=["test", None]))
    with pytest.raises(PrepareError, match="split of every image"):
        run(tmp_path, Numbers([3], image_splits=["train"] * 3), split="100/0/0")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_a_split_by_image(tmp_path, encoding):
    names = ["train", "valid", "test", "test", "train", "test"]
    store, result, _ = run(tmp_path, Numbers([4, 2], image_splits=names, bad=[2]), encoding=encoding)
    assert store.image_split is not None
    assert store.image_split.tolist() == [0, 1, 2, 0, 2]
    assert store.class_split.tolist() == [0, 0]
    assert store.image_rows("test").tolist() == [2, 4]
    assert result.classes == (2, 0, 0)
    with pytest.raises(PrepareError, match="one split for each"):
        run(tmp_path / "b", Numbers([4, 2], image_splits=names[:5]))


def test_an_ontology_follows_the_classes_that_are_kept(tmp_path):
    whole = Ontology("bilevel", {"train": (Node("x", "", (0, 1, 2)), Node("y", "", (3,))), "test": (Node("z", "", (4,)),)})
    splits = ["train"] * 4 + ["test"]
    store, _, _ = run(tmp_path, Numbers([3] * 5, whole, splits=splits))
    assert store.ontology == whole
    store, _, lines = run(tmp_path / "b", Numbers([3, 1, 3, 3, 3], whole, splits=splits, bad=[4, 5]), min_images=2)
    assert store.class_names == ["c0", "c3", "c4"]
    assert store.ontology is not None
    assert store.ontology.nodes == {"train": (Node("x", "", (0,)), Node("y", "", (1,))), "test": (Node("z", "", (2,)),)}
    assert sum("dropped" in line for line in lines) == 2
    file = tmp_path / "s.json"
    file.write_text('{"train": ["c0", "c1", "c2"], "valid": ["c3"], "test": ["c4"]}')
    store, _, lines = run(tmp_path / "c", Numbers([3] * 5, whole, splits=splits), splits_file=file)
    assert store.ontology is None
    assert any("ontology skipped" in line for line in lines)


def test_an_error_of_the_source_ends_it_and_leaves_nothing(tmp_path):
    source = Numbers([3, 3], fatal=[4])
    with pytest.raises(PrepareError, match="wrong CRC at byte 28") as caught:
        run(tmp_path, source)
    assert caught.value.exit_code == 2
    assert os.listdir(tmp_path) == []
    assert source.closed == 1


def test_at_most_so_many_images_a_class(tmp_path):
    source = Numbers([50, 3, 40])
    store, _, _ = run(tmp_path, source, max_per_class=10)
    assert store.counts.tolist() == [10, 3, 10]
    assert len(source.seen) == 23
    first = sorted(n for n in source.seen if n < 50)
    assert first != list(range(10))
    assert np.array_equal(store.images[:10], np.stack([drawn(n) for n in first]))
    again, other = Numbers([50, 3, 40]), Numbers([50, 3, 40])
    assert np.array_equal(run(tmp_path / "b", again, max_per_class=10)[0].images, store.images)
    run(tmp_path / "c", other, max_per_class=10, seed=1)
    assert sorted(again.seen) == sorted(source.seen) != sorted(other.seen)
    with pytest.raises(UserError, match="max-per-class 3: a class needs 5"):
        run(tmp_path / "d", Numbers([50]), max_per_class=3, min_images=5)


def test_keys_are_looked_up_one_by_one(tmp_path, monkeypatch):
    """The keys of a class with a billion images are never put into a list."""

    class Endless(Numbers):
        def read(self, image):
            if image > 200:
                raise KeyboardInterrupt
            return drawn(image)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Endless([10**9, 10**9]))


def test_jpeg_keeps_small_files_and_encodes_large_ones(tmp_path):
    rng = np.random.default_rng(0)
    smooth = np.asarray(Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((300, 200), Image.Resampling.BICUBIC))
    for name in ("small", "large"):
        (tmp_path / "src" / name).mkdir(parents=True)
    for i in range(3):
        Image.fromarray(smooth[::6, ::6]).save(tmp_path / f"src/small/{i}.jpg", quality=60 + i)
        Image.fromarray(smooth).save(tmp_path / f"src/large/{i}.png")
    raw, jpeg = (Store.open(prepare(folder_jobs([tmp_path / "src"]), tmp_path / e, size=48, encoding=e)[0].path) for e in ("raw", "jpeg"))
    assert raw.class_names == jpeg.class_names == ["large", "small"]
    assert raw.content_hash != jpeg.content_hash
    np.testing.assert_array_equal(jpeg.images[3:], raw.images[3:])  # the files themselves
    difference = jpeg.images[:3].astype(float) - raw.images[:3]
    assert 0 < np.abs(difference).mean() < 2
    assert np.abs(difference).max() < 16
    sizes = [len(jpeg.images.file(row)) for row in range(6)]  # type: ignore[union-attr]
    assert sizes[3:] == [(tmp_path / f"src/small/{i}.jpg").stat().st_size for i in range(3)]
    assert all(size < (tmp_path / "src/large/0.png").stat().st_size for size in sizes[:3])


def test_small_drawings_lose_nothing(tmp_path):
    store, _, _ = run(tmp_path, Numbers([3, 3], side=4), size=8, encoding="jpeg")
    raw, _, _ = run(tmp_path / "raw", Numbers([3, 3], side=4), size=8)
    np.testing.assert_array_equal(store.images[:], raw.images[:])


def test_two_at_once_into_one_store(tmp_path):
    inside, leave = threading.Event(), threading.Event()

    class Slow(Numbers):
        def read(self, image):
            inside.set()
            assert leave.wait(60)
            return drawn(image)

    results = []
    first = threading.Thread(target=lambda: results.append(run(tmp_path, Slow([3, 3]))))
    first.start()
    try:
        assert inside.wait(60)
        with pytest.raises(
            PrepareError, match=rf"digits\.h5: another `smat data prepare` is writing it \(process {os.getpid()} on"
        ) as caught:
            run(tmp_path, Numbers([3, 3]))
        assert caught.value.exit_code == 2
    finally:
        leave.set()
        first.join(60)
    assert results[0][1].status == "written"
    assert os.listdir(tmp_path) == ["digits.h5"]
    assert run(tmp_path, Numbers([3, 3]))[1].status == "already prepared"


def test_a_store_that_another_process_finished_meanwhile_is_kept(tmp_path, monkeypatch):
    def finishing(target):
        monkeypatch.undo()
        run(tmp_path, Numbers([3, 3]))
        return Journal(target)

    monkeypatch.setattr("smatcli.engine.prepare.preparation.Journal", finishing)
    assert run(tmp_path, Numbers([3, 3]))[1].status == "already prepared"
    assert os.listdir(tmp_path) == ["digits.h5"]


def interrupted(tmp_path, monkeypatch, **options):
    """Leave an unfinished draft, as a killed process does."""

    class Killed(Numbers):
        def read(self, image):
            if image == 7:
                raise MemoryError
            return super().read(image)

    monkeypatch.setattr(convert, "MARK_SECONDS", -1.0)
    with pytest.raises(MemoryError):
        prepare([PrepareJob(None, None, lambda: Killed([5, 5, 5]))], tmp_path, size=6, workers=1, **options)
    monkeypatch.undo()
    assert sorted(name for name in os.listdir(tmp_path) if "rows" not in name) == [".digits.draft.h5", ".digits.journal"]
    return tmp_path / ".digits.draft.h5"


@pytest.mark.parametrize("damage", ["nothing", "cut journal", "cut draft", "changed draft", "no journal", "other settings", "other files"])
@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_an_unfinished_attempt_is_continued_only_if_it_is_what_it_says(tmp_path, monkeypatch, damage, encoding):
    draft = interrupted(tmp_path, monkeypatch, encoding=encoding)
    journal, source, options = tmp_path / ".digits.journal", Numbers([5, 5, 5]), {"encoding": encoding}
    if damage == "cut journal":
        journal.write_bytes(journal.read_bytes()[:-5])
    elif damage == "cut draft":
        os.truncate(draft, 4100)
    elif damage == "changed draft":
        with draft.open("r+b") as file:
            file.seek(4200)
            file.write(b"changed")
    elif damage == "no journal":
        journal.unlink()
    elif damage == "other settings":
        options["licence"] = "CC0"
    elif damage == "other files":
        source.fingerprint = "2"
    store, _, lines = run(tmp_path, source, **options)
    whole, _, _ = run(tmp_path / "whole", Numbers([5, 5, 5]), **options)
    assert store.content_hash == whole.content_hash
    assert verify_store(store.path) is None
    assert sorted(os.listdir(tmp_path)) == ["digits.h5", "whole"]
    # the entry before the last was written when class 1 had one image, which is too few to be in the draft: it begins again
    continued = {"nothing": 8, "cut journal": 10}.get(damage, 15)
    assert len(source.seen) == continued
    said = "continuing at image" if continued < 15 else "discarding an unfinished attempt"
    assert any(said in line for line in lines)


FULL = """
import resource, sys
from smatcli.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
main()
"""


@pytest.mark.parametrize("space", [4000, 20_000, 60_000])
def test_a_disk_that_is_full(tmp_path, space):
    source, out = write_zip(tmp_path / "pets.zip", tree(4, 100)), tmp_path / "out"
    store = Store.open(prepare(folder_jobs([source]), out, size=9)[0].path)
    before = store.path.read_bytes()
    command = [sys.executable, "-c", FULL, space, "data", "prepare", "folder", source, "-o", out, "--size", "8", "--replace", "-j", 1]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"smat: {store.path}: the file is too large for the disk")
    assert os.listdir(out) == ["pets.h5"]
    assert store.path.read_bytes() == before


def test_a_folder_that_cannot_be_written(tmp_path):
    source = write_zip(tmp_path / "pets.zip", tree(2, 2))
    (tmp_path / "out").write_text("a file")
    with pytest.raises(SmatError, match="is a file, not a folder"):
        prepare(folder_jobs([source]), tmp_path / "out", size=8)


def test_names_of_stores(tmp_path):
    twice = [PrepareJob(None, None, lambda: Numbers([2, 2]), f"folder {n}") for n in "ab"]
    with pytest.raises(PrepareError, match="folder b: the store 'digits' was already written from another source"):
        prepare(twice, tmp_path / "a", size=6)
    with pytest.raises(UserError, match="--name x with 2 sources"):
        prepare(twice, tmp_path, name="x")
    with pytest.raises(UserError, match="cannot be a dataset's name"):
        prepare(twice[:1], tmp_path, name=".x")
    long = "n" * 200
    assert prepare(twice[:1], tmp_path / "b", name=long, size=6)[0].path.name == f"{long}.h5"
