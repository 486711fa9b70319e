"""JSON streamed by element: equal to parsing the whole file, for any chunk size; errors have a position."""

import io
import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smatcli.data.sources import jsonstream
from smatcli.data.sources.jsonstream import array_elements
from smatcli.errors import UserError
from tests.data.imagefiles import LFS

SCALARS = (
    st.none() | st.booleans() | st.integers(1 - 2**63, 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12)
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4))


class Dribble(io.BytesIO):
    """Return a few bytes per read, whatever size is requested."""

    step = 1

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(self.step, -1 if size is None else size)) if size else b""


def streamed(text, keys, step):
    source = Dribble(text.encode())
    source.step = step
    return list(jsonstream._ElementStream(Path("x.json"), source, keys).elements())


@settings(max_examples=40, deadline=None)
@given(st.lists(VALUES, max_size=6), st.lists(VALUES, max_size=3), VALUES, st.integers(1, 40), st.sampled_from([None, 2]), st.booleans())
def test_equals_the_whole_file(first, second, other, step, indent, escaped):
    text = json.dumps({"info": other, "a": first, "skipped": [other, 1.5], "b": second, "year": 2017}, indent=indent, ensure_ascii=escaped)
    expected = [("a", i, value) for i, value in enumerate(first)] + [("b", i, value) for i, value in enumerate(second)]
    assert streamed(text, ("a", "b"), step) == expected


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_damage_raises_nothing_else(data):
    text = json.dumps({"a": data.draw(st.lists(VALUES, max_size=4)), "n": 1}, ensure_ascii=False)
    cut = data.draw(st.integers(0, len(text) - 1))
    with pytest.raises(UserError, match=r"x\.json: .*byte"):
        streamed(text[:cut], ("a",), data.draw(st.integers(1, 30)))
    at = data.draw(st.integers(0, len(text) - 1))
    spoilt = text[:at] + data.draw(st.characters(codec="utf-8")) + text[at + 1 :]
    try:
        found = [value for _, _, value in streamed(spoilt, ("a",), 7)]
    except UserError:
        return
    assert found == json.loads(spoilt)["a"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"[1, 2]", r"expected an object \(at the beginning"),
        (b'{"a": [1, 2', r"truncated \(at a\[2\], near byte 11\)"),
        (b'{"a": [1, 2 3]}', r"not JSON, .* \(at a\[2\], near byte 15\)"),
        (b'{"a": {"b": 1}}', "'a' is not a list"),
        (b'{"b": []}', "has no list 'a'"),
        (b'{"a": []} {}', "trailing garbage"),
        (b'{"a": [nope]}', r"not JSON, invalid string in json text \(at a\[0\]"),
        (b'{"a": ["' + b"x" * 300 + b"\n\"" + b" " * 300 + b"]}", "invalid character inside string"),
        (b'{"a": [' + b"[" * 100_000, "nested too deeply"),
        (b'{"a": [' + b"1" * 5000 + b"]}", "not JSON, integer overflow"),
        (b'{"a": ["\xff"]}', "not UTF-8"),
        (LFS, "git-lfs pointer"),
    ],
)  # fmt: skip
def test_damaged_files(tmp_path, content, said):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"x\.json.*{said}"):
        list(array_elements(path, ("a",)))


def test_missing_and_marked_files(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        list(array_elements(tmp_path / "x.json", ("a",)))
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"a": [{"b": "\xc3\xa9"}]}')
    assert list(array_elements(tmp_path / "x.json", ("a",))) == [("a", 0, {"b": "é"})]


def test_an_endless_element_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonstream, "MAX_ELEMENT", 10_000)
    monkeypatch.setattr(jsonstream, "CHUNK", 1_000)
    (tmp_path / "x.json").write_text('{"a": ["' + "x" * 100_000)
    with pytest.raises(UserError, match="more than 10,000 bytes"):
        list(array_elements(tmp_path / "x.json", ("a",)))


def test_memory_does_not_depend_on_the_file_size(tmp_path):
    path = tmp_path / "x.json"
    polygon = [[i + 0.25 for i in range(500)]]
    with path.open("w") as file:
        file.write('{"a": [')
        for i in range(2000):
            file.write(json.dumps({"id": i, "counts": "x" * 3000, "segmentation": polygon if i % 20 == 0 else []}) + ",")
        file.write('{"id": -1}]}')
    assert path.stat().st_size > 6e6
    tracemalloc.start()
    total = sum(value["id"] for _, _, value in array_elements(path, ("a",)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 2000 * 1999 // 2 - 1
    assert peak < 4e6
