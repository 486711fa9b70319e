"""Options and printing shared by every `smat data prepare KIND`."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from smatcli.engine.prepare.preparation import Job, Prepared


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


def kind(name: str, size: int = 128, fit: str = "squash", *, into: typer.Typer) -> Callable[[Kind], Kind]:
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


def jobs_of(kind: str, paths: Iterable[str | Path], **options: Any) -> "list[Job]":
    from functools import partial

    from smatcli.data.sources import open_source
    from smatcli.engine.prepare.preparation import Job

    return [Job(None, None, partial(open_source, kind, path, **options), f"{kind} {path}") for path in paths]


def _run(jobs: "Callable[[], list[Job]]", options: dict[str, Any]) -> None:
    from smatcli.engine.prepare.preparation import PrepareError, prepare
    from smatcli.runs.reporter import auto_reporter

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
