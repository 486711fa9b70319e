"""The source `folder`: classes, skipped files, and invalid input."""

import os
import stat
import struct
import zipfile

import pytest

from smatcli.data.images import Unreadable
from smatcli.data.sources import FolderSource, trees
from smatcli.errors import UserError
from tests.data.imagefiles import LFS, picture, tree, write_folder, write_zip

PNG = picture()


@pytest.fixture(params=["folder", "zip"])
def make(request, tmp_path):
    """Factory that opens a source from files given by name, as a directory and as a ZIP."""

    def opened(files, depth=1):
        if request.param == "folder":
            return FolderSource(write_folder(tmp_path / "pets", files), depth)
        return FolderSource(write_zip(tmp_path / "pets.zip", files), depth)

    return opened


def listing(source):
    return {c.name: [image.rsplit("/", 1)[-1] for image in c.images] for c in source.classes()}


def test_classes_and_images_are_sorted_by_name(make):
    source = make({"dog/2.png": PNG, "dog/10.png": PNG, "ant/b.png": PNG, "Zoo/a.jpg": PNG, "ant/a.png": b"other"})
    assert list(listing(source)) == ["Zoo", "ant", "dog"]
    assert listing(source)["dog"] == ["10.png", "2.png"]
    assert source.read(source.classes()[1].images[0]) == b"other"
    assert source.remarks == []


@pytest.mark.parametrize("top", ["", "pets/", "data/pets v2/"])
def test_single_top_folders_are_descended_into(make, top):
    assert listing(make(tree(2, 2, top))) == {"c0": ["000.png", "001.png"], "c1": ["000.png", "001.png"]}


def test_a_readme_beside_the_classes_is_named(make):
    source = make({**tree(2, 2, "pets/"), "pets/README.md": b"x", "LICENSE": b"y"})
    assert list(listing(source)) == ["c0", "c1"]
    assert source.remarks == ["2 files outside the class folders skipped: LICENSE, pets/README.md"]


def test_one_class_is_not_descended_into(make):
    assert list(listing(make({"cat/1.png": PNG, "cat/2.png": PNG}))) == ["cat"]


def test_files_of_file_managers_are_skipped(make):
    litter = ["c0/.DS_Store", "c0/Thumbs.db", "__MACOSX/c0/._000.png", ".git/config", "c1/._000.png", ".hidden/a.png"]
    source = make({**tree(2, 2), **dict.fromkeys(litter, b"x")})
    assert listing(source) == {"c0": ["000.png", "001.png"], "c1": ["000.png", "001.png"]}
    assert source.remarks == []


def test_files_deeper_than_the_class_belong_to_it(make):
    assert listing(make({"a/images/1.png": PNG, "a/2.png": PNG, "b/images/1.png": PNG})) == {"a": ["2.png", "1.png"], "b": ["1.png"]}


def test_groups_of_classes_need_depth(make):
    files = {f"{group}/{c}/{i}.png": PNG for group in ("greek", "latin") for c in "ab" for i in "12"}
    with pytest.raises(UserError, match=r"one folder deeper .*--depth 2"):
        make(files)
    assert listing(make(files, 2)) == {f"{group}/{c}": ["1.png", "2.png"] for group in ("greek", "latin") for c in "ab"}


@pytest.mark.parametrize("top", ["", "med/"])
def test_parts_with_the_same_classes_split_the_images(make, top):
    files = {f"{top}{part}/{c}/{i}.png": PNG for part in ("Training", "val", "test") for c in "ab" for i in "12"}
    source = make({**files, f"{top}readme.txt": b"x"})
    assert list(listing(source)) == ["a", "b"]
    assert source.remarks == [f"1 file outside the class folders skipped: {top}readme.txt"]
    for c in source.classes():
        assert c.split is None
        assert c.image_splits is not None
        named = {image.removeprefix(top).split("/")[0]: split for image, split in zip(c.images, c.image_splits, strict=True)}
        assert named == {"Training": "train", "val": "valid", "test": "test"}
        assert len(c.images) == 6


@pytest.mark.parametrize(("files", "said"), [({}, "has no files"), ({"a.png": PNG, "b.png": PNG}, "no class folders")])
def test_no_class_folders(make, tmp_path, files, said):
    (tmp_path / "pets").mkdir()
    with pytest.raises(UserError, match=said):
        make(files)


def test_fingerprint_follows_names_sizes_and_content(tmp_path):
    def of(files):
        return FolderSource(write_zip(tmp_path / "a.zip", files)).fingerprint

    files = {"c/1.png": b"abc", "c/2.png": b"defg"}
    first = of(files)
    assert first == of(dict(reversed(files.items())))
    others = [of({**files, "c/1.png": b"abd"}), of({"c/1.png": b"abc"}), of({"c/1.png": b"abc", "c/3.png": b"defg"})]
    assert len({first, *others}) == 4


def test_names_of_other_writers(tmp_path):
    """macOS writes UTF-8 without the flag, and some Windows programs write backslashes."""
    path = write_zip(tmp_path / "a.zip", {"Ara/1.png": PNG, "b\\1.png": PNG})
    data = path.read_bytes().replace(b"Ara", "éa".encode())
    path.write_bytes(data)
    assert list(listing(FolderSource(path))) == ["b", "éa"]


@pytest.mark.parametrize("name", ["../evil.png", "c0/../../evil.png", "/etc/evil.png", "C:\\evil.png", "..\\evil.png"])
def test_path_traversal_is_refused(tmp_path, name):
    path = write_zip(tmp_path / "a.zip", {**tree(2, 2), name: PNG})
    with pytest.raises(UserError, match=r"a\.zip: refused.*path traversal"):
        FolderSource(path)
    assert os.listdir(tmp_path) == ["a.zip"]


def test_symbolic_links_in_a_zip_are_refused(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("c0/link.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(UserError, match="symbolic link"):
        FolderSource(path)


def test_encrypted_entries_are_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip", tree(1, 2))
    data = bytearray(path.read_bytes())
    for magic, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(magic) + flags] |= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="encrypted"):
        FolderSource(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_repeated_names_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("c/1.png", PNG)
        archive.writestr("c/1.png", b"other")
    with pytest.raises(UserError, match="name of another entry"):
        FolderSource(tmp_path / "a.zip")


def test_an_entry_that_unpacks_to_much_more_is_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"c/1.png": bytes(20 * 2**20)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 30_000
    with pytest.raises(UserError, match=r"c/1\.png.*20,971,520 bytes \(decompression bomb\)"):
        FolderSource(path)


def test_many_entries_that_unpack_to_too_much_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(trees, "FREE_BYTES", 2**20)
    path = write_zip(tmp_path / "a.zip", {f"c/{i}.png": bytes(2**18) for i in range(20)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match=r"it unpacks from .* to 5,242,880 bytes"):
        FolderSource(path)


def test_an_entry_larger_than_it_says_is_not_read_on(tmp_path):
    """An entry that is larger than its size in the directory is damaged; the excess is not read."""
    path = write_zip(tmp_path / "a.zip", {"c/1.png": bytes(100_000), "c/2.png": PNG}, zipfile.ZIP_DEFLATED)
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<I", 100_000), struct.pack("<I", 10)))
    with pytest.raises(Unreadable, match="damaged in the archive"):
        FolderSource(path).read("c/1.png")


def test_a_damaged_entry_does_not_affect_the_others(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"c/1.png": PNG, "c/2.png": PNG + b"tail"})
    path.write_bytes(path.read_bytes().replace(b"tail", b"flip", 1))
    source = FolderSource(path)
    assert source.read("c/1.png") == PNG
    with pytest.raises(Unreadable, match="CRC"):
        source.read("c/2.png")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (LFS, "git-lfs pointer"),
        (b"\x1f\x8b gzip", "neither a folder nor a ZIP"),
        (b"PK\x03\x04" + bytes(40), "truncated or damaged ZIP"),
        (None, r"a\*\.zip: does not exist; give a folder or a ZIP \(the pattern matches nothing\)"),
    ],
)
def test_no_source(tmp_path, content, said):
    path = tmp_path / ("a*.zip" if content is None else "a.zip")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        FolderSource(path)


def test_truncated_zip(tmp_path):
    path = write_zip(tmp_path / "a.zip", tree(2, 2))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match="truncated or damaged ZIP"):
        FolderSource(path)


def test_links_pipes_and_circles_in_a_directory(tmp_path):
    root = write_folder(tmp_path / "pets", tree(1, 2))
    outside = write_folder(tmp_path / "elsewhere", {"1.png": PNG})
    (root / "linked").symlink_to(outside)
    (root / "c0" / "circle").symlink_to(root)
    (root / "c0" / "gone.png").symlink_to(tmp_path / "nothing")
    os.mkfifo(root / "c0" / "pipe.png")
    source = FolderSource(root)
    assert listing(source) == {"c0": ["000.png", "001.png", "gone.png", "pipe.png"], "linked": ["1.png"]}
    for name, reason in (("gone", "broken link"), ("pipe", "not a regular file")):
        with pytest.raises(Unreadable, match=reason):
            source.read(f"c0/{name}.png")
