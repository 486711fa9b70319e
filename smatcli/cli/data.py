"""`smat data`: make, list, check and look at stores."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smatcli.engine.prepare import Prepared

ROOT_HELP = "Folder of the stores, searched with its subfolders, by default $SMAT_DATA, else data."

app = typer.Typer(help="Make, list, check and look at stores of images (one HDF5 file per dataset).", no_args_is_help=True)
prepare = typer.Typer(help="Turn source data into stores; `smat data prepare folder --help`.", no_args_is_help=True)
app.add_typer(prepare, name="prepare")

Name = Annotated[str, typer.Argument(help="Dataset name, folder/name, or the path of a store.")]
RootOption = Annotated[Path | None, typer.Option("--root", help=ROOT_HELP, show_default=False)]


@prepare.command("folder", no_args_is_help=True)
def prepare_folder(
    sources: Annotated[list[str], typer.Argument(metavar="SRC", help="Directories or ZIPs of class folders; one store each.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the stores; made if missing.")],
    name: Annotated[str | None, typer.Option("--name", help="Dataset name, for a single source (default: its file name).")] = None,
    size: Annotated[int, typer.Option("--size", min=1, max=4096, help="Side of the stored square images, pixels.")] = 64,
    fit: Annotated[
        Literal["crop", "squash"], typer.Option("--fit", help="Keep the centre square, or squash the whole image as Meta-Dataset does.")
    ] = "crop",
    split: Annotated[
        str | None, typer.Option("--split", help="Per cent of the classes for train/valid/test, drawn by chance (default: 65/15/20).")
    ] = None,
    splits: Annotated[
        Path | None, typer.Option("--splits", help="JSON with the class names of train, valid and test; instead of --split.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of the split (default: 0).")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="An unreadable image is an error, and no store is written.")] = False,
    min_images: Annotated[
        int | None, typer.Option("--min-images", min=2, help="Drop classes with fewer readable images (default: 2, fewer is an error).")
    ] = None,
    depth: Annotated[int, typer.Option("--depth", min=1, help="Folders that make a class: 2 for group/class/image.")] = 1,
    licence: Annotated[str, typer.Option("--licence", help="Licence text to keep in the stores.")] = "",
    workers: Annotated[int | None, typer.Option("--workers", "-j", min=1, help="Decoding threads (default: all cores).")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Rebuild a store that exists with other content.")] = False,
) -> None:
    """Make one store from each directory or ZIP of class folders (<class name>/<image>).

    Any image that Pillow reads, of any mode and size: the first frame, upright, on white. Unreadable images are counted and named.
    What was already prepared from the same files with the same settings is kept.

    The split is by class. Test, train and valid get at least 5 classes each, in this order; with 10 to 14 classes there are no valid
    classes, with fewer than 10 all are test classes.
    """
    from smatcli.engine.prepare import PrepareError
    from smatcli.engine.prepare import prepare_folder as run
    from smatcli.engine.reporter import auto_reporter

    try:
        results = run(
            sources, out, name=name, size=size, fit=fit, split=split, splits_file=splits, seed=seed, strict=strict, licence=licence,
            min_images=min_images, depth=depth, workers=workers, replace=replace, reporter=auto_reporter(),
        )  # fmt: skip
    except PrepareError as error:
        _print_prepared(error.results)
        raise
    _print_prepared(results)


@app.command("ls")
def list_stores(root: Annotated[Path | None, typer.Argument(help=ROOT_HELP, show_default=False)] = None) -> None:
    """List the stores below a folder."""
    from smatcli.data.listing import all_stores, default_root
    from smatcli.data.store import Store
    from smatcli.errors import UserError

    folder = root or default_root()
    rows: list[list[Any]] = []
    damaged = []
    for path in all_stores(folder):
        key = path.relative_to(folder).with_suffix("").as_posix() if folder.is_dir() else path.stem
        try:
            store = Store.open(path)
        except UserError as error:
            damaged.append(str(error))
            continue
        low, high = int(store.counts.min()), int(store.counts.max())
        spread = f"{low}" if low == high else f"{low} to {high}"
        rows.append([key, *_parts(store), f"{len(store):,}", spread, store.image_size, _size(path.stat().st_size), store.content_hash[:12]])
    if rows:
        _table(["dataset", "train", "valid", "test", "images", "a class", "px", "on disk", "content"], rows)
    elif not damaged:
        typer.echo(f"{folder}: no stores; `smat data prepare folder SRC... --out {folder}` makes some")
    for line in damaged:
        typer.echo(line, err=True)


@app.command("info", no_args_is_help=True)
def info(name: Name, root: RootOption = None) -> None:
    """Describe one store: origin, licence, hash, and its classes by split."""
    from smatcli.data.listing import find_store
    from smatcli.data.store import SPLITS, Store

    store = Store.open(find_store(name, root))
    facts = {
        "file": f"{store.path} ({_size(store.path.stat().st_size)})",
        "dataset": store.name,
        "images": f"{len(store):,} of {store.image_size} x {store.image_size} px (fit: {store.facts.get('fit')})",
        "unreadable": store.facts.get("unreadable"),
        "source": store.source or "not recorded",
        "licence": store.licence or "not recorded",
        "content": f"sha256 {store.content_hash}",
    }
    for key, value in facts.items():
        typer.echo(f"{key:<11}{value}")
    for split in SPLITS:
        classes = store.classes(split)
        typer.echo(f"{split:<11}{len(classes)} classes{': ' if len(classes) else ''}" + ", ".join(
            f"{store.class_names[c]} ({store.counts[c]})" for c in classes))  # fmt: skip


@app.command("verify")
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(help="Dataset names or paths (default: all below the root).", show_default=False)
    ] = None,
    root: RootOption = None,
) -> None:
    """Read every image again and compare with the content hash; exit code 1 if a store is damaged."""
    from smatcli.data.listing import all_stores, default_root, find_store
    from smatcli.data.verify import verify_store
    from smatcli.engine.reporter import auto_reporter
    from smatcli.errors import SmatError, UserError

    paths = [find_store(name, root) for name in names] if names else all_stores(root or default_root())
    if not paths:
        raise UserError(f"{root or default_root()}: no stores to verify")
    reporter = auto_reporter()
    bad = []
    reporter.start(len(paths), "verify", unit="stores")
    for done, path in enumerate(paths, 1):
        problem = verify_store(path)
        typer.echo(f"{path}: {problem or 'sound'}")
        bad += [path] if problem else []
        reporter.update(done, damaged=len(bad))
    reporter.finish()
    if bad:
        raise SmatError(f"{len(bad)} of {len(paths)} stores are damaged: {', '.join(map(str, bad))}; prepare them again with --replace")


@app.command("show", no_args_is_help=True)
def show(
    name: Name,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Picture file (default: <name>.png).", show_default=False)] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, max=200, help="Classes.")] = 20,
    columns: Annotated[int, typer.Option("--columns", min=1, max=100, help="Images a class.")] = 12,
    split: Annotated[Literal["train", "valid", "test", "all"], typer.Option("--split", help="Classes of this split only.")] = "all",
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite the picture if it exists.")] = False,
    root: RootOption = None,
) -> None:
    """Draw a contact sheet: one row of images a class, with its name and split."""
    from smatcli.data.contact_sheet import write_contact_sheet
    from smatcli.data.listing import find_store
    from smatcli.data.store import Store

    store = Store.open(find_store(name, root))
    typer.echo(write_contact_sheet(store, out or Path(f"{store.name}.png"), rows, columns, split, replace))


@app.command("synthetic", no_args_is_help=True)
def synthetic(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the stores; made if missing.")],
    seed: Annotated[int, typer.Option("--seed", min=0, help="Equal seeds give equal images.")] = 0,
    size: Annotated[int, typer.Option("--size", min=8, max=512, help="Side of the images, pixels.")] = 32,
    classes: Annotated[int, typer.Option("--classes", min=1, help="Classes a domain.")] = 40,
    per_class: Annotated[int, typer.Option("--per-class", min=2, help="Images a class.")] = 30,
    domains: Annotated[str | None, typer.Option("--domains", help="Only these, a,b,c (default: all).", show_default=False)] = None,
) -> None:
    """Draw the synthetic datasets: training domains and unseen ones, from a seed, without any download."""
    from smatcli.data.synthetic import make_synthetic
    from smatcli.engine.reporter import auto_reporter

    names = [name.strip() for name in domains.split(",") if name.strip()] if domains is not None else None
    for path in make_synthetic(out, seed, size, classes, per_class, names, auto_reporter()):
        typer.echo(path)


def _print_prepared(results: "Sequence[Prepared]") -> None:
    rows: list[list[Any]] = []
    for r in results:
        if r.status == "failed":
            rows.append([r.name, *["-"] * 6, f"{r.seconds:.1f}", r.status])
        else:
            rows.append([r.name, *r.classes, f"{r.images:,}", r.unreadable_count, _size(r.bytes), f"{r.seconds:.1f}", r.status])
    if len(rows) > 1:
        made = [r for r in results if r.status != "failed"]
        sums = [sum(r.classes[i] for r in made) for i in range(3)]
        total = sum(r.bytes for r in made)
        images, unreadable, seconds = (sum(getattr(r, key) for r in made) for key in ("images", "unreadable_count", "seconds"))
        rows.append(["in all", *sums, f"{images:,}", unreadable, _size(total), f"{seconds:.1f}", f"{len(made)} of {len(results)}"])
    _table(["dataset", "train", "valid", "test", "images", "unreadable", "on disk", "seconds", "status"], rows, total=len(rows) > 1)


def _table(heads: "Sequence[str]", rows: list[list[Any]], total: bool = False) -> None:
    from rich.table import Table
    from rich.text import Text

    from smatcli.cli.output import console

    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head, justify="left" if head in ("dataset", "content", "status") else "right", no_wrap=True)
    for index, row in enumerate(rows):
        table.add_row(*(Text(str(cell)) for cell in row), style="bold" if total and index == len(rows) - 1 else None)
    console().print(table)


def _parts(store: Any) -> list[int]:
    return [len(store.classes(split)) for split in ("train", "valid", "test")]


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
