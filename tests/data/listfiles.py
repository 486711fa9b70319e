"""Miniature files of a VTAB-1k task and of a dataset with VPT's lists."""

import json
from pathlib import Path

from tests.data.imagefiles import picture, write_folder

LABELS = {"train800": [2, 0, 1, 0, 2, 1], "val200": [1, 0, 2], "test": [0, 2, 2, 1]}


def write_task(root: Path, copies: bool = True) -> Path:
    """Write a VTAB-1k task; with `copies`, every list has its own image files, as written by the common export script."""
    lists = {}
    for seed, (part, labels) in enumerate(LABELS.items()):
        lists[part] = [(f"images/{part}/{i:06d}.jpg", label, picture(100 * seed + i, kind="JPEG")) for i, label in enumerate(labels)]
    union = lists["train800"] + lists["val200"]
    lists["train800val200"] = [(f"images/train800val200/{i:06d}.jpg", *row[1:]) for i, row in enumerate(union)] if copies else union
    for part, rows in lists.items():
        write_folder(root, {path: data for path, _, data in rows})
        (root / f"{part}.txt").write_text("".join(f"{path} {label}\n" for path, label, _ in rows))
    return root


def write_birds(root: Path, folder: str = "images", name: str = "{label:03d}.bird_{label}/{split}_{i}.jpg"):
    """Write VPT's lists, with class numbers from 1 and images below `folder`."""
    for seed, split in enumerate(("train", "val", "test")):
        rows = {name.format(label=label, split=split, i=i): label for label in (1, 2, 10) for i in range(2)}
        write_folder(root, {f"{folder}/{path}" if folder else path: picture(10 * seed, kind="JPEG") for path in rows})
        (root / f"{split}.json").write_text(json.dumps(rows))
    return root
