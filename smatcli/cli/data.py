"""`smat data`: create, list, check and view stores."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from smatcli.cli import prepare
from smatcli.cli.doctor import doctor
from smatcli.cli.episodes import episodes
from smatcli.cli.output import print_table, size_text
from smatcli.safe.text import shown

ROOT_HELP = "Folder of the stores, searched recursively. Default: $SMAT_DATA, else data."

app = typer.Typer(help="Create, list, check and view stores of images (one HDF5 file per dataset).", no_args_is_help=True)
app.add_typer(prepare.app, name="prepare")

Name = Annotated[str, typer.Argument(help="Dataset name, folder/name, or the path of a store.")]
RootOption = Annotated[Path | None, typer.Option("--root", help=ROOT_HELP, show_default=False)]


@app.command("ls")
def list_stores(root: Annotated[Path | None, typer.Argument(help=ROOT_HELP, show_default=False)] = None) -> None:
    """List the stores in a folder and its subfolders."""
    from smatcli.data.stores.opening import all_stores, default_root
    from smatcli.data.stores.store import Store
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
        rows.append(
            [
                key,
                *_classes(store),
                f"{len(store):,}",
                spread,
                store.image_size,
                size_text(path.stat().st_size),
                store.content_hash[:12],
            ]
        )
    if rows:
        print_table(["dataset", "train", "valid", "test", "images", "per class", "px", "on disk", "content"], rows)
    elif not damaged:
        typer.echo(f"{folder}: no stores; `smat data prepare folder SRC... --out {folder}` creates them")
    for line in damaged:
        typer.echo(line, err=True)


@app.command("info", no_args_is_help=True)
def info(name: Name, root: RootOption = None) -> None:
    """Show the origin, licence, hash and classes of a store."""
    from smatcli.data.stores.opening import find_store
    from smatcli.data.stores.store import SPLITS, Store

    store = Store.open(find_store(name, root))
    facts = {
        "file": f"{store.path} ({size_text(store.path.stat().st_size)})",
        "dataset": store.name,
        "images": f"{len(store):,} of {store.image_size} x {store.image_size} px, {store.encoding} (fit: {store.facts.get('fit')})",
        "unreadable": store.facts.get("unreadable"),
        "source": store.source or "not recorded",
        "licence": store.licence or "not recorded",
        "content": f"sha256 {store.content_hash}",
    }
    for key, value in facts.items():
        typer.echo(shown(f"{key:<11}{value}"))
    if store.ontology is not None:
        nodes = ", ".join(f"{len(members)} {split}" for split, members in store.ontology.nodes.items())
        typer.echo(f"{'ontology':<11}{store.ontology.kind}: {nodes}")
    if store.image_split is not None:
        for split in SPLITS:
            typer.echo(f"{split:<11}{len(store.image_rows(split)):,} images")
        each = ", ".join(f"{name} ({count})" for name, count in zip(store.class_names, store.counts, strict=True))
        typer.echo(shown(f"{'classes':<11}{len(store.class_names)}, split by image: {each}"))
        return
    for split in SPLITS:
        classes = store.classes(split)
        each = ", ".join(f"{store.class_names[c]} ({store.counts[c]})" for c in classes)
        typer.echo(shown(f"{split:<11}{len(classes)} classes{': ' if len(classes) else ''}{each}"))


@app.command("verify")
def verify(
    names: Annotated[list[str] | None, typer.Argument(help="Dataset names or paths. Default: all in the root.", show_default=False)] = None,
    root: RootOption = None,
) -> None:
    """Read every image and compare it with the content hash; exit code 1 if a store is damaged.

    If a store has the name of a dataset of the paper (see `smat data doctor`), its numbers of classes and images are also compared with the
    expected numbers. A mismatch is reported, but does not change the exit code.
    """
    from smatcli.cli.doctor import print_comparisons
    from smatcli.data.catalogue.expected import compare, identify
    from smatcli.data.stores.opening import all_stores, default_root, find_store
    from smatcli.data.stores.store import Store
    from smatcli.data.stores.verify import verify_store
    from smatcli.errors import SmatError, UserError
    from smatcli.runs.reporter import auto_reporter

    paths = [find_store(name, root) for name in names] if names else all_stores(root or default_root())
    if not paths:
        raise UserError(f"{root or default_root()}: no stores to verify")
    reporter = auto_reporter()
    bad, compared = [], []
    reporter.start(len(paths), "verify", unit="stores")
    for done, path in enumerate(paths, 1):
        problem = verify_store(path)
        typer.echo(f"{path}: {problem or 'sound'}")
        bad += [path] if problem else []
        if not problem and (dataset := identify(store := Store.open(path))):
            compared.append((path, compare(store, dataset)))
        reporter.update(done, damaged=len(bad))
    reporter.finish()
    print_comparisons(compared)
    if bad:
        raise SmatError(f"{len(bad)} of {len(paths)} stores are damaged: {', '.join(map(str, bad))}; prepare them again with --replace")


app.command("doctor")(doctor)


@app.command("show", no_args_is_help=True)
def show(
    name: Name,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Image file. Default: <name>.png.", show_default=False)] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, max=200, help="Number of classes.")] = 20,
    columns: Annotated[int, typer.Option("--columns", min=1, max=100, help="Images per class.")] = 12,
    split: Annotated[
        Literal["train", "valid", "test", "all"], typer.Option("--split", help="Draw only the classes of this split.")
    ] = "all",
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite an existing file.")] = False,
    root: RootOption = None,
) -> None:
    """Draw a contact sheet with a row of images per class, labelled with the class name and split."""
    from smatcli.data.pictures import write_contact_sheet
    from smatcli.data.stores.opening import find_store
    from smatcli.data.stores.store import Store

    store = Store.open(find_store(name, root))
    typer.echo(write_contact_sheet(store, out or Path(f"{store.name}.png"), rows, columns, split, replace))


app.command("episodes", no_args_is_help=True)(episodes)


@app.command("synthetic", no_args_is_help=True)
def synthetic(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the stores; created if missing.")],
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the images.")] = 0,
    size: Annotated[int, typer.Option("--size", min=8, max=512, help="Image side in pixels.")] = 32,
    classes: Annotated[int, typer.Option("--classes", min=1, help="Classes per domain.")] = 40,
    per_class: Annotated[int, typer.Option("--per-class", min=2, help="Images per class.")] = 30,
    domains: Annotated[str | None, typer.Option("--domains", help="Datasets to generate: a,b,c. Default: all.", show_default=False)] = None,
) -> None:
    """Generate the synthetic datasets (training domains and unseen domains) from a seed. Nothing is downloaded."""
    from smatcli.data.synthetic import make_synthetic
    from smatcli.runs.reporter import auto_reporter

    names = [name.strip() for name in domains.split(",") if name.strip()] if domains is not None else None
    for path in make_synthetic(out, seed, size, classes, per_class, names, auto_reporter()):
        typer.echo(path)


def _classes(store: Any) -> list[int]:
    return [len(store.classes(split)) for split in ("train", "valid", "test")]
