"""From source images to stores: contents, splits, reported lines, errors, and recovery from interruptions."""

import errno
import functools
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smatcli.data.stores import writer as store_writer
from smatcli.data.stores.splits import split_by_chance
from smatcli.data.stores.store import Store
from smatcli.data.stores.verify import verify_store
from smatcli.engine.prepare import convert
from smatcli.engine.prepare.ordered import ordered_map
from smatcli.engine.prepare.preparation import PrepareError, folder_jobs
from smatcli.engine.prepare.preparation import prepare as prepare_stores
from smatcli.errors import SmatError, UserError
from smatcli.runs.reporter import SilentReporter
from tests.data.imagefiles import LFS, picture, tree, write_folder, write_zip

ROOT = Path(__file__).resolve().parents[3]
REALMINI = Path(os.environ.get("SMAT_REALMINI", ROOT.parent / "shared" / "realmini"))


@pytest.fixture
def prepare(tmp_path):
    """Prepare one ZIP of `files`; return the store, the result and the reported lines."""

    def run(files, name="pets", **options):
        reporter = SilentReporter()
        source = write_zip(tmp_path / f"{name}.zip", files)
        result = prepare_stores(folder_jobs([source]), tmp_path / "out", reporter=reporter, workers=2, **{"size": 8, **options})[0]
        return Store.open(result.path), result, reporter.lines

    return run


def only_line(caught):
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_store_holds_what_pillow_reads(prepare):
    files = {f"{c}/{i:02d}.jpg": picture(10 * n + i, 20, 13, "JPEG") for n, c in enumerate("xyz") for i in range(5)}
    store, result, _ = prepare(files, licence="CC0", size=8)
    expected = []
    for data in files.values():
        image = Image.open(io.BytesIO(data)).convert("RGB")
        expected.append(np.asarray(image.resize((8, 8), Image.Resampling.BICUBIC, box=(3.5, 0, 16.5, 13))))
    np.testing.assert_array_equal(store.images, np.stack(expected))
    assert store.class_names == ["x", "y", "z"]
    assert store.counts.tolist() == [5, 5, 5]
    assert store.image_size == 8
    assert (store.name, store.licence, store.source, store.facts["fit"]) == ("pets", "CC0", "folder pets.zip", "crop")
    assert (result.status, result.images, result.classes, result.bytes) == ("written", 15, (0, 0, 3), store.path.stat().st_size)


def test_folder_and_zip_give_the_same_store(tmp_path, prepare):
    store, _, _ = prepare(tree(3, 3))
    again = prepare_stores(folder_jobs([write_folder(tmp_path / "dir" / "pets", tree(3, 3, "top/"))]), tmp_path / "b", size=8)[0]
    assert Store.open(again.path).content_hash == store.content_hash


def test_workers_do_not_change_anything(tmp_path):
    source = write_zip(tmp_path / "pets.zip", tree(12, 20))
    first, second = (prepare_stores(folder_jobs([source]), tmp_path / str(n), size=8, workers=n)[0].path.read_bytes() for n in (1, 5))
    assert hashlib.sha256(first).digest() == hashlib.sha256(second).digest()


def test_split_by_chance(prepare):
    store, _, _ = prepare(tree(20, 2), split="50/25/25", seed=3)
    assert store.class_split.tolist() == split_by_chance(store.class_names, "pets", (50, 25, 25), 3).tolist()


def test_split_of_few_classes_is_said(prepare):
    assert "pets: 11 classes are too few for every part: 6 train, 0 valid, 5 test" in prepare(tree(11, 2))[2]
    store, _, lines = prepare(tree(4, 2), "small")
    assert store.class_split.tolist() == [2] * 4
    assert any("only be meta-tested" in line for line in lines)


def test_split_from_a_file(tmp_path, prepare):
    file = tmp_path / "s.json"
    file.write_text(json.dumps({"pets": {"train": ["c2"], "valid": ["c0"], "test": ["c1"]}}))
    assert prepare(tree(3, 2), splits_file=file)[0].class_split.tolist() == [1, 2, 0]
    file.write_text(json.dumps({"train": ["c2", "c9"], "test": ["c1", "c0"]}))
    with pytest.raises(PrepareError, match=r"no class 'c9' in the data; did you mean"):
        prepare(tree(3, 2), "other", splits_file=file)
    with pytest.raises(UserError, match="remove --split and --seed"):
        prepare(tree(3, 2), "other", splits_file=file, split="100/0/0")


BAD = {
    "c0/half.jpg": picture(5, 64, 64, "JPEG")[:1500],
    "c0/text.jpg": b"no image",
    "c1/empty.png": b"",
    "c1/lfs.png": LFS,
}


def test_unreadable_images_are_counted_and_named(prepare):
    store, result, lines = prepare({**tree(3, 3), **BAD})
    assert store.counts.tolist() == [3, 3, 3]
    assert store.facts["unreadable"] == 4 == result.unreadable_count
    reasons = {"half": "truncated", "text": "not an image", "empty": "empty file", "lfs": "git-lfs pointer, not the image"}
    named = dict(result.unreadable)
    assert {name: reasons[Path(name).stem] for name in BAD} == named
    assert {line for line in lines if "unreadable" in line} == {f"pets: unreadable: {k}: {v}" for k, v in named.items()}


def test_many_unreadable_images_are_listed_in_a_file(tmp_path, prepare):
    bad = {f"c0/bad{i:02d}.png": b"x" for i in range(25)}
    _, _, lines = prepare({**tree(3, 3), **bad})
    listed = (tmp_path / "out" / "pets.unreadable.txt").read_text().splitlines()
    assert listed == [f"{name}: not an image" for name in bad]
    assert any("5 more, all 25 are listed in" in line for line in lines)


def test_strict(tmp_path, prepare):
    with pytest.raises(
        PrepareError, match=r"4 unreadable \(--no-strict skips them\).*c0/half.jpg: truncated.*c1/lfs.png: git-lfs"
    ) as caught:
        prepare({**tree(3, 3), **BAD}, strict=True)
    assert caught.value.exit_code == 2
    assert os.listdir(tmp_path / "out") == []
    prepare({**tree(3, 3), **BAD})
    with pytest.raises(PrepareError, match="4 images of its source were unreadable"):
        prepare({**tree(3, 3), **BAD}, strict=True)


def test_a_class_with_one_image(tmp_path, prepare):
    files = {**tree(3, 3), "lonely/1.png": picture()}
    with pytest.raises(PrepareError) as caught:
        prepare(files)
    assert only_line(caught) == (
        "pets: class 'lonely' has one image: an episode needs support and query; add images, or drop such classes with --min-images 2"
    )
    store, _, lines = prepare(files, min_images=2)
    assert store.class_names == ["c0", "c1", "c2"]
    assert "pets: class 'lonely' dropped: one image, fewer than 2" in lines


def test_a_class_that_is_too_small_once_it_is_read(prepare):
    files = {**tree(2, 4), "bad/1.png": picture(), "bad/2.png": b"", "none/1.png": LFS, "none/2.png": b"text"}
    with pytest.raises(PrepareError, match=r"class 'bad' has one readable image \(2 files; bad/2.png: empty file\)"):
        prepare(files)
    store, result, lines = prepare(files, min_images=3)
    assert store.class_names == ["c0", "c1"]
    assert len(result.unreadable) == 0
    assert any("'none' dropped" in line for line in lines)
    with pytest.raises(PrepareError, match="no class has 9 images"):
        prepare(files, "few", min_images=9)


def test_dropped_classes_do_not_count_in_the_split(prepare):
    files = {**tree(20, 2), **{f"d{i}/{n}.png": b"" for i in range(10) for n in "ab"}}
    store, _, _ = prepare(files, min_images=2)
    assert np.bincount(store.class_split).tolist() == [10, 5, 5]


def test_a_second_run_keeps_the_store(prepare):
    store, _, _ = prepare(tree(3, 3))
    before = store.path.stat()
    _, result, lines = prepare(tree(3, 3))
    assert result.status == "already prepared"
    assert lines == [f"pets: already prepared, {store.path} is kept"]
    assert (result.images, result.classes) == (9, (0, 0, 3))
    assert store.path.stat().st_mtime_ns == before.st_mtime_ns


def test_the_journal_of_a_process_killed_at_the_very_end_is_removed(prepare):
    store, _, _ = prepare(tree(3, 3))
    journal = store.path.with_name(".pets.journal")
    journal.write_text('{"fingerprint": "of the store that is there"}\n')
    assert prepare(tree(3, 3))[1].status == "already prepared"
    assert [path.name for path in store.path.parent.iterdir()] == ["pets.h5"]


@pytest.mark.parametrize("change", [{"size": 9}, {"fit": "squash"}, {"split": "100/0/0"}, {"licence": "CC0"}, {"seed": 1}])
def test_other_settings_are_refused_unless_replaced(prepare, change):
    store, _, _ = prepare(tree(3, 3))
    before = store.path.read_bytes()
    with pytest.raises(PrepareError, match=r"exists, prepared from other files or settings; --replace") as caught:
        prepare(tree(3, 3), **change)
    assert caught.value.exit_code == 2
    assert store.path.read_bytes() == before
    assert prepare(tree(3, 3), replace=True, **change)[1].status == "written"


def test_other_files_and_damage_are_refused_unless_replaced(prepare):
    store, _, _ = prepare(tree(3, 3))
    with pytest.raises(PrepareError, match="prepared from other files"):
        prepare(tree(3, 4))
    os.truncate(store.path, 5000)
    with pytest.raises(PrepareError, match=r"--replace rebuilds it"):
        prepare(tree(3, 3))
    assert verify_store(prepare(tree(3, 3), replace=True)[0].path) is None


def test_one_bad_source_does_not_lose_the_others(tmp_path):
    good, bad, last = (tmp_path / f"{name}.zip" for name in ("good", "bad", "last"))
    write_zip(good, tree(3, 2))
    bad.write_bytes(b"PK\x03\x04" + bytes(30))
    write_zip(last, tree(2, 2))
    with pytest.raises(PrepareError) as caught:
        prepare_stores(folder_jobs([good, bad, last]), tmp_path / "out", size=8)
    assert [r.status for r in caught.value.results] == ["written", "failed", "written"]
    assert caught.value.exit_code == 2
    assert sorted(os.listdir(tmp_path / "out")) == ["good.h5", "last.h5"]


@pytest.mark.parametrize(
    ("sources", "options", "said"),
    [
        ([], {}, "at least one source"),
        (["none.zip"], {}, "does not exist; give a folder or a ZIP"),
        (["pets.zip", "b/pets.zip"], {}, "would both become the store 'pets'"),
        (["pets.zip", "b/pets.zip"], {"name": "x"}, "--name x with 2 sources"),
        (["pets.zip"], {"name": "a/b"}, "cannot be a dataset's name"),
        (["pets.zip"], {"size": 0}, "size 0"),
        (["pets.zip"], {"fit": "stretch"}, "crop or squash"),
        (["pets.zip"], {"split": "1/2/3"}, "adds up to 6"),
        (["pets.zip"], {"min_images": 1}, "at least 2"),
        (["pets.zip"], {"licence": "x" * 40_000}, "licence"),
    ],
)
def test_wrong_calls_are_refused_before_anything_is_written(tmp_path, sources, options, said):
    for name in ("pets.zip", "b/pets.zip"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_zip(tmp_path / name, tree(2, 2))
    with pytest.raises(UserError, match=said):
        prepare_stores(folder_jobs([tmp_path / s for s in sources]), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_no_space_left(tmp_path, prepare, monkeypatch):
    store, _, _ = prepare(tree(3, 3))
    before = store.path.read_bytes()

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_writer, "_append", full)
    with pytest.raises(SmatError, match=r"pets\.h5: no space left") as caught:
        prepare(tree(3, 3), size=9, replace=True)
    assert caught.value.exit_code == 2
    assert os.listdir(tmp_path / "out") == ["pets.h5"]
    assert store.path.read_bytes() == before


SLOW = """
import sys, time
from smatcli.engine.prepare import convert, preparation
from smatcli.runs.reporter import PlainReporter
decode = convert.decode_image
convert.decode_image = lambda *a: (time.sleep(0.01), decode(*a))[1]
convert.MARK_SECONDS = 0.2
from smatcli.cli.frame import catch_signals, guarded
catch_signals()
with guarded():
    settings = {"size": 8, "encoding": sys.argv[3], "min_images": 3}
    preparation.prepare(preparation.folder_jobs([sys.argv[1]]), sys.argv[2], workers=2, reporter=PlainReporter(every=0.1), **settings)
"""


def started(*arguments):
    # A shell's background job inherits an ignored SIGINT, and so would its tests.
    listens = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    command = [sys.executable, "-c", SLOW, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=listens)


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def content(path):
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize(
    ("kind", "encoding"), [(signal.SIGTERM, "jpeg"), (signal.SIGINT, "raw"), (signal.SIGKILL, "raw"), (signal.SIGKILL, "jpeg")]
)
def test_killed_in_the_middle_and_continued(tmp_path, kind, encoding):
    files = {**tree(20, 10), "c3/bad.png": b"x", **{f"bad{n}/{i}.png": b"x" for n in range(5) for i in range(4)}}
    source, out = write_zip(tmp_path / "pets.zip", files), tmp_path / "out"
    process = started(source, out, encoding)
    wait_until(lambda: content(out / ".pets.journal").count('"mark"') >= 2 or process.poll() is not None)
    process.send_signal(kind)
    _, said = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[kind]
    assert not (out / "pets.h5").exists()
    assert (out / ".pets.draft.h5").exists()
    assert kind == signal.SIGKILL or "the same command continues" in said.splitlines()[-1]

    reporter = SilentReporter()
    options = {"size": 8, "encoding": encoding, "min_images": 3}
    result = prepare_stores(folder_jobs([source]), out, reporter=reporter, **options)[0]
    assert any(line.startswith("pets: continuing at image ") for line in reporter.lines)
    whole = prepare_stores(folder_jobs([source]), tmp_path / "whole", **options)[0]
    assert result.path.read_bytes() == whole.path.read_bytes()
    assert verify_store(result.path) is None
    assert result.unreadable == whole.unreadable
    assert len(whole.unreadable) == 21
    assert sorted(os.listdir(out)) == ["pets.h5", "pets.unreadable.txt"]


def test_the_order_of_a_parallel_map_and_its_errors():
    def work(item):
        time.sleep(0.001 * (item % 7))
        if item == 60:
            raise ValueError("sixty")
        return item * item

    found: list[tuple[int, int]] = []
    with pytest.raises(ValueError, match="sixty"):
        found.extend(pair for pair in ordered_map(work, range(100), 4, chunk=3))
    assert found == [(i, i * i) for i in range(60)]
    for workers in (1, 4):
        assert list(ordered_map(work, range(60), workers, chunk=7)) == [(i, i * i) for i in range(60)]


def test_memory_stays_small(tmp_path, monkeypatch):
    """However many images there are, only a window of them is decoded ahead of the writer."""
    source = write_zip(tmp_path / "pets.zip", tree(4, 200))
    decoded, most = [0], [0]
    original, append = convert.decode_image, store_writer._append  # type: ignore[attr-defined]

    def counting(*args):
        decoded[0] += 1
        return original(*args)

    def slowly(file, digest, images, size, where):
        def watched():
            for image in images:
                most[0] = max(most[0], decoded[0] - written[0])
                written[0] += 1
                yield image

        return append(file, digest, watched(), size, where)

    written = [0]
    monkeypatch.setattr(convert, "decode_image", counting)
    monkeypatch.setattr(store_writer, "_append", slowly)
    prepare_stores(folder_jobs([source]), tmp_path / "out", size=8, workers=2)
    assert written[0] == 800
    assert most[0] <= 2 * 3 * 16 + 16 + 2


@pytest.mark.skipif(not REALMINI.is_dir(), reason=f"no {REALMINI} (set SMAT_REALMINI)")
def test_realmini(tmp_path):
    """Compare counts with those in its README."""
    sources = [REALMINI / f"{name}.zip" for name in ("pets", "coco_crops")]
    results = prepare_stores(folder_jobs(sources), tmp_path, size=32)
    assert [(sum(r.classes), r.images, len(r.unreadable)) for r in results] == [(37, 370, 0), (28, 485, 0)]
    assert all(verify_store(r.path) is None for r in results)
