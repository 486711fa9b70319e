"""The source `quickdraw`: random access to bitmaps and drawings, and rendering."""

import json
import os
import threading
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from smatcli.data.images import Unreadable
from smatcli.data.sources import drawings
from smatcli.data.sources.drawings import LineIndex, render, render_line
from smatcli.data.sources.quickdraw import QuickdrawSource
from smatcli.errors import UserError
from tests.data.imagefiles import LFS, write_folder

RNG = np.random.default_rng(0)
BITMAPS = RNG.integers(0, 256, (7, 784), dtype=np.uint8)


def line(word="cat", drawing=None, recognized=True):
    """A line of the simplified files, with the fields of the published ones."""
    strokes = [[[0, 120, 255], [10, 200, 0]], [[30, 40], [255, 250]]] if drawing is None else drawing
    about = {"word": word, "countrycode": "US", "timestamp": "2017-03-01 21:01:07.24928 UTC", "recognized": recognized}
    return json.dumps({**about, "key_id": "5152802093400064", "drawing": strokes}).encode() + b"\n"


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
    return path


def test_bitmaps_as_they_are(tmp_path):
    save(tmp_path / "The Eiffel Tower.npy", BITMAPS)
    save(tmp_path / "ant.npy", BITMAPS[:3])
    source = QuickdrawSource(tmp_path)
    assert [(c.name, len(c.images)) for c in source.classes()] == [("The Eiffel Tower", 7), ("ant", 3)]
    for row, key in enumerate(source.classes()[0].images):
        image = source.read(key)
        assert image.dtype == np.uint8
        assert image.shape == (28, 28, 3)
        np.testing.assert_array_equal(image, np.stack([BITMAPS[row].reshape(28, 28)] * 3, -1))
    assert source.remarks == []
    assert (source.kind, source.name) == ("quickdraw", "quickdraw")
    source.close()


def test_names_as_browsers_save_them_and_bits(tmp_path):
    save(tmp_path / "full%2Fnumpy_bitmap%2Fsea turtle.npy", BITMAPS > 128)
    save(tmp_path / "full_numpy_bitmap_ant.npy", BITMAPS)
    save(tmp_path / "full/numpy_bitmap/bee.npy", BITMAPS.reshape(7, 28, 28))
    source = QuickdrawSource(tmp_path)
    assert [c.name for c in source.classes()] == ["ant", "bee", "sea turtle"]
    np.testing.assert_array_equal(source.read("sea turtle#4")[..., 1], np.where(BITMAPS[4] > 128, 255, 0).reshape(28, 28))
    np.testing.assert_array_equal(source.read("bee#6"), source.read("ant#6"))


def test_nothing_is_loaded(tmp_path):
    """A sparse file of 2 million bitmaps takes no memory, and its last image is read directly."""
    path = save(tmp_path / "ant.npy", np.zeros((0, 784), np.uint8))
    count = 2_000_000
    head = path.read_bytes().replace(b"(0, 784), }       ", b"(2000000, 784), } ")
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + count * 784)
    with path.open("r+b") as file:
        file.seek(-784, os.SEEK_END)
        file.write(bytes([9]) * 784)
    tracemalloc.start()
    source = QuickdrawSource(tmp_path)
    keys = source.classes()[0].images
    assert len(keys) == count
    assert keys[-1] == "ant#1999999"
    assert (source.read(keys[-1]) == 9).all()
    assert next(iter(keys[5:])) == "ant#5"
    assert len(keys[5::2]) == (count - 5 + 1) // 2
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a .npy file"),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': nope}", "not a .npy file"),
        (LFS, "git-lfs pointer"),
        (np.zeros((3, 784), np.float32), r"has float32 \[3, 784\], not bitmaps"),
        (np.zeros((3, 783), np.uint8), r"has uint8 \[3, 783\]"),
        (np.zeros(784, np.uint8), r"has uint8 \[784\]"),
        (np.asfortranarray(np.zeros((3, 784), np.uint8)), "not bitmaps"),
        (np.array([{}, {}], dtype=object), "has object"),
    ],
)
def test_files_of_another_kind(tmp_path, content, said):
    if isinstance(content, bytes):
        write_folder(tmp_path, {"ant.npy": content})
    else:
        save(tmp_path / "ant.npy", content)
    with pytest.raises(UserError, match=rf"ant\.npy: .*{said}"):
        QuickdrawSource(tmp_path)


def test_truncated_bitmaps(tmp_path):
    path = save(tmp_path / "ant.npy", BITMAPS)
    source = QuickdrawSource(tmp_path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"ant\.npy: truncated: 5,606 bytes, 7 bitmaps end at 5,616"):
        QuickdrawSource(tmp_path)
    with pytest.raises(UserError, match=r"bitmap 6 at byte 4,832 is missing"):
        source.read("ant#6")


def test_drawings_are_found_by_line(tmp_path):
    drawn = [[[[0, 255], [0, 10 * i]]] for i in range(200)]
    write_folder(tmp_path, {"cat.ndjson": b"".join(line(drawing=d) for d in drawn), "dog.ndjson": line("dog", recognized=False)[:-1]})
    source = QuickdrawSource(tmp_path)
    assert [(c.name, len(c.images)) for c in source.classes()] == [("cat", 200), ("dog", 1)]
    for i in (0, 63, 64, 65, 199, 3):
        np.testing.assert_array_equal(source.read(f"cat#{i}"), render(drawn[i]))
    assert source.read("dog#0").shape == (256, 256, 3)
    source.close()


@pytest.fixture(scope="module")
def one_file(tmp_path_factory):
    return tmp_path_factory.mktemp("lines") / "x.ndjson"


@settings(max_examples=40, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(st.lists(st.integers(0, 60), min_size=1, max_size=40), st.booleans(), st.integers(1, 100), st.integers(1, 8))
def test_line_index(one_file, lengths, last, chunk, block_size):
    """The index is equal to splitting the file, for any chunk and block size, with and without a final newline."""
    content = b"\n".join([b"{" + bytes([65 + i % 26]) * length for i, length in enumerate(lengths)]) + (b"\n" if last else b"")
    one_file.write_bytes(content)
    expected = content.removesuffix(b"\n").split(b"\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawings, "_CHUNK", chunk)
        patch.setattr(drawings, "_BLOCK", block_size)
        index = LineIndex(one_file)
        assert len(index) == len(expected)
        with one_file.open("rb") as file:
            for number, text in enumerate(expected):
                block = index.block(number)
                assert index.read(file, block)[number - index.first(block)] == text
        with pytest.raises(IndexError):
            index.block(len(expected))


def test_many_threads_read_the_same_files(tmp_path):
    for word in ("ant", "bee"):
        save(tmp_path / f"{word}.npy", BITMAPS)
    drawn = [[[[0, i], [0, 200]]] for i in range(1, 100)]
    write_folder(tmp_path, {"cat.ndjson": b"".join(line(drawing=d) for d in drawn)})
    source = QuickdrawSource(tmp_path)
    assert "2 classes are bitmaps, 1 are drawings" in source.remarks[0]
    expected = {f"{word}#{i}": np.stack([BITMAPS[i].reshape(28, 28)] * 3, -1) for word in ("ant", "bee") for i in range(7)}
    expected |= {f"cat#{i}": render(drawn[i]) for i in range(0, 99, 9)}
    wrong = []

    def work(seed):
        for key in np.random.default_rng(seed).permutation(sorted(expected) * 5):
            if not np.array_equal(source.read(str(key)), expected[str(key)]):
                wrong.append(key)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(source._handles._all) <= 4
    source.close()


def coverage(strokes, side=256):
    """Closed form of the rendering: distance of each pixel centre from the nearest segment, with a one-pixel transition at the edge."""
    every = np.concatenate([np.array(s, float) for s in strokes], 1)
    low, high = every.min(1), every.max(1)
    pen = 16 / 304 * side
    scale = (side - 3 * pen) / (high - low).max()
    y, x = np.mgrid[0:side, 0:side] + 0.5
    nearest = np.full((side, side), np.inf)
    for stroke in strokes:
        points = ((np.array(stroke, float) - (low + high)[:, None] / 2) * scale + side / 2).T
        for (x0, y0), (x1, y1) in pairwise(points):
            length = (x1 - x0) ** 2 + (y1 - y0) ** 2
            t = np.clip(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length, 0, 1)
            nearest = np.minimum(nearest, np.hypot(x - x0 - t * (x1 - x0), y - y0 - t * (y1 - y0)))
    return 255 * (1 - np.clip(pen / 2 - nearest + 0.5, 0, 1))


def test_rendering_agrees_with_the_closed_form():
    for seed in range(6):
        rng = np.random.default_rng(seed)
        strokes = [rng.integers(0, 256, (2, n)).tolist() for n in (5, 2, 3)]
        difference = np.abs(render(strokes)[..., 0].astype(float) - coverage(strokes))
        assert difference.mean() < 2.5
        assert (difference > 128).mean() < 5e-3
        for step, axis in ((1, 0), (-1, 0), (1, 1), (-1, 1)):  # not a pixel beside it
            shifted = np.roll(render(strokes)[..., 0], step, axis).astype(float)
            assert np.abs(shifted - coverage(strokes)).mean() > difference.mean()


def test_rendering_is_black_on_white_antialiased_and_centred():
    image = render([[[0, 255], [0, 255]]])
    assert image.dtype == np.uint8
    assert image.shape == (256, 256, 3)
    assert image.min() == 0
    assert image.max() == 255
    assert len(np.unique(image)) > 3
    assert image.mean() > 200
    np.testing.assert_array_equal(image[..., 0], image[..., 2])
    rows, columns = np.nonzero(image[..., 0] < 128)
    margin = 16 / 304 * 256
    for ends in ((rows.min(), 255 - rows.max()), (columns.min(), 255 - columns.max())):
        assert abs(ends[0] - ends[1]) <= 1
        assert abs(ends[0] - margin) <= 2


def test_raw_and_simplified_drawings_look_alike():
    """Raw drawings are in screen pixels, with times as a third row."""
    simple = [[[0, 255, 30], [100, 20, 0]], [[4, 60], [80, 90]]]
    raw = [[[3 * v + 411.5 for v in xs], [3 * v - 20.25 for v in ys], list(range(len(xs)))] for xs, ys in simple]
    assert np.abs(render(simple).astype(int) - render(raw)).max() <= 64
    assert np.abs(render(simple).astype(int) - render(raw)).mean() < 0.2


def test_a_dot_is_a_disc():
    image = render([[[17], [40]]])[..., 0]
    assert abs((255 - image.astype(float)).sum() / 255 / (np.pi * (8 / 304 * 256) ** 2) - 1) < 0.1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "empty line"),
        (b'{"drawing": [[[0, 1], [0', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "no drawing"),
        (b'{"word": "cat"}', "no drawing"),
        (b'{"drawing": []}', "without strokes"),
        (b'{"drawing": [[[], []]]}', "without points"),
        (b'{"drawing": [[[0, 1]]]}', "a stroke that is not"),
        (b'{"drawing": [[[0, 1], [2]]]}', "a stroke that is not"),
        (b'{"drawing": [[["a"], ["b"]]]}', "a stroke that is not"),
        (b'{"drawing": [[[NaN], [0]]]}', "invalid coordinates"),
        (b'{"drawing": [[[1e300], [0]]]}', "invalid coordinates"),
    ],
)
def test_lines_that_are_not_drawings(text, said):
    with pytest.raises(Unreadable, match=said):
        render_line(text)


def test_a_bad_line_does_not_affect_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(drawings, "_CHUNK", 1000)
    monkeypatch.setattr(drawings, "_MAX_BLOCK", 5000)
    write_folder(tmp_path, {"cat.ndjson": line() * 20 + b'{"x": "' + b"y" * 9000 + b'"}\n' + b"{nope}\n" + line() * 20})
    source = QuickdrawSource(tmp_path / "cat.ndjson")
    keys = source.classes()[0].images
    assert len(keys) == 42
    assert source.read(keys[0]).shape == source.read(keys[41]).shape == (256, 256, 3)
    with pytest.raises(Unreadable, match="not JSON"):
        source.read(keys[21])
    with pytest.raises(Unreadable, match="in a line of more than"):
        source.read(keys[20])


def test_no_source(tmp_path):
    with pytest.raises(UserError, match="folder does not exist"):
        QuickdrawSource(tmp_path / "x")
    with pytest.raises(UserError, match=r"has no <class>\.npy"):
        QuickdrawSource(write_folder(tmp_path / "a", {"cat.bin": b"x"}))
    with pytest.raises(UserError, match=r"cat\.ndjson: is not \.ndjson"):
        QuickdrawSource(write_folder(tmp_path / "b", {"cat.ndjson": b"word,drawing\n"}))
    with pytest.raises(UserError, match=r"cat\.ndjson: is a git-lfs pointer"):
        QuickdrawSource(write_folder(tmp_path / "c", {"cat.ndjson": LFS}))
    save(tmp_path / "d" / "cat.npy", BITMAPS)
    with pytest.raises(UserError, match=r"the class 'cat' is in cat\.ndjson and in cat\.npy"):
        QuickdrawSource(write_folder(tmp_path / "d", {"cat.ndjson": line()}))
