"""Table of torchvision's datasets for `torchvision_sets`: their splits, files, download addresses, and how to list their images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Labelled = Iterator[tuple[str, int]]
TRAIN_TEST = ({"train": True}, {"train": False})
SPLITS = ({"split": "train"}, {"split": "val"}, {"split": "test"})


def _paths(dataset: Any) -> Labelled:
    """List the images with the public interface, for classes with the argument `loader` (here `str`)."""
    return (dataset[i] for i in range(len(dataset)))


def _gtsrb(dataset: Any) -> Labelled:
    return iter(dataset._samples)


def _pets(dataset: Any) -> Labelled:
    return zip(map(str, dataset._images), dataset._labels, strict=True)


def _caltech(dataset: Any) -> Labelled:
    folder = Path(dataset.root, "101_ObjectCategories")
    for number, label in zip(dataset.index, dataset.y, strict=True):
        yield str(folder / dataset.categories[label] / f"image_{number:04d}.jpg"), label


def _omniglot_name(path: str, label: int) -> str:
    return "/".join(Path(path).parts[-3:-1])


def _sign_name(path: str, label: int) -> str:
    """Return the class number. torchvision numbers the existing folders instead, which differs if one is missing."""
    return Path(path).parent.name if "Training" in Path(path).parts else f"{label:05d}"


def _cifar(dataset: Any) -> tuple[np.ndarray, Any]:
    return dataset.data, dataset.targets


def _mnist(dataset: Any) -> tuple[np.ndarray, Any]:
    return dataset.data.numpy(), dataset.targets.numpy()


def _svhn(dataset: Any) -> tuple[np.ndarray, Any]:
    return dataset.data.transpose(0, 2, 3, 1), dataset.labels


@dataclass(frozen=True)
class TorchvisionSet:
    """A dataset. `arrays` returns pixels [N, H, W] or [N, H, W, 3] and labels [N]; if None, `files` yields path and label of each image."""

    cls: str  # torchvision.datasets.<cls>
    parts: tuple[dict[str, Any], ...]  # arguments for each split; together they are the whole dataset
    needs: tuple[str, ...]  # required files and folders below the root
    get: str  # how to get the files, and where to put them below {root}
    files: Callable[[Any], Labelled] = _paths
    arrays: Callable[[Any], tuple[np.ndarray, Any]] | None = None
    name_of: Callable[[str, int], str] | None = None  # class name from path and label, if torchvision has no list of names
    names: Callable[[Any], list[str]] = lambda dataset: list(dataset.classes)
    sums: Callable[[Any], list[tuple[str, str]]] = lambda cls: []  # files below the root whose MD5 sums torchvision checks
    loader: bool = True  # has the argument `loader`
    downloads: bool = True
    left_out: tuple[str, str] | None = None  # a skipped file or folder, and the remark if it exists


def _mnist_like(cls: str, url: str) -> TorchvisionSet:
    names = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    get = f"put {', '.join(f'{name}.gz' for name in names)} of {url} into {{root}}/{cls}/raw and gunzip them"
    return TorchvisionSet(cls, TRAIN_TEST, tuple(f"{cls}/raw/{name}" for name in names), get, arrays=_mnist, loader=False)


def _cifar_like(cls: str, folder: str, files: tuple[str, ...], url: str) -> TorchvisionSet:
    def sums(dataset: Any) -> list[tuple[str, str]]:
        listed = [*dataset.train_list, *dataset.test_list, (dataset.meta["filename"], dataset.meta["md5"])]
        return [(f"{folder}/{name}", md5) for name, md5 in listed]

    needs = tuple(f"{folder}/{name}" for name in files)
    return TorchvisionSet(cls, TRAIN_TEST, needs, f"unpack {url} in {{root}}", arrays=_cifar, sums=sums, loader=False)


_OMNIGLOT = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
_GTSRB = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370"
_VGG = "https://www.robots.ox.ac.uk/~vgg/data"
_FOOD = "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz"
_EUROSAT = "https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip"
_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")

_ALL = (
    _cifar_like("CIFAR10", "cifar-10-batches-py", _BATCHES, "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"),
    _cifar_like("CIFAR100", "cifar-100-python", ("train", "test", "meta"), "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"),
    _mnist_like("MNIST", "https://ossci-datasets.s3.amazonaws.com/mnist/"),
    _mnist_like("FashionMNIST", "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"),
    _mnist_like("KMNIST", "http://codh.rois.ac.jp/kmnist/dataset/kmnist/"),
    TorchvisionSet(
        "Omniglot",
        ({"background": True}, {"background": False}),
        tuple(f"omniglot-py/images_{part}{end}" for part in ("background", "evaluation") for end in (".zip", "")),
        f"put {_OMNIGLOT}/images_background.zip and images_evaluation.zip into {{root}}/omniglot-py, unpack them there and keep them",
        name_of=_omniglot_name,
        sums=lambda cls: [(f"{cls.folder}/{part}.zip", md5) for part, md5 in cls.zips_md5.items()],
    ),
    TorchvisionSet(
        "GTSRB",
        ({"split": "train"}, {"split": "test"}),
        ("gtsrb/GTSRB/Training", "gtsrb/GTSRB/Final_Test/Images", "gtsrb/GT-final_test.csv"),
        f"unpack {_GTSRB}/GTSRB-Training_fixed.zip, GTSRB_Final_Test_Images.zip and GTSRB_Final_Test_GT.zip in {{root}}/gtsrb",
        files=_gtsrb,
        name_of=_sign_name,
        loader=False,
    ),
    TorchvisionSet("DTD", SPLITS, ("dtd/dtd/labels", "dtd/dtd/images"), f"unpack {_VGG}/dtd/download/dtd-r1.0.1.tar.gz in {{root}}/dtd"),
    TorchvisionSet(
        "Flowers102",
        SPLITS,
        ("flowers-102/imagelabels.mat", "flowers-102/setid.mat", "flowers-102/jpg"),
        f"put {_VGG}/flowers/102/imagelabels.mat, setid.mat and 102flowers.tgz into {{root}}/flowers-102 and unpack the last",
        sums=lambda cls: [(f"flowers-102/{name}", md5) for key, (name, md5) in cls._file_dict.items() if key != "image"],
    ),
    TorchvisionSet(
        "FGVCAircraft",
        ({"split": "trainval"}, {"split": "test"}),
        tuple(
            f"fgvc-aircraft-2013b/data/{name}"
            for name in ("variants.txt", "images_variant_trainval.txt", "images_variant_test.txt", "images")
        ),
        f"unpack {_VGG}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz in {{root}}",
    ),
    TorchvisionSet(
        "StanfordCars",
        ({"split": "train"}, {"split": "test"}),
        tuple(
            f"stanford_cars/{name}"
            for name in ("devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat", "cars_train", "cars_test")
        ),
        "the original site is gone: unpack cars_train.tgz, cars_test.tgz and car_devkit.tgz from a mirror in {root}/stanford_cars, "
        "and put cars_test_annos_withlabels.mat beside them",
        downloads=False,
    ),
    TorchvisionSet(
        "OxfordIIITPet",
        ({"split": "trainval"}, {"split": "test"}),
        ("oxford-iiit-pet/annotations/trainval.txt", "oxford-iiit-pet/annotations/test.txt", "oxford-iiit-pet/images"),
        f"unpack {_VGG}/pets/data/images.tar.gz and annotations.tar.gz in {{root}}/oxford-iiit-pet",
        files=_pets,
        loader=False,
    ),
    TorchvisionSet(
        "Food101",
        ({"split": "train"}, {"split": "test"}),
        ("food-101/meta/train.json", "food-101/meta/test.json", "food-101/images"),
        f"unpack {_FOOD} in {{root}}",
    ),
    TorchvisionSet("EuroSAT", ({},), ("eurosat/2750",), f"unpack {_EUROSAT} in {{root}}/eurosat"),
    TorchvisionSet(
        "SVHN",
        ({"split": "train"}, {"split": "test"}),
        ("train_32x32.mat", "test_32x32.mat"),
        "put http://ufldl.stanford.edu/housenumbers/train_32x32.mat and test_32x32.mat into {root}",
        arrays=_svhn,
        names=lambda dataset: [str(digit) for digit in range(10)],
        sums=lambda cls: [(cls.split_list[part][1], cls.split_list[part][2]) for part in ("train", "test")],
        loader=False,
        left_out=("extra_32x32.mat", "extra_32x32.mat is skipped: only the train and test sets are used"),
    ),
    TorchvisionSet(
        "Caltech101",
        ({},),
        ("caltech101/101_ObjectCategories", "caltech101/101_ObjectCategories/BACKGROUND_Google"),
        "unpack https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip, and the 101_ObjectCategories.tar.gz in it in "
        "{root}/caltech101",
        files=_caltech,
        names=lambda dataset: list(dataset.categories),
        loader=False,
        left_out=(
            "caltech101/101_ObjectCategories/BACKGROUND_Google",
            "BACKGROUND_Google is skipped, as in torchvision",
        ),
    ),
)

SETS = {dataset.cls.lower(): dataset for dataset in _ALL}
ALIASES = {"trafficsign": "gtsrb", "vggflower": "flowers102", "aircraft": "fgvcaircraft", "cars": "stanfordcars", "pets": "oxfordiiitpet"}
