"""`smat data prepare KIND`: one command for each kind of source, all with the same options."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from smatcli.cli.prepare_kind import Dir, Dirs, jobs_of
from smatcli.cli.prepare_kind import kind as register_kind

if TYPE_CHECKING:
    from smatcli.engine.prepare.preparation import Job


class Kinds(TyperGroup):
    """The kinds of this package, then those of plugins, which are looked for only when this group is asked."""

    def list_commands(self, ctx: Any) -> list[str]:
        from smatcli.plugins import loaded

        return [*super().list_commands(ctx), *(name for name in loaded("sources") if name not in self.commands)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        from smatcli.cli.prepare_plugin import command

        return super().get_command(ctx, cmd_name) or command(cmd_name)


app = typer.Typer(cls=Kinds, help="Turn source data into stores: one command for each kind of source.", no_args_is_help=True)
kind = partial(register_kind, into=app)


@kind("folder", size=64, fit="crop")
def folder(
    sources: Annotated[list[str], typer.Argument(metavar="SRC", help="Directories or ZIPs of class folders; one store each.")],
    depth: Annotated[int, typer.Option("--depth", min=1, help="Folders that make a class: 2 for group/class/image.")] = 1,
) -> "list[Job]":
    """Make one store from each directory or ZIP of class folders (<class name>/<image>).

    Any image that Pillow reads, of any mode and size: the first frame, upright, on white. Unreadable images are counted and named.
    What was already prepared from the same files with the same settings is kept; what was interrupted continues.

    The split is by class. Test, train and valid get at least 5 classes each, in this order; with 10 to 14 classes there are no valid
    classes, with fewer than 10 all are test classes.
    """
    from smatcli.engine.prepare.preparation import folder_jobs

    return folder_jobs(sources, depth)


@kind("meta-dataset")
def meta_dataset(dirs: Dirs) -> "list[Job]":
    """Make stores from Meta-Dataset's own conversion: dataset_spec.json beside one <class id>.tfrecords a class.

    A folder without dataset_spec.json stands for all folders in it that have one. Classes, their order and splits are the spec's, and
    so is the ontology of Omniglot and ImageNet.
    """
    return jobs_of("meta-dataset", _each(dirs, "dataset_spec.json"))


@kind("pmf-h5")
def pmf_h5(dirs: Dirs) -> "list[Job]":
    """Make stores from PMF's layout of Meta-Dataset: dataset_spec.json beside one <class id>.h5 a class."""
    return jobs_of("pmf-h5", _each(dirs, "dataset_spec.json"))


@kind("pmf-episodes")
def pmf_episodes(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="PMF's fixed validation episodes; one store each.")],
) -> "list[Job]":
    """Make stores of PMF's fixed validation episodes (val_ep120_img128.h5): every class of every episode is a class of the valid split.

    Give the --size that the images have, so that they come through unchanged.
    """
    return jobs_of("pmf-episodes", files)


@kind("torchvision")
def torchvision(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="CIFAR10, DTD, Omniglot, ... as torchvision calls them.")],
    root: Annotated[Path | None, typer.Option("--root", help="Where torchvision's files lie, or go.", show_default=False)] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch what is missing (network).")] = False,
) -> "list[Job]":
    """Make stores from datasets that torchvision reads, all of their parts together."""
    return [job for name in names for job in jobs_of("torchvision", [name], root=root, download=download)]


@kind("vtab")
def vtab(dirs: Dirs) -> "list[Job]":
    """Make stores from VTAB-1k tasks (images beside train800.txt, val200.txt, test.txt), split by image, for tuning.

    DIR is one task, or the folder that holds them.
    """
    return jobs_of("vtab", _each(dirs, "train800.txt", "train800val200.txt", "test.txt"))


@kind("fgvc")
def fgvc(dirs: Dirs) -> "list[Job]":
    """Make stores from the FGVC tasks as VPT lists them (train.json, val.json, test.json), split by image, for tuning.

    DIR is one task, or the folder that holds them.
    """
    return jobs_of("fgvc", _each(dirs, "train.json", "test.json"))


@kind("domainnet")
def domainnet(
    path: Dir,
    domain: Annotated[list[str] | None, typer.Option("--domain", help="clipart, sketch, ...; repeatable (default: all there).")] = None,
) -> "list[Job]":
    """Make one store of each DomainNet domain: <domain>/<class>/<image> with <domain>_train.txt and <domain>_test.txt."""
    from smatcli.errors import UserError

    known = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
    domains = domain or [name for name in known if (path / name).is_dir()]
    if not domains:
        raise UserError(f"{path}: holds no DomainNet domain ({', '.join(known)}); give the folder that the archives were unpacked in")
    return [job for name in domains for job in jobs_of("domainnet", [path], domain=name)]


@kind("coco")
def coco(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="Folder of the images.")],
    annotations: Annotated[Path, typer.Argument(metavar="ANNOTATIONS", help="instances_*.json")],
    enlarge: Annotated[float, typer.Option("--enlarge", min=1, help="Crops are so many times the box.")] = 1.2,
    min_boxes: Annotated[int | None, typer.Option("--min-boxes", min=2, help="Drop classes with fewer boxes.", show_default=False)] = None,
    crowd: Annotated[bool, typer.Option("--crowd/--no-crowd", help="Keep the boxes of crowds, as Meta-Dataset does.")] = True,
) -> "list[Job]":
    """Make a store of MSCOCO's objects: one image a box, cut out 1.2 times as large, as in Meta-Dataset."""
    few = {} if min_boxes is None else {"min_boxes": min_boxes}
    return jobs_of("coco", [images], annotations=annotations, enlarge=enlarge, crowd=crowd, **few)


@kind("cub")
def cub(path: Dir) -> "list[Job]":
    """Make a store of the birds: the folder CUB_200_2011 as it is unpacked."""
    return jobs_of("cub", [path])


@kind("fungi")
def fungi(path: Dir) -> "list[Job]":
    """Make a store of FGVCx Fungi: images/ beside train.json and val.json."""
    return jobs_of("fungi", [path])


@kind("quickdraw")
def quickdraw(path: Dir) -> "list[Job]":
    """Make a store of Quick, Draw!: one <class>.npy of bitmaps or one <class>.ndjson of drawings a class."""
    return jobs_of("quickdraw", [path])


def _each(dirs: Iterable[Path], *marks: str) -> list[Path]:
    """Each folder, or in its stead the folders in it, when these have one of the marks and it has none."""
    found = []
    for path in dirs:
        inner = []
        if path.is_dir() and not any((path / mark).exists() for mark in marks):
            inner = [one for one in sorted(path.iterdir()) if any((one / mark).exists() for mark in marks)]
        found += inner or [path]
    return found
