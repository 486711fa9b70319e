"""Options and output shared by every `smat data prepare KIND`."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from smatcli.engine.prepare.preparation import Prepared, PrepareJob


SPLIT_HELP = "Percentages of a random split of the classes into train/valid/test. Default: the split of the source, else 65/15/20."
SPLITS_HELP = "JSON file with the class names of train, valid and test (like Meta-Dataset's), instead of --split."
STRICT_HELP = "Stop at an unreadable image and write no store. Default: only for official records and lists."
ENCODING_HELP = "Store pixels, or JPEG: several times smaller, but decoded at every read."
REPLACE_HELP = "Rebuild an existing store whose content differs."
WORKERS_HELP = "Decoding threads. Default: all cores."


# The options of every kind: name -> (type, default). The defaults of `size` and `fit` depend on the kind.
_SHARED: dict[str, tuple[Any, Any]] = {
    "out": (Annotated[Path, typer.Option("--out", "-o", help="Folder of the stores; created if missing.")], inspect.Parameter.empty),
    "name": (Annotated[str | None, typer.Option("--name", help="Dataset name, for a single source. Default: that of the source.")], None),
    "size": (Annotated[int, typer.Option("--size", min=1, max=4096, help="Side of the stored square images in pixels.")], 64),
    "fit": (
        Annotated[
            Literal["crop", "squash"], typer.Option("--fit", help="Crop to the centre square, or squash the whole image (Meta-Dataset).")
        ],
        "crop",
    ),
    "encoding": (Annotated[Literal["raw", "jpeg"], typer.Option("--encoding", help=ENCODING_HELP)], "raw"),
    "split": (Annotated[str | None, typer.Option("--split", help=SPLIT_HELP)], None),
    "splits_file": (Annotated[Path | None, typer.Option("--splits", help=SPLITS_HELP)], None),
    "seed": (Annotated[int | None, typer.Option("--seed", min=0, help="Seed of --split and --max-per-class. Default: 0.")], None),
    "max_per_class": (
        Annotated[int | None, typer.Option("--max-per-class", min=2, help="Keep at most this many random images per class.")],
        None,
    ),
    "min_images": (
        Annotated[
            int | None, typer.Option("--min-images", min=2, help="Drop classes with fewer readable images. Default: an error below 2.")
        ],
        None,
    ),
    "strict": (Annotated[bool | None, typer.Option("--strict/--no-strict", help=STRICT_HELP, show_default=False)], None),
    "licence": (Annotated[str, typer.Option("--licence", help="Licence text to record in the stores.")], ""),
    "workers": (Annotated[int | None, typer.Option("--workers", "-j", min=1, help=WORKERS_HELP)], None),
    "replace": (Annotated[bool, typer.Option("--replace", help=REPLACE_HELP)], False),
}  # fmt: skip


Kind = Callable[..., "list[PrepareJob]"]


Dirs = Annotated[list[Path], typer.Argument(metavar="DIR", help="Folders of the dataset; one store each.")]


Dir = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the dataset.")]


def kind(name: str, size: int = 128, fit: str = "squash", *, into: typer.Typer) -> Callable[[Kind], Kind]:
    """Register a function that returns jobs as a command of `into`, and add the shared options."""

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


def jobs_of(kind: str, paths: Iterable[str | Path], **options: Any) -> "list[PrepareJob]":
    """Return a job per path, which prepares a source of this `kind` with these `options`."""
    from functools import partial

    from smatcli.data.sources import open_source
    from smatcli.engine.prepare.preparation import PrepareJob

    return [PrepareJob(None, None, partial(open_source, kind, path, **options), f"{kind} {path}") for path in paths]


def _run(jobs: "Callable[[], list[PrepareJob]]", options: dict[str, Any]) -> None:
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
        prepared = [r for r in results if r.status != "failed"]
        sums = [sum(r.classes[i] for r in prepared) for i in range(3)]
        total = sum(r.bytes for r in prepared)
        images, unreadable, seconds = (sum(getattr(r, key) for r in prepared) for key in ("images", "unreadable_count", "seconds"))
        rows.append(["total", *sums, f"{images:,}", unreadable, size_text(total), f"{seconds:.1f}", f"{len(prepared)} of {len(results)}"])
    print_table(["dataset", "train", "valid", "test", "images", "unreadable", "on disk", "seconds", "status"], rows, total=len(rows) > 1)
