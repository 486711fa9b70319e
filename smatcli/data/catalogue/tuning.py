"""The tuning benchmarks: the 19 tasks of VTAB-1k (800 training, 200 validation images each) and the five FGVC tasks with VPT's lists.

Numbers of classes and test images are those of Jia et al., Visual Prompt Tuning, ECCV 2022, table 8.
"""

from smatcli.data.catalogue.known import Known

VTAB_URL = "https://google-research.github.io/task_adaptation/"
VTAB_LISTS = "https://github.com/ZhangYuanhan-AI/NOAH#data-preparation"
FGVC_LISTS = "https://github.com/KMnP/vpt#datasets-preperation"

_UNSTATED = "none known"
_RESEARCH = "non-commercial research and education only"


def _vtab(name: str, title: str, classes: int, test: int, licence: str, origin: str, *also: str) -> Known:
    return Known(
        name=f"vtab_{name}",
        title=title,
        collection="vtab",
        classes=classes,
        images_by_split=(800, 200, test),
        origin=origin,
        licence=licence,
        download="with VTAB-1k",
        command=f"smat data prepare vtab VTAB/{name} --size 224",
        size=224,
        also=tuple(f"vtab_{other}" for other in also),
    )


def _fgvc(name: str, title: str, classes: int, images: tuple[int, int, int], licence: str, download: str, origin: str, *also: str) -> Known:
    return Known(
        name=f"fgvc_{name}",
        title=title,
        collection="fgvc",
        classes=classes,
        images_by_split=images,
        origin=origin,
        licence=licence,
        download=download,
        command=f"smat data prepare fgvc FGVC/{name} --size 256",
        size=256,
        also=tuple(f"fgvc_{other}" for other in also),
    )


_FLOWERS = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
_CLEVR = "https://cs.stanford.edu/people/jcjohns/clevr/"
_DSPRITES = "https://github.com/google-deepmind/dsprites-dataset"
_NORB = "https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/"

VTAB: tuple[Known, ...] = (
    # natural
    _vtab("caltech101", "Caltech-101", 102, 6_084, "CC BY 4.0", "https://data.caltech.edu/records/mzrjq-6wc02"),
    _vtab("cifar", "CIFAR-100", 100, 10_000, f"{_UNSTATED}; citation asked", "https://www.cs.toronto.edu/~kriz/cifar.html", "cifar100"),
    _vtab("dtd", "DTD", 47, 1_880, "research only", "https://www.robots.ox.ac.uk/~vgg/data/dtd/"),
    _vtab("oxford_flowers102", "Flowers102", 102, 6_149, _UNSTATED, _FLOWERS, "flowers102", "oxford_flowers"),
    _vtab("oxford_iiit_pet", "Pets", 37, 3_669, "CC BY-SA 4.0", "https://www.robots.ox.ac.uk/~vgg/data/pets/", "pets", "oxford_pet"),
    _vtab("svhn", "SVHN", 10, 26_032, "non-commercial use only", "http://ufldl.stanford.edu/housenumbers/", "svhn_cropped"),
    _vtab("sun397", "Sun397", 397, 21_750, _UNSTATED, "https://vision.princeton.edu/projects/2010/SUN/"),
    # specialized
    _vtab("patch_camelyon", "Patch Camelyon", 2, 32_768, "CC0", "https://github.com/basveeling/pcam", "pcam", "camelyon"),
    _vtab("eurosat", "EuroSAT", 10, 5_400, "MIT", "https://github.com/phelber/EuroSAT"),
    _vtab("resisc45", "Resisc45", 45, 6_300, _UNSTATED, "https://doi.org/10.1109/JPROC.2017.2675998"),
    _vtab(
        "diabetic_retinopathy",
        "Retinopathy",
        5,
        42_670,
        "the rules of its Kaggle competition",
        "https://www.kaggle.com/c/diabetic-retinopathy-detection",
        "retinopathy",
        "diabetic_retinopathy_detection",
    ),
    # structured
    _vtab("clevr_count", "Clevr/count", 8, 15_000, "CC BY 4.0", _CLEVR, "clevr_count_all"),
    _vtab("clevr_dist", "Clevr/distance", 6, 15_000, "CC BY 4.0", _CLEVR, "clevr_distance", "clevr_closest_object_distance"),
    _vtab("dmlab", "DMLab", 6, 22_735, _UNSTATED, VTAB_URL),
    _vtab("kitti", "KITTI/distance", 4, 711, "CC BY-NC-SA 3.0", "https://www.cvlibs.net/datasets/kitti/", "kitti_distance"),
    _vtab("dsprites_loc", "dSprites/location", 16, 73_728, "see its repository", _DSPRITES, "dsprites_location"),
    _vtab("dsprites_ori", "dSprites/orientation", 16, 73_728, "see its repository", _DSPRITES, "dsprites_orientation"),
    _vtab("smallnorb_azi", "SmallNORB/azimuth", 18, 12_150, "research only, not to be sold", _NORB, "smallnorb_azimuth"),
    _vtab("smallnorb_ele", "SmallNORB/elevation", 9, 12_150, "research only, not to be sold", _NORB, "smallnorb_elevation"),
)

FGVC: tuple[Known, ...] = (
    _fgvc(
        "CUB_200_2011",
        "CUB-200-2011",
        200,
        (5_394, 600, 5_794),
        _RESEARCH,
        "about 1.1 GiB",
        "https://data.caltech.edu/records/65de6-vp158",
        "cub",
        "cub200",
    ),
    _fgvc(
        "nabirds",
        "NABirds",
        555,
        (21_536, 2_393, 24_633),
        "non-commercial, under its own terms",
        "not stated",
        "https://dl.allaboutbirds.org/nabirds",
    ),
    _fgvc(
        "OxfordFlower",
        "Oxford Flowers",
        102,
        (1_020, 1_020, 6_149),
        _UNSTATED,
        "about 330 MiB",
        _FLOWERS,
        "OxfordFlowers",
        "oxford_flowers102",
        "flowers102",
        "flowers",
    ),
    _fgvc(
        "Stanford-dogs",
        "Stanford Dogs",
        120,
        (10_800, 1_200, 8_580),
        "ImageNet images: " + _RESEARCH,
        "not stated",
        "http://vision.stanford.edu/aditya86/ImageNetDogs/main.html",
        "dogs",
        "stanford_dog",
    ),
    _fgvc(
        "Stanford-cars",
        "Stanford Cars",
        196,
        (7_329, 815, 8_041),
        "non-commercial research only",
        "2.0 GB, by hand",
        "https://docs.pytorch.org/vision/stable/generated/torchvision.datasets.StanfordCars.html",
        "cars",
        "stanford_car",
    ),
)
