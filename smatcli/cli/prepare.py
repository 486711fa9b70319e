"""`smat data prepare KIND`: one command for each kind of source, all with the same options."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from smatcli.engine.prepare import Job, Prepared


class Kinds(TyperGroup):
    """The kinds of this package, then those of plugins, which are looked for only when this group is asked."""

    def list_commands(self, ctx: Any) -> list[str]:
        from smatcli.plugins import loaded

        return [*super().list_commands(ctx), *(name for name in loaded("sources") if name not in self.commands)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        from smatcli.cli.prepare_plugin import command

        return super().get_command(ctx, cmd_name) or command(cmd_name)


app = typer.Typer(cls=Kinds, help="Turn source data into stores: one command for each kind of source.", no_args_is_help=True)

SPLIT_HELP = "Per cent of the classes for train/valid/test, drawn by chance (default: as the source says, else 65/15/20)."
SPLITS_HELP = "JSON with the class names of train, valid and test (Meta-Dataset's too); instead of --split."
STRICT_HELP = "Whether an unreadable image is an error, and no store is written (default: only in official records and lists)."
ENCODING_HELP = "Pixels, read without decoding, or encoded images: several times smaller, decoded whenever they are read."
REPLACE_HELP = "Rebuild a store that exists with other content."
WORKERS_HELP = "Decoding threads (default: all cores)."

# The options of every kind: name -> (type, default); `size` and `fit` have a default of their own for each kind.
_SHARED: dict[str, tuple[Any, Any]] = {
    "out": (Annotated[Path, typer.Option("--out", "-o", help="Folder of the stores; made if missing.")], inspect.Parameter.empty),
    "name": (Annotated[str | None, typer.Option("--name", help="Dataset name, for a single source (default: the source's).")], None),
    "size": (Annotated[int, typer.Option("--size", min=1, max=4096, help="Side of the stored square images, pixels.")], 64),
    "fit": (
        Annotated[
            Literal["crop", "squash"], typer.Option("--fit", help="Keep the centre square, or squash the whole image as Meta-Dataset does.")
        ],
        "crop",
    ),
    "encoding": (Annotated[Literal["raw", "jpeg"], typer.Option("--encoding", help=ENCODING_HELP)], "raw"),
    "split": (Annotated[str | None, typer.Option("--split", help=SPLIT_HELP)], None),
    "splits_file": (Annotated[Path | None, typer.Option("--splits", help=SPLITS_HELP)], None),
    "seed": (Annotated[int | None, typer.Option("--seed", min=0, help="Seed of --split and --max-per-class (default: 0).")], None),
    "max_per_class": (
        Annotated[int | None, typer.Option("--max-per-class", min=2, help="Keep at most so many images of a class, drawn by chance.")],
        None,
    ),
    "min_images": (
        Annotated[
            int | None, typer.Option("--min-images", min=2, help="Drop classes with fewer readable images (default: 2, fewer is an error).")
        ],
        None,
    ),
    "strict": (Annotated[bool | None, typer.Option("--strict/--no-strict", help=STRICT_HELP, show_default=False)], None),
    "licence": (Annotated[str, typer.Option("--licence", help="Licence text to keep in the stores.")], ""),
    "workers": (Annotated[int | None, typer.Option("--workers", "-j", min=1, help=WORKERS_HELP)], None),
    "replace": (Annotated[bool, typer.Option("--replace", help=REPLACE_HELP)], False),
}  # fmt: skip

Kind = Callable[..., "list[Job]"]
Dirs = Annotated[list[Path], typer.Argument(metavar="DIR", help="Folders of the dataset; one store each.")]
Dir = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the dataset.")]


def kind(name: str, size: int = 128, fit: str = "squash", into: typer.Typer = app) -> Callable[[Kind], Kind]:
    """Registers a function that gives the jobs of its own arguments as a command of `into` which has the shared options too."""

    def register(function: Kind) -> Kind:
        own = dict(inspect.signature(function).parameters)
        shared = {
            key: inspect.Parameter(
                key, inspect.Parameter.KEYWORD_ONLY, default={"size": size, "fit": fit}.get(key, default), annotation=annotation
            )
            for key, (annotation, default) in _SHARED.items()
        }

        def command(**given: Any) -> None:
            _run(lambda: function(**{key: given.pop(key) for key in own}), given)

        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own.values()] + list(shared.values())
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        command.__doc__ = function.__doc__
        into.command(name, no_args_is_help=True)(command)
        return function

    return register


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
    from smatcli.engine.prepare import folder_jobs

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


def jobs_of(kind: str, paths: Iterable[str | Path], **options: Any) -> "list[Job]":
    from functools import partial

    from smatcli.data.sources import open_source
    from smatcli.engine.prepare import Job

    return [Job(None, None, partial(open_source, kind, path, **options), f"{kind} {path}") for path in paths]


def _each(dirs: Iterable[Path], *marks: str) -> list[Path]:
    """Each folder, or in its stead the folders in it, when these have one of the marks and it has none."""
    found = []
    for path in dirs:
        inner = []
        if path.is_dir() and not any((path / mark).exists() for mark in marks):
            inner = [one for one in sorted(path.iterdir()) if any((one / mark).exists() for mark in marks)]
        found += inner or [path]
    return found


def _run(jobs: "Callable[[], list[Job]]", options: dict[str, Any]) -> None:
    from smatcli.engine.prepare import PrepareError, prepare
    from smatcli.engine.reporter import auto_reporter

    try:
        results = prepare(jobs(), reporter=auto_reporter(), **options)
    except PrepareError as error:
        _print_prepared(error.results)
        raise
    _print_prepared(results)


def _print_prepared(results: "Sequence[Prepared]") -> None:
    from smatcli.cli.output import print_table, size_text

    rows: list[list[Any]] = []
    for r in results:
        if r.status == "failed":
            rows.append([r.name, *["-"] * 6, f"{r.seconds:.1f}", r.status])
        else:
            rows.append([r.name, *r.classes, f"{r.images:,}", r.unreadable_count, size_text(r.bytes), f"{r.seconds:.1f}", r.status])
    if len(rows) > 1:
        made = [r for r in results if r.status != "failed"]
        sums = [sum(r.classes[i] for r in made) for i in range(3)]
        total = sum(r.bytes for r in made)
        images, unreadable, seconds = (sum(getattr(r, key) for r in made) for key in ("images", "unreadable_count", "seconds"))
        rows.append(["in all", *sums, f"{images:,}", unreadable, size_text(total), f"{seconds:.1f}", f"{len(made)} of {len(results)}"])
    print_table(["dataset", "train", "valid", "test", "images", "unreadable", "on disk", "seconds", "status"], rows, total=len(rows) > 1)
