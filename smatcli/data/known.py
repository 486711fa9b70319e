"""The datasets of the paper: what they should hold, where they come from, and the one command that prepares each.

Counts of Meta-Dataset's ten are those of its reference `dataset_spec.json` files (ImageNet: of `num_leaf_images.json`, as that spec counts
a few images too many); the others are those of their own pages. A number that no such source gives is None.
The tuning benchmarks, VTAB-1k and FGVC, are in `known_tuning`.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Collection = Literal["paper", "vtab", "fgvc"]
Counts = tuple[int, int, int]  # train, valid, test

SPLITS_URL = "https://github.com/google-research/meta-dataset/tree/main/meta_dataset/dataset_conversion/splits"
RECORDS_URL = "https://github.com/google-research/meta-dataset/blob/main/doc/dataset_conversion.md"
PMF_URL = "https://huggingface.co/datasets/hushell/meta_dataset_h5"


@dataclass(frozen=True)
class Known:
    """One dataset as it should be. `classes` counts classes by split; a tuning task counts `images_by_split` and `classes` in all."""

    name: str  # of the store
    title: str
    collection: Collection
    classes: Counts | int
    origin: str  # page to get it from
    licence: str
    download: str  # size of what is to be fetched
    command: str  # without --out
    images: int | None = None
    images_by_split: Counts | None = None
    images_a_class: tuple[int, int] | None = None  # fewest, most
    ontology: str | None = None  # kind, where the protocol draws classes by one
    size: int = 128  # px, as the paper uses it
    raw: str = ""  # the command for the dataset's own download, where `command` starts from Meta-Dataset's conversion
    also: tuple[str, ...] = ()  # other names of the store
    variants: Mapping[int, str] = field(default_factory=dict)  # another number of images that is no mistake -> why

    @property
    def number_of_classes(self) -> int:
        """Classes of all splits."""
        return self.classes if isinstance(self.classes, int) else sum(self.classes)

    @property
    def store_bytes(self) -> int | None:
        """Bytes of the images in a store with raw pixels of the paper's size, None if the number of images is not known."""
        images = sum(self.images_by_split) if self.images_by_split else self.images
        return None if images is None else images * self.size**2 * 3

    def command_for(self, root: str = "data", raw: bool = False) -> str:
        """The command that prepares the dataset into `<root>/<collection>`."""
        return f"{self.raw if raw else self.command} --out {shlex.quote(str(Path(root, self.collection)))}"


def _records(name: str, **facts: object) -> Known:
    options = f" --size {facts['size']}" if "size" in facts else ""
    return Known(name, collection="paper", command=f"smat data prepare meta-dataset RECORDS/{name}{options}", **facts)  # type: ignore[arg-type]


def _unseen(name: str, classes: int, command: str, **facts: object) -> Known:
    size = f" --size {facts['size']}" if "size" in facts else ""
    command = f"smat data prepare {command} --name {name} --split 0/0/100{size}"
    return Known(name, collection="paper", classes=(0, 0, classes), command=command, **facts)  # type: ignore[arg-type]


_RESEARCH = "non-commercial research and education only"
_UNSTATED = "none known"

PAPER: tuple[Known, ...] = (
    # The eight that Meta-Dataset trains on.
    _records(
        "ilsvrc_2012",
        title="ImageNet",
        classes=(712, 158, 130),
        images=1_280_764,
        images_a_class=(732, 1300),
        ontology="dag",
        origin="https://image-net.org/download-images",
        licence=f"ImageNet terms of access: {_RESEARCH}",
        download="138 GiB (about 140 GiB as records)",
        also=("imagenet", "ilsvrc"),
        variants={1_281_167: "the 403 near-duplicates of CUB and Caltech images, which Meta-Dataset leaves out, are in it"},
    ),
    _records(
        "omniglot",
        title="Omniglot",
        classes=(883, 81, 659),
        images=32_460,
        images_a_class=(20, 20),
        ontology="bilevel",
        origin="https://github.com/brendenlake/omniglot",
        licence="MIT",
        download="about 60 MiB as records",
    ),
    _records(
        "aircraft",
        title="FGVC-Aircraft",
        classes=(70, 15, 15),
        images=10_000,
        images_a_class=(100, 100),
        origin="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        licence="non-commercial research only; the photographers keep their rights",
        download="2.6 GiB (about 470 MiB as records)",
        raw="smat data prepare torchvision FGVCAircraft --root DOWNLOADS --download --splits aircraft_splits.json --name aircraft",
        also=("fgvc_aircraft",),
    ),
    _records(
        "cu_birds",
        title="CUB-200-2011",
        classes=(140, 30, 30),
        images=11_788,
        images_a_class=(41, 60),
        origin="https://data.caltech.edu/records/65de6-vp158",
        licence=_RESEARCH,
        download="about 1.1 GiB",
        raw="smat data prepare cub CUB_200_2011 --splits cu_birds_splits.json --name cu_birds",
        also=("cub", "CUB_200_2011"),
    ),
    _records(
        "dtd",
        title="Describable Textures",
        classes=(33, 7, 7),
        images=5_640,
        images_a_class=(120, 120),
        origin="https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        licence="research only",
        download="about 600 MiB",
        raw="smat data prepare torchvision DTD --root DOWNLOADS --download --splits dtd_splits.json --name dtd",
    ),
    _records(
        "quickdraw",
        title="Quick, Draw!",
        size=28,
        classes=(241, 52, 52),
        images=50_426_266,
        images_a_class=(113_613, 340_029),
        origin="https://github.com/googlecreativelab/quickdraw-dataset",
        licence="CC BY 4.0",
        download="about 50 GiB as records",
        raw="smat data prepare quickdraw QUICKDRAW --splits quickdraw_splits.json --name quickdraw --size 28",
        also=("quick_draw",),
    ),
    _records(
        "fungi",
        title="FGVCx Fungi",
        classes=(994, 200, 200),
        images=89_760,
        origin="https://github.com/visipedia/fgvcx_fungi_comp",
        licence=f"{_RESEARCH}; no redistribution",
        download="about 13 GiB",
        raw="smat data prepare fungi FUNGI --splits fungi_splits.json --name fungi",
    ),
    _records(
        "vgg_flower",
        title="VGG Flower (Oxford 102)",
        classes=(71, 15, 16),
        images=8_189,
        images_a_class=(40, 258),
        origin="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        licence=_UNSTATED,
        download="about 330 MiB",
        raw="smat data prepare torchvision Flowers102 --root DOWNLOADS --download --splits vgg_flower_splits.json --name vgg_flower",
        also=("flowers102", "oxford_flowers102"),
    ),
    # The ten that no training sees.
    _records(
        "traffic_sign",
        title="Traffic Signs (GTSRB)",
        classes=(0, 0, 43),
        images=39_209,
        images_a_class=(210, 2250),
        origin="https://benchmark.ini.rub.de/gtsrb_dataset.html",
        licence=_UNSTATED,
        download="263 MiB",
        raw="smat data prepare folder GTSRB/Final_Training/Images --name traffic_sign --split 0/0/100 --size 128 --fit squash",
        also=("gtsrb", "traffic_signs"),
        variants={39_270: "torchvision's GTSRB: other training images than Meta-Dataset's, and the official test images"},
    ),
    _records(
        "mscoco",
        title="MSCOCO",
        classes=(0, 40, 40),
        images=860_001,
        images_a_class=(198, 262_465),
        origin="https://cocodataset.org/#download",
        licence="annotations CC BY 4.0; images under the Flickr terms of use",
        download="18 GiB (about 5.3 GiB as records)",
        raw="smat data prepare coco train2017 annotations/instances_train2017.json --splits mscoco_splits.json --name mscoco",
        also=("coco",),
        variants={849_949: "the boxes of crowds, which Meta-Dataset keeps, are left out"},
    ),
    _unseen(
        "mnist",
        10,
        "torchvision MNIST --root DOWNLOADS --download",
        title="MNIST",
        images=70_000,
        images_a_class=(6313, 7877),
        origin="http://yann.lecun.com/exdb/mnist/",
        licence="CC BY-SA 3.0",
        download="12 MB",
        variants={10_000: "its test images alone"},
    ),
    _unseen(
        "cifar10",
        10,
        "torchvision CIFAR10 --root DOWNLOADS --download",
        title="CIFAR-10",
        images=60_000,
        images_a_class=(6000, 6000),
        origin="https://www.cs.toronto.edu/~kriz/cifar.html",
        licence=f"{_UNSTATED}; citation asked",
        download="170 MB",
        variants={10_000: "its test images alone"},
    ),
    _unseen(
        "cifar100",
        100,
        "torchvision CIFAR100 --root DOWNLOADS --download",
        title="CIFAR-100",
        images=60_000,
        images_a_class=(600, 600),
        origin="https://www.cs.toronto.edu/~kriz/cifar.html",
        licence=f"{_UNSTATED}; citation asked",
        download="169 MB",
        variants={10_000: "its test images alone"},
    ),
    _unseen(
        "sketch",
        345,
        "domainnet DOMAINNET --domain sketch",
        title="Sketch (DomainNet)",
        size=224,
        images=69_128,
        origin="https://ai.bu.edu/M3SDA/",
        licence="fair use for research; the images keep their owners' rights",
        download="2.5 GB",
        also=("domainnet_sketch",),
        variants={70_386: "the original release, before its duplicates were removed"},
    ),
    _unseen(
        "clipart",
        345,
        "domainnet DOMAINNET --domain clipart",
        title="Clipart (DomainNet)",
        size=224,
        images=48_129,
        origin="https://ai.bu.edu/M3SDA/",
        licence="fair use for research; the images keep their owners' rights",
        download="1.3 GB",
        also=("domainnet_clipart",),
        variants={48_837: "the original release, before its duplicates were removed"},
    ),
    _unseen(
        "food101",
        101,
        "torchvision Food101 --root DOWNLOADS --download",
        title="Food (Food-101)",
        size=224,
        images=101_000,
        images_a_class=(1000, 1000),
        origin="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        licence="scientific fair use; the images are Foodspotting's",
        download="5.0 GB",
        also=("food", "food_101"),
        variants={25_250: "its test images alone"},
    ),
    _unseen(
        "pets",
        37,
        "torchvision OxfordIIITPet --root DOWNLOADS --download",
        title="Pet (Oxford-IIIT Pet)",
        size=224,
        images=7_349,
        origin="https://www.robots.ox.ac.uk/~vgg/data/pets/",
        licence="CC BY-SA 4.0",
        download="811 MB",
        also=("pet", "oxford_iiit_pet", "oxford_pets"),
        variants={3_669: "its test images alone"},
    ),
    _unseen(
        "cars",
        196,
        "torchvision StanfordCars --root DOWNLOADS",
        title="Cars (Stanford Cars)",
        size=224,
        images=16_185,
        origin="https://docs.pytorch.org/vision/stable/generated/torchvision.datasets.StanfordCars.html",
        licence="non-commercial research only",
        download="2.0 GB, by hand: the original page is gone",
        also=("stanford_cars",),
        variants={8_041: "its test images alone"},
    ),
)


def collections() -> dict[str, tuple[Known, ...]]:
    """All known datasets by collection: paper, vtab, fgvc."""
    from smatcli.data.known_tuning import FGVC, VTAB

    return {"paper": PAPER, "vtab": VTAB, "fgvc": FGVC}


def by_name(name: str, among: tuple[Known, ...]) -> Known | None:
    """The dataset whose name, or one of whose other names, is `name`, whatever its case, hyphens and underscores."""
    wanted = plain(name)
    return next((known for known in among if wanted in {plain(other) for other in (known.name, *known.also)}), None)


def plain(name: str) -> str:
    """A name in lower case without anything but letters and digits."""
    return "".join(letter for letter in name.lower() if letter.isalnum())
