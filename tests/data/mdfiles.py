"""Write Meta-Dataset's files by their published descriptions: TFRecords bit by bit, each kind of `dataset_spec.json`, PMF's HDF5."""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

FIXTURE = Path(__file__).parent / "mdsampler" / "fixture"


def crc32c_by_bits(data: bytes) -> int:
    """RFC 3720's CRC by polynomial division, one bit at a time."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    crc = crc32c_by_bits(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17 & 0xFFFFFFFF)) + 0xA282EAD8) & 0xFFFFFFFF)


def record(payload: bytes) -> bytes:
    """A framed record."""
    length = struct.pack("<Q", len(payload))
    return length + masked(length) + payload + masked(payload)


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, data: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def feature(value: Any) -> bytes:
    """Serialise a tf.train.Feature of bytes, packed integers or floats."""
    values = value if isinstance(value, list) else [value]
    if isinstance(values[0], bytes):
        return field(1, b"".join(field(1, item) for item in values))
    if isinstance(values[0], int):
        return field(3, field(1, b"".join(map(varint, values))))
    return field(2, field(1, struct.pack(f"<{len(values)}f", *values)))


def example(**features: Any) -> bytes:
    """A serialised tf.train.Example."""
    return field(1, b"".join(field(1, field(1, name.encode()) + field(2, feature(value))) for name, value in features.items()))


def records(images: Sequence[bytes], label: int) -> bytes:
    """Content of a class file."""
    return b"".join(record(example(image=image, label=label)) for image in images)


def flat(splits: tuple[int, int, int], counts: Sequence[int], name: str = "toy", **changed: Any) -> dict[str, Any]:
    """A flat specification; `changed` replaces or (None) removes keys."""
    raw = {
        "name": name,
        "classes_per_split": dict(zip(("TRAIN", "VALID", "TEST"), splits, strict=True)),
        "images_per_class": {str(i): n for i, n in enumerate(counts)},
        "class_names": {str(i): f"class {i}" for i in range(len(counts))},
        "path": "/somewhere/else",
        "file_pattern": "{}.tfrecords",
        "__class__": "DatasetSpecification",
    }
    return {key: value for key, value in {**raw, **changed}.items() if value is not None}


def bilevel(groups: tuple[int, int, int], members: Sequence[int], images: int = 2, **changed: Any) -> dict[str, Any]:
    """A bilevel specification with `members[i]` classes in superclass i and `images` images per class."""
    raw = {
        "name": "toy_bilevel",
        "superclasses_per_split": dict(zip(("TRAIN", "VALID", "TEST"), groups, strict=True)),
        "classes_per_superclass": {str(i): n for i, n in enumerate(members)},
        "images_per_class": {str(i): images for i in range(sum(members))},
        "superclass_names": {str(i): f"group {i}" for i in range(len(members))},
        "class_names": {str(i): f"class {i}" for i in range(sum(members))},
        "path": "",
        "file_pattern": "{}.tfrecords",
        "__class__": "BiLevelDatasetSpecification",
    }
    return {key: value for key, value in {**raw, **changed}.items() if value is not None}


def dag(graphs: Mapping[str, Mapping[str, Sequence[str]]], names: Sequence[str], images: int = 2, **changed: Any) -> dict[str, Any]:
    """A DAG specification: `graphs[split][node]` are the node's children, `names` the leaves in the order of their class ids."""
    raw = {
        "name": "toy_dag",
        "split_subgraphs": {
            split: [
                {"wn_id": n, "words": f"words of {n}", "children_ids": list(c), "parents_ids": [p for p in graph if n in graph[p]]}
                for n, c in graph.items()
            ]
            for split, graph in graphs.items()
        },
        "images_per_class": {split: {n: images * len(_leaves(graph, n)) for n in graph} for split, graph in graphs.items()},
        "class_names": {str(i): name for i, name in enumerate(names)},
        "path": "",
        "file_pattern": "{}.tfrecords",
        "__class__": "HierarchicalDatasetSpecification",
    }
    return {key: value for key, value in {**raw, **changed}.items() if value is not None}


def _leaves(graph: Mapping[str, Sequence[str]], node: str) -> set[str]:
    return set().union(*(_leaves(graph, child) for child in graph[node])) if graph[node] else {node}


def write_spec(folder: Path, raw: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset_spec.json").write_text(json.dumps(raw, indent=2))
    return folder


def write_records(folder: Path, raw: Any, images: Mapping[int, Sequence[bytes]]) -> Path:
    """Write the official layout from class id -> encoded images."""
    write_spec(folder, raw)
    for i, encoded in images.items():
        (folder / f"{i}.tfrecords").write_bytes(records(encoded, i))
    return folder


def write_pmf(folder: Path, raw: Any, images: Mapping[int, Sequence[np.ndarray]], ids: Mapping[int, Sequence[int]] | None = None) -> Path:
    """Write PMF's layout from class id -> images uint8 [H, W, 3] of groups 0, 1, ...; `ids` are the record offsets (default: ascending)."""
    write_spec(folder, raw)
    for i, pixels in images.items():
        with h5py.File(folder / f"{i}.h5", "w") as file:
            for g, image in enumerate(pixels):
                group = file.create_group(str(g))
                group["image"] = image
                group["label"] = np.array([i], np.int32)
                group["id"] = (ids or {}).get(i, range(0, 1000 * len(pixels), 1000))[g]
    return folder
