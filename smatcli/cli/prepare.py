"""`smat data prepare KIND`: a command per kind of source, all with the same options."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from smatcli.cli.prepare_kind import Dir, Dirs, jobs_of
from smatcli.cli.prepare_kind import kind as register_kind

if TYPE_CHECKING:
    from smatcli.engine.prepare.preparation import PrepareJob


class Kinds(TyperGroup):
    """Command group of the built-in kinds, followed by those of plugins, which are loaded only when this group is used."""

    def list_commands(self, ctx: Any) -> list[str]:
        from smatcli.plugins import loaded

        return [*super().list_commands(ctx), *(name for name in loaded("sources") if name not in self.commands)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        from smatcli.cli.prepare_plugin import command

        return super().get_command(ctx, cmd_name) or command(cmd_name)


app = typer.Typer(cls=Kinds, help="Convert source data to stores: a command per kind of source.", no_args_is_help=True)
kind = partial(register_kind, into=app)


@kind("folder", size=64, fit="crop")
def folder(
    sources: Annotated[list[str], typer.Argument(metavar="SRC", help="Directories or ZIPs of class folders; one store each.")],
    depth: Annotated[
        int, typer.Option("--depth", min=1, help="Number of folder levels that form the class name; 2 for group/class/image.")
    ] = 1,
) -> "list[PrepareJob]":
    """Create a store from each directory or ZIP of class folders (<class name>/<image>).

    Images may have any mode, size and format that Pillow reads. Of an animation, the first frame is used; the EXIF orientation is applied,
    and transparent pixels become white. Unreadable images are counted and listed. An existing store of the same files and settings is kept.
    If the command is interrupted, run it again to continue.

    The split is by class. Test, train and valid get at least 5 classes each, in this order: with 10 to 14 classes there are no valid
    classes, and with fewer than 10 all are test classes.
    """
    from smatcli.engine.prepare.preparation import folder_jobs

    return folder_jobs(sources, depth)


@kind("meta-dataset")
def meta_dataset(dirs: Dirs) -> "list[PrepareJob]":
    """Create stores from the output of Meta-Dataset's conversion: dataset_spec.json beside a <class id>.tfrecords per class.

    A folder without dataset_spec.json is replaced by those of its subfolders that have one. Classes, their order, splits, and the ontology
    of Omniglot and ImageNet are taken from the specification.
    """
    return jobs_of("meta-dataset", _each(dirs, "dataset_spec.json"))


@kind("pmf-h5")
def pmf_h5(dirs: Dirs) -> "list[PrepareJob]":
    """Create stores from PMF's layout of Meta-Dataset: dataset_spec.json beside a <class id>.h5 per class."""
    return jobs_of("pmf-h5", _each(dirs, "dataset_spec.json"))


@kind("pmf-episodes")
def pmf_episodes(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="PMF's fixed validation episodes; one store each.")],
) -> "list[PrepareJob]":
    """Create stores from PMF's fixed validation episodes (val_ep120_img128.h5).

    Each class of each episode becomes a class of the valid split. To keep the images unchanged, set --size to their size.
    """
    return jobs_of("pmf-episodes", files)


@kind("torchvision")
def torchvision(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Names in torchvision: CIFAR10, DTD, Omniglot, ...")],
    root: Annotated[Path | None, typer.Option("--root", help="Folder that contains torchvision's files.", show_default=False)] = None,
    download: Annotated[bool, typer.Option("--download", help="Download missing files.")] = False,
) -> "list[PrepareJob]":
    """Create stores from torchvision datasets; the parts of a dataset (train, test, ...) are combined."""
    return [job for name in names for job in jobs_of("torchvision", [name], root=root, download=download)]


@kind("vtab")
def vtab(dirs: Dirs) -> "list[PrepareJob]":
    """Create stores from VTAB-1k tasks (images beside train800.txt, val200.txt, test.txt), split by image, for tuning.

    DIR is a task, or a folder of tasks.
    """
    return jobs_of("vtab", _each(dirs, "train800.txt", "train800val200.txt", "test.txt"))


@kind("fgvc")
def fgvc(dirs: Dirs) -> "list[PrepareJob]":
    """Create stores from the FGVC tasks with VPT's lists (train.json, val.json, test.json), split by image, for tuning.

    DIR is a task, or a folder of tasks.
    """
    return jobs_of("fgvc", _each(dirs, "train.json", "test.json"))


@kind("domainnet")
def domainnet(
    path: Dir,
    domain: Annotated[list[str] | None, typer.Option("--domain", help="clipart, sketch, ...; repeatable. Default: all in DIR.")] = None,
) -> "list[PrepareJob]":
    """Create a store per DomainNet domain: <domain>/<class>/<image> with <domain>_train.txt and <domain>_test.txt."""
    from smatcli.errors import UserError

    names = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
    domains = domain or [name for name in names if (path / name).is_dir()]
    if not domains:
        raise UserError(f"{path}: contains no DomainNet domain ({', '.join(names)}); give the folder of the unpacked archives")
    return [job for name in domains for job in jobs_of("domainnet", [path], domain=name)]


@kind("coco")
def coco(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="Folder of the images.")],
    annotations: Annotated[Path, typer.Argument(metavar="ANNOTATIONS", help="instances_*.json of the images.")],
    enlarge: Annotated[float, typer.Option("--enlarge", min=1, help="Size of the crop relative to the box.")] = 1.2,
    min_boxes: Annotated[int | None, typer.Option("--min-boxes", min=2, help="Drop classes with fewer boxes.", show_default=False)] = None,
    crowd: Annotated[bool, typer.Option("--crowd/--no-crowd", help="Keep the boxes of crowds, as Meta-Dataset does.")] = True,
) -> "list[PrepareJob]":
    """Create a store of the objects in MSCOCO. Each bounding box, enlarged 1.2 times as in Meta-Dataset, becomes an image."""
    few = {} if min_boxes is None else {"min_boxes": min_boxes}
    return jobs_of("coco", [images], annotations=annotations, enlarge=enlarge, crowd=crowd, **few)


@kind("cub")
def cub(path: Dir) -> "list[PrepareJob]":
    """Create a store from the unpacked folder CUB_200_2011."""
    return jobs_of("cub", [path])


@kind("fungi")
def fungi(path: Dir) -> "list[PrepareJob]":
    """Create a store from FGVCx Fungi: images/ beside train.json and val.json."""
    return jobs_of("fungi", [path])


@kind("quickdraw")
def quickdraw(path: Dir) -> "list[PrepareJob]":
    """Create a store from Quick, Draw!, with a file of bitmaps (<class>.npy) or drawings (<class>.ndjson) per class."""
    return jobs_of("quickdraw", [path])


def _each(dirs: Iterable[Path], *marks: str) -> list[Path]:
    """Replace each folder that has none of the files `marks` by its subfolders that have one."""
    folders = []
    for path in dirs:
        inner = []
        if path.is_dir() and not any((path / mark).exists() for mark in marks):
            inner = [folder for folder in sorted(path.iterdir()) if any((folder / mark).exists() for mark in marks)]
        folders += inner or [path]
    return folders
