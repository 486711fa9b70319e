"""Small files that claim to be huge, deep or endless are rejected in one line, before memory of that size is allocated."""

import json
import os
import struct
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from smatcli.config import load_recipe
from smatcli.config.schema import TrainRecipe
from smatcli.errors import UserError
from smatcli.safe import hdf5 as safe_hdf5
from smatcli.safe import probe as safe_probe
from smatcli.safe.seal import is_sealed, seal, seal_is_broken
from smatcli.safe.text import parse_json, read_json
from tests.fuzz.guard import bounded

TERA = 10**12


@pytest.fixture(autouse=True)
def small_and_quick():
    with bounded(memory=400 * 2**20, seconds=60):
        yield


# YAML and JSON


def laughs(rows: int = 12, width: int = 10, link: str = "[{}]") -> str:
    lines = ["a0: &a0 [x]"] + [f"a{i}: &a{i} " + link.format(",".join([f"*a{i - 1}"] * width)) for i in range(1, rows)]
    return "kind: train\n" + "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (laughs(), "more than 100,000 values with its aliases"),
        (laughs(link="{{<<: [{}]}}").replace("[x]", "{x: 1}"), "more than 100,000 values with its aliases"),
        ("a: " + "[" * 100_000, "nested"),
        ("- " * 100_000, "nested"),
        ("? " * 20_000, "nested"),
        ("a: " + "{a: " * 5_000, "nested"),
        ("a: &a [*a]", "an alias .* contains itself"),
        ("a: &a {b: *a}", "an alias .* contains itself"),
        ("kind: !!binary YWJj", "the tag .*binary' is not allowed here"),
        ("kind: !!set {a, b}", "is not allowed here"),
        ("kind: !!timestamp 2020-01-01", "is not allowed here"),
        ("kind: !!python/object/apply:os.system [id]", "is not allowed here"),
        ("kind: train\nrun: " + "9" * 5000, "not valid YAML"),
    ],
)  # fmt: skip
def test_yaml(recipe_file, text, said):
    with pytest.raises(UserError, match=said) as error:
        load_recipe(recipe_file(text=text))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_a_recipe_of_100_mb_is_not_read(tmp_path):
    path = tmp_path / "big.yaml"
    with path.open("wb") as file:
        file.truncate(100 * 2**20)
    with pytest.raises(UserError, match="104857600 bytes is too large for a recipe"):
        load_recipe(path)


def test_aliases_that_are_not_bombs_still_work(recipe_file):
    path = recipe_file(
        "eval: {episodes: 4, adapt: [proto]}", "eval: {episodes: 4, adapt: [proto]}\nadapt: {flip: &f {rounds: 3}, exhaustive: *f}"
    )
    recipe = load_recipe(path).recipe
    assert isinstance(recipe, TrainRecipe)
    assert recipe.adapt.flip.rounds == recipe.adapt.exhaustive.rounds == 3


def test_the_reports_reader_survives_a_deep_recipe(tmp_path):
    """libyaml's loader recurses in C and ends the process."""
    from smatcli.report.results.runs import read_run

    (tmp_path / "recipe.yaml").write_text("a: " + "[" * 200_000)
    with pytest.raises(UserError, match="not valid YAML"):
        read_run(tmp_path)


def test_json(tmp_path):
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 200_000)
    path = tmp_path / "a.json"
    path.write_text("[" + "1," * 100 + "1]")
    assert len(read_json(path)) == 101
    with pytest.raises(ValueError, match="more than 100 bytes"):
        read_json(path, 100)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is not a regular file"):
        read_json(tmp_path / "pipe")


# HDF5


def claims(file: h5py.File, name: str, shape: tuple[int, ...], chunks: tuple[int, ...] | None = None) -> None:
    """Create a dataset of doubles without writing its values."""
    file.create_dataset(name, shape, "f8", chunks=chunks)


def test_a_terabyte_in_two_kilobytes(tmp_path):
    from smatcli.runs.results import read_records

    path = tmp_path / "r.h5"
    for chunks in ((1024,), None):
        with h5py.File(path, "w") as file:
            file.create_group("d")
            file["d/index"] = np.arange(3)
            claims(file, "d/accuracy", (TERA // 8,), chunks)
        assert path.stat().st_size < 10_000
        with pytest.raises(UserError, match="claims 1,000,000,000,000 bytes, more than"):
            read_records(path)


def test_half_a_gigabyte_of_nothing(tmp_path):
    path = tmp_path / "r.h5"
    with h5py.File(path, "w") as file:
        claims(file, "late", (2**24,))
        claims(file, "chunked", (2**24,), chunks=(2**10,))
    with safe_hdf5.opened(path) as file:
        for name, said in (("late", "the file contains 0 of them"), ("chunked", "the file contains 0 of them")):
            with pytest.raises(safe_hdf5.UnsafeHDF5, match=said):
                safe_hdf5.array(file, name)


def test_a_chunk_that_unpacks_a_thousandfold(tmp_path):
    path = tmp_path / "r.h5"
    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(bytes(2**20)) for _ in range(300)) + packer.flush()
    with h5py.File(path, "w") as file:
        data = file.create_dataset("a", (2**21,), "u1", chunks=(2**21,), compression="gzip")
        data.id.write_direct_chunk((0,), bomb)
    assert len(bomb) < 2**20
    with safe_hdf5.opened(path) as file, pytest.raises(safe_hdf5.UnsafeHDF5, match="decompression bomb"):
        safe_hdf5.array(file, "a")


def test_ten_thousand_names_of_one_long_text(tmp_path):
    path = tmp_path / "r.h5"
    with h5py.File(path, "w") as file:
        file["names"] = np.array(["x" * 50_000] + ["y"] * 10_000, dtype=object)
        start = file["names"].id.get_offset()
    raw = bytearray(path.read_bytes())
    first = raw[start : start + 16]
    raw[start : start + 16 * 10_001] = first * 10_001
    path.write_bytes(raw)
    with safe_hdf5.opened(path) as file, pytest.raises(safe_hdf5.UnsafeHDF5, match="claims strings of 500,050,000 bytes"):
        safe_hdf5.array(file, "names")


def test_links_objects_and_other_files(tmp_path):
    path, other = tmp_path / "r.h5", tmp_path / "secret.h5"
    with h5py.File(other, "w") as file:
        file["x"] = np.arange(4)
    with h5py.File(path, "w") as file:
        file["a"] = np.arange(4)
        file["soft"] = h5py.SoftLink("/a")
        file["outside"] = h5py.ExternalLink(str(other), "/x")
        file.create_dataset("raw", (4,), "i8", external=[(str(other), 0, 32)])
        layout = h5py.VirtualLayout((4,), "i8")
        layout[:] = h5py.VirtualSource(str(other), "x", (4,))
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("refs", data=[file["a"].ref], dtype=h5py.ref_dtype)
        file.create_dataset("lists", (2,), h5py.vlen_dtype(np.int32))
        file.create_dataset("records", (2,), np.dtype([("a", "i4"), ("b", "f8")]))
        file.attrs["ref"] = file["a"].ref
    with safe_hdf5.opened(path) as file:
        np.testing.assert_array_equal(safe_hdf5.array(file, "a"), np.arange(4))
        for name in ("soft", "outside", "raw", "virtual", "refs", "lists", "records"):
            with pytest.raises(safe_hdf5.UnsafeHDF5):
                safe_hdf5.array(file, name)
        with pytest.raises(safe_hdf5.UnsafeHDF5, match="the attribute 'ref'"):
            safe_hdf5.attributes(file)


def test_a_structure_that_leads_in_circles(tmp_path, monkeypatch):
    """A group contains itself, or HDF5 2.0 reads a file in an endless loop; a child process detects it."""
    monkeypatch.setattr(safe_probe, "SECONDS", 2.0)
    path = tmp_path / "r.h5"
    with h5py.File(path, "w") as file:
        file.create_group("a/b")
        file["a/again"] = file["a"]
    assert safe_probe.survives(path)
    looping = Path(__file__).with_name("loop.h5")
    assert not safe_probe.survives(looping)
    with pytest.raises(safe_hdf5.UnsafeHDF5, match="hangs or crashes"), safe_hdf5.opened(looping):
        pass
    assert safe_probe.survives(path)  # by a new child


def test_seals_tell_damage_before_hdf5_sees_it(tmp_path):
    path = tmp_path / "r.h5"
    with h5py.File(path, "w") as file:
        file["a"] = np.arange(4)
    assert not is_sealed(path)
    assert not seal_is_broken(path)
    seal(path)
    assert is_sealed(path)
    assert not seal_is_broken(path)
    with safe_hdf5.opened(path) as file:
        assert safe_hdf5.array(file, "a").sum() == 6
    raw = bytearray(path.read_bytes())
    raw[100] ^= 1
    path.write_bytes(raw)
    with pytest.raises(safe_hdf5.UnsafeHDF5, match="structure was changed"), safe_hdf5.opened(path):
        pass


def test_a_store_whose_names_claim_a_gigabyte(tmp_path):
    from smatcli.data.stores.store import Store, write_store

    path = write_store(tmp_path / "s.h5", "s", 8, [("a", 0, np.zeros((3, 8, 8, 3), np.uint8))])
    with h5py.File(path, "r+") as file:
        del file["class_names"]
        file.create_dataset("class_names", (1,), "S500000000", chunks=(1,))
    with pytest.raises(UserError, match=r"damaged HDF5 file \('/class_names' claims 500,000,000 bytes"):
        Store.open(path)


# Weights


def header(path: Path, head: bytes, body: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(head)) + head + body)
    return path


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: p.write_bytes(struct.pack("<Q", 2**63) + b"{}"), "a header of 9,223,372,036,854,775,808 bytes in a file of 10"),
        (lambda p: header(p, b" " * (2**24 + 1)), "a header of 16,777,217 bytes, more than"),
        (lambda p: header(p, b"[" * 100_000), "nested too deeply"),
        (lambda p: header(p, json.dumps({"a": {"dtype": "F32", "shape": [TERA], "data_offsets": [0, 4 * TERA]}}).encode()), "exceeds"),
        (lambda p: header(p, b"[]"), "not an object"),
        (lambda p: header(p, json.dumps({str(i): {} for i in range(100_001)}).encode()), "100,001 tensors"),
    ],
)  # fmt: skip
def test_safetensors(tmp_path, make, said):
    from smatcli.backbones.weights import load_tree
    from smatcli.report.tables.costs import tensor_shapes

    path = tmp_path / "w.safetensors"
    make(path)
    with pytest.raises(UserError, match=said):
        load_tree(path)
    assert tensor_shapes(path) == {}


def test_an_archive_of_weights_that_unpacks_a_thousandfold(tmp_path):
    from smatcli.backbones.weights import load_tree

    path = tmp_path / "w.pt"
    torch.save({"a": torch.zeros(4)}, path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("archive/data/9", "w") as entry:
        for _ in range(150):
            entry.write(bytes(2**20))
    with pytest.raises(UserError, match="decompression bomb"):
        load_tree(path)


def test_tensors_that_claim_more_than_they_hold(tmp_path):
    from smatcli.importing.files import read_tensors

    for name, tensor, said in (
        ("expanded", torch.zeros(1).expand(10**6, 10**6), "claims 4,000,000,000,000 bytes and has 4"),
        ("sparse", torch.zeros(3, 3).to_sparse(), "is not a plain tensor"),
        ("complex", torch.zeros(3, dtype=torch.complex64), "is not a plain tensor"),
        ("quantized", torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8), "is not a plain tensor"),
    ):
        path = tmp_path / f"{name}.pt"
        torch.save({"a": tensor}, path)
        with pytest.raises(UserError, match=said):
            read_tensors(path)
    shared = torch.zeros(2**18)
    torch.save({f"t{i}": shared.view(512, 512) for i in range(2000)}, tmp_path / "many.pt")
    with pytest.raises(UserError, match="its tensors claim 2,097,152,000 bytes"):
        read_tensors(tmp_path / "many.pt")


def test_a_checkpoint_that_contains_itself(tmp_path):
    from smatcli.backbones import create_backbone
    from smatcli.backbones.weights import load_file_weights
    from smatcli.config.schema import BackboneConfig

    tree: dict[str, object] = {}
    tree["model"] = tree["state_dict"] = tree
    torch.save(tree, tmp_path / "ring.pt")
    wide: dict[str, object] = {}
    for _ in range(40):
        wide = dict.fromkeys(("state_dict", "model", "teacher", "module", "backbone"), wide)
    torch.save(wide, tmp_path / "wide.pt")
    args = {"patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 2}
    config = BackboneConfig(name="vit_tiny_patch16_224", args=args, image_size=16, weights="none")
    for name in ("ring.pt", "wide.pt"):
        with pytest.raises(UserError, match="contains no named tensors"):
            load_file_weights(create_backbone(config), config, tmp_path / name)


# Lists, records, images


def test_an_episode_list_of_zeros(tmp_path):
    from smatcli.data.episodes.lists import read_list

    path = tmp_path / "l.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("head.npy", b"x")
        with archive.open("0/rows.npy", "w", force_zip64=True) as entry:
            for _ in range(100):
                entry.write(bytes(2**20))
    with pytest.raises(UserError, match="too large for a list of episodes"):
        read_list(path)


def test_an_array_that_claims_a_terabyte_in_an_episode_list(tmp_path):
    from smatcli.data.episodes.lists import read_list

    path = tmp_path / "l.npz"
    head = np.lib.format.magic(1, 0) + struct.pack("<H", 118)
    text = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000,), }"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("head.npy", head + text.ljust(117) + b"\n")
    with pytest.raises(UserError, match="damaged list of episodes"):
        read_list(path)


def test_a_record_that_claims_a_terabyte(tmp_path):
    from smatcli.data.metadataset.tfrecord import TFRecordError, TFRecordFile
    from tests.data.mdfiles import masked

    length = struct.pack("<Q", TERA)
    (tmp_path / "0.tfrecords").write_bytes(length + masked(length) + bytes(100))
    with pytest.raises(TFRecordError, match="needs 1,000,000,000,016 bytes"):
        list(TFRecordFile(tmp_path / "0.tfrecords").offsets())


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10_000))) + chunk(b"IEND", b"")


def test_images_of_a_billion_pixels():
    from smatcli.data.images import Unreadable, decode_image
    from tests.data.imagefiles import picture

    jpeg = bytearray(picture(0, kind="JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    bmp = bytearray(picture(0, kind="BMP"))
    bmp[18:26] = struct.pack("<ii", 60_000, 60_000)
    for data in (png(60_000, 60_000), png(2**31 - 1, 2**31 - 1), bytes(jpeg), bytes(bmp)):
        with pytest.raises(Unreadable, match=r"bomb|damaged|truncated"):
            decode_image(data, 8)


def test_pipes_and_devices_are_not_waited_for(tmp_path):
    from smatcli.backbones.weights import load_tree
    from smatcli.data.episodes.lists import read_list
    from smatcli.data.sources.trees import open_tree
    from smatcli.data.stores.splits import read_splits
    from smatcli.data.stores.store import Store

    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        for read in (load_tree, read_list, open_tree, lambda p: read_splits(p, "x"), Store.open):
            with pytest.raises(UserError, match="is a pipe or a device"):
                read(path)
