"""Miniatures of torchvision's sixteen datasets in their original formats on disk, with their expected classes.

Every writer takes the root and pytest's monkeypatch. It returns the classes in order, each with its images as uint8 [H, W, 3]; where
torchvision checks MD5 sums, it puts those of the small files in the place of the real ones, so that the checks themselves stay on.
"""

import gzip
import hashlib
import io
import json
import pickle
import shutil
import struct
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Classes = dict[str, list[np.ndarray]]


def noise(seed: int, side: int = 8, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, channels), dtype=np.uint8)


def plain(seed: int, side: int = 16) -> np.ndarray:
    """An image of a single colour, which JPEG preserves up to rounding."""
    return np.full((side, side, 3), np.random.default_rng(seed).integers(0, 256, 3), np.uint8)


def save(path: Path, pixels: np.ndarray, mode: str = "RGB") -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path)
    return pixels


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def jpegs(folder: Path, names: Sequence[str], classes: Sequence[str], seed: int = 0) -> Classes:
    """Write one colour image per name; `classes` has their classes in the same order."""
    found: Classes = {}
    for index, (name, c) in enumerate(zip(names, classes, strict=True)):
        found.setdefault(c, []).append(save(folder / name, plain(seed + index)))
    return found


def joined(names: Sequence[str], *parts: Classes) -> Classes:
    return {name: [image for part in parts for image in part.get(name, [])] for name in names}


def cifar10(root: Path, patch: Any) -> Classes:
    from torchvision.datasets import CIFAR10

    names = ["airplane", "automobile", "bird"]
    batches = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    return _cifar(root / "cifar-10-batches-py", CIFAR10, batches, "labels", names, ("batches.meta", {"label_names": names}), patch)


def cifar100(root: Path, patch: Any) -> Classes:
    from torchvision.datasets import CIFAR100

    names = ["apple", "aquarium_fish"]
    meta = {"fine_label_names": names, "coarse_label_names": ["fish", "fruit"]}
    return _cifar(root / "cifar-100-python", CIFAR100, ["train", "test"], "fine_labels", names, ("meta", meta), patch)


def _cifar(folder: Path, cls: Any, batches: list[str], key: str, names: list[str], meta: tuple[str, Any], patch: Any) -> Classes:
    found: Classes = {name: [] for name in names}
    sums = []
    for number, batch in enumerate(batches):
        labels = [(number + i) % len(names) for i in range(len(names) + 1)]
        images = [noise(100 * number + i, 32) for i in range(len(labels))]
        rows = np.stack([image.transpose(2, 0, 1).reshape(-1) for image in images])
        path = write(folder / batch, pickle.dumps({"data": rows, key: labels, "batch_label": batch}, protocol=2))
        sums.append([batch, md5(path)])
        for label, image in zip(labels, images, strict=True):
            found[names[label]].append(image)
    path = write(folder / meta[0], pickle.dumps(meta[1], protocol=2))
    patch.setattr(cls, "train_list", sums[:-1])
    patch.setattr(cls, "test_list", sums[-1:])
    patch.setattr(cls, "meta", {**cls.meta, "md5": md5(path)})
    return found


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def mnist(root: Path, patch: Any, name: str = "MNIST", packed: bool = False) -> Classes:
    """Write the four idx files; with `packed`, they are gzipped as published."""
    from torchvision import datasets

    cls = getattr(datasets, name)
    found: Classes = {c: [] for c in cls.classes}
    sums = []
    for part, seed in (("train", 0), ("t10k", 500)):
        labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(10), 2))
        images = np.stack([noise(seed + i, 28, 1)[..., 0] for i in range(len(labels))])
        for kind, data in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
            file = write(root / name / "raw" / f"{part}-{kind}.gz", gzip.compress(idx(data), mtime=0))
            sums.append((file.name, md5(file)))
            if not packed:
                write(file.with_suffix(""), gzip.decompress(file.read_bytes()))
                file.unlink()
        for label, image in zip(labels, images, strict=True):
            found[cls.classes[label]].append(np.repeat(image[..., None], 3, axis=2))
    patch.setattr(cls, "resources", sums)
    return found


def omniglot(root: Path, patch: Any) -> Classes:
    from torchvision.datasets import Omniglot

    found: Classes = {}
    sums, seeds = {}, count()
    for part, alphabets in (("images_background", ("Korean", "Greek")), ("images_evaluation", ("Angelic",))):
        here: Classes = {}
        for alphabet in alphabets:
            for character in ("character02", "character01"):
                for drawer in (2, 1, 3):
                    pixels = np.where(noise(next(seeds), 105, 1) > 127, 255, 0).astype(np.uint8).repeat(3, axis=2)
                    file = root / "omniglot-py" / part / alphabet / character / f"0001_{drawer:02d}.png"
                    here.setdefault(f"{alphabet}/{character}", []).append(save(file, pixels, "1"))
        found |= {name: [here[name][i] for i in (1, 0, 2)] for name in sorted(here)}  # in the order of the file names
        archive = shutil.make_archive(str(root / "omniglot-py" / part), "zip", root / "omniglot-py", part)
        sums[part] = md5(Path(archive))
    patch.setattr(Omniglot, "zips_md5", sums)
    return found


def gtsrb(root: Path, patch: Any) -> Classes:
    found: Classes = {}
    base, heads = root / "gtsrb", "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"
    for label in (0, 1, 2):
        for track in range(2):
            pixels = save(base / "GTSRB" / "Training" / f"{label:05d}" / f"00000_{track:05d}.ppm", noise(10 * label + track, 15))
            found.setdefault(f"{label:05d}", []).append(pixels)
        write(base / "GTSRB" / "Training" / f"{label:05d}" / f"GT-{label:05d}.csv", heads)
    lines = [heads]
    for index, label in enumerate((2, 0, 0, 1)):
        found[f"{label:05d}"].append(save(base / "GTSRB" / "Final_Test" / "Images" / f"{index:05d}.ppm", noise(100 + index, 20)))
        lines.append(f"{index:05d}.ppm;20;20;1;1;18;18;{label}\n")
    write(base / "GT-final_test.csv", "".join(lines))
    return found


def dtd(root: Path, patch: Any) -> Classes:
    names = ["banded", "blotchy", "zigzagged"]
    parts = []
    for seed, part in enumerate(("train", "val", "test")):
        files = [f"{name}/{name}_{100 * seed + i:04d}.jpg" for name in names for i in range(2)]
        parts.append(jpegs(root / "dtd/dtd/images", files, [file.split("/")[0] for file in files], 100 * seed))
        write(root / f"dtd/dtd/labels/{part}1.txt", "".join(f"{file}\n" for file in files))
    return joined(names, *parts)


def flowers102(root: Path, patch: Any) -> Classes:
    from scipy.io import savemat
    from torchvision.datasets import Flowers102

    names = Flowers102.classes
    base = root / "flowers-102"
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(1, 103), 3))
    order = np.argsort(labels, kind="stable").reshape(102, 3) + 1
    images = jpegs(base / "jpg", [f"image_{i:05d}.jpg" for i in range(1, 307)], [str(i) for i in range(1, 307)])
    base.mkdir(exist_ok=True)
    savemat(base / "imagelabels.mat", {"labels": labels.astype(np.uint8)[None]})
    savemat(base / "setid.mat", {key: order[:, i].astype(np.uint16)[None] for i, key in enumerate(("trnid", "valid", "tstid"))})
    sums = {key: (file, md5(base / file)) for key, file in (("label", "imagelabels.mat"), ("setid", "setid.mat"))}
    patch.setattr(Flowers102, "_file_dict", {**Flowers102._file_dict, **sums})
    return {name: [images[str(i)][0] for i in order[label]] for label, name in enumerate(names)}


def fgvcaircraft(root: Path, patch: Any) -> Classes:
    names = ["707-320", "F/A-18", "A330-200"]  # torchvision keeps the order of the file
    base = root / "fgvc-aircraft-2013b" / "data"
    write(base / "variants.txt", "".join(f"{name}\n" for name in names))
    parts = []
    for seed, part in enumerate(("trainval", "test")):
        numbers = [f"{1000000 + 7 * i + 100 * seed:07d}" for i in range(6)]
        classes = [names[i % 3] for i in range(6)]
        parts.append(jpegs(base / "images", [f"{number}.jpg" for number in numbers], classes, 100 * seed))
        write(base / f"images_variant_{part}.txt", "".join(f"{n} {c}\n" for n, c in zip(numbers, classes, strict=True)))
    return joined(names, *parts)


def stanfordcars(root: Path, patch: Any) -> Classes:
    from scipy.io import savemat

    names = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Ram C/V Cargo Van Minivan 2012"]
    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": np.array(names, dtype=object)[None]})
    parts = []
    for seed, (part, annos) in enumerate((("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat"))):
        labels = [3, 1, 2, 1, 2, 3]
        files = [f"{i:05d}.jpg" for i in range(1, 7)]
        parts.append(jpegs(base / f"cars_{part}", files, [names[label - 1] for label in labels], 100 * seed))
        table = np.zeros((1, 6), dtype=[(key, object) for key in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")])
        for i, (label, file) in enumerate(zip(labels, files, strict=True)):
            table[0, i] = (np.uint16(1), np.uint16(1), np.uint16(9), np.uint16(9), np.uint8(label), file)
        savemat(base / annos, {"annotations": table})
    return joined(names, *parts)


def oxfordiiitpet(root: Path, patch: Any) -> Classes:
    base = root / "oxford-iiit-pet"
    breeds = ["Abyssinian", "american_bulldog", "Egyptian_Mau"]
    names = ["Abyssinian", "American Bulldog", "Egyptian Mau"]
    parts = []
    for seed, part in enumerate(("trainval", "test")):
        rows = [(f"{breeds[i % 3]}_{100 * seed + i}", i % 3) for i in range(6)]
        parts.append(jpegs(base / "images", [f"{row[0]}.jpg" for row in rows], [names[row[1]] for row in rows], 100 * seed))
        write(base / "annotations" / f"{part}.txt", "".join(f"{name} {label + 1} {1 + label % 2} 1\n" for name, label in rows))
    return joined(names, *parts)


def food101(root: Path, patch: Any) -> Classes:
    names = ["apple_pie", "baby_back_ribs", "waffles"]
    parts = []
    for seed, part in enumerate(("train", "test")):
        listed = {name: [f"{name}/{1000 * seed + 10 * c + i}" for i in range(2)] for c, name in enumerate(names)}
        files = [file for name in names for file in listed[name]]
        classes = [file.split("/")[0] for file in files]
        parts.append(jpegs(root / "food-101" / "images", [f"{file}.jpg" for file in files], classes, 100 * seed))
        write(root / "food-101" / "meta" / f"{part}.json", json.dumps(listed))
    return joined(names, *parts)


def eurosat(root: Path, patch: Any) -> Classes:
    files = [f"{name}/{name}_{i}.jpg" for name in ("AnnualCrop", "Forest", "SeaLake") for i in (1, 2, 3)]
    return jpegs(root / "eurosat" / "2750", files, [file.split("/")[0] for file in files])


def svhn(root: Path, patch: Any) -> Classes:
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    found: Classes = {str(digit): [] for digit in range(10)}
    listed = dict(SVHN.split_list)
    for seed, part in enumerate(("train", "test")):
        digits = np.random.default_rng(seed).permutation(np.repeat(np.arange(1, 11), 2))  # 10 stands for 0
        images = np.stack([noise(100 * seed + i, 32) for i in range(20)], axis=3)
        file = root / f"{part}_32x32.mat"
        root.mkdir(exist_ok=True)
        savemat(file, {"X": images, "y": digits.astype(np.uint8)[:, None]}, do_compression=True)
        listed[part] = [listed[part][0], file.name, md5(file)]
        for index, digit in enumerate(digits):
            found[str(digit % 10)].append(images[..., index])
    patch.setattr(SVHN, "split_list", listed)
    return found


def caltech101(root: Path, patch: Any) -> Classes:
    names = ["Faces", "Leopards", "accordion"]
    files = [f"{name}/image_{i:04d}.jpg" for name in [*names, "BACKGROUND_Google"] for i in (1, 2, 3)]
    found = jpegs(root / "caltech101" / "101_ObjectCategories", files, [file.split("/")[0] for file in files])
    return {name: found[name] for name in names}


def fashionmnist(root: Path, patch: Any) -> Classes:
    return mnist(root, patch, "FashionMNIST")


def kmnist(root: Path, patch: Any) -> Classes:
    return mnist(root, patch, "KMNIST")


WRITERS: dict[str, Callable[[Path, Any], Classes]] = {
    "CIFAR10": cifar10,
    "CIFAR100": cifar100,
    "MNIST": mnist,
    "FashionMNIST": fashionmnist,
    "KMNIST": kmnist,
    "Omniglot": omniglot,
    "GTSRB": gtsrb,
    "DTD": dtd,
    "Flowers102": flowers102,
    "FGVCAircraft": fgvcaircraft,
    "StanfordCars": stanfordcars,
    "OxfordIIITPet": oxfordiiitpet,
    "Food101": food101,
    "EuroSAT": eurosat,
    "SVHN": svhn,
    "Caltech101": caltech101,
}


def decoded(image: bytes | np.ndarray) -> np.ndarray:
    """Decode an image of a source to uint8 [H, W, 3]."""
    return image if isinstance(image, np.ndarray) else np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))
