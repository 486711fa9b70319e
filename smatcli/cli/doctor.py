"""`smat data doctor`, and the table of expected and actual numbers that `smat data verify` prints."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from smatcli.cli.output import print_table, size_text

if TYPE_CHECKING:
    from smatcli.data.catalogue.doctor import Finding
    from smatcli.data.catalogue.expected import Comparison

ROOT_HELP = "Folder of the stores, searched recursively. Default: $SMAT_DATA, else data."
NAMES_HELP = "Datasets to show, such as omniglot. Default: the whole collection."
COLLECTION_HELP = "The paper's 18 datasets, the 19 tasks of VTAB-1k, the 5 of FGVC, or all of them."


def doctor(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help=NAMES_HELP, show_default=False)] = None,
    collection: Annotated[Literal["paper", "vtab", "fgvc", "all"], typer.Option("--collection", "-c", help=COLLECTION_HELP)] = "paper",
    root: Annotated[Path | None, typer.Option("--root", help=ROOT_HELP, show_default=False)] = None,
) -> None:
    """Show which datasets of the paper are present, wrong or missing, and how to get them.

    Stores are identified by name. This command is fast because it reads only their metadata; `smat data verify` also reads the images.
    """
    from smatcli.data.catalogue.doctor import diagnose
    from smatcli.data.stores.opening import default_root

    folder = root or default_root()
    findings = diagnose(folder, _chosen(names, collection))
    print_table(["dataset", "", "state", "classes", "images", "px", "store"], [_row(f) for f in findings], left=("", "state", "store"))
    for finding in findings:
        if finding.problems:
            typer.echo(f"{finding.path}: differs from {finding.dataset.title}: {'; '.join(finding.problems)}")
        for remark in finding.remarks:
            typer.echo(f"{finding.path}: {remark}")
    counts = {state: sum(f.state == state for f in findings) for state in ("present", "wrong", "missing")}
    typer.echo(f"\n{len(findings)} datasets in {folder}: " + ", ".join(f"{count} {state}" for state, count in counts.items()))
    lacking = [f for f in findings if f.state != "present"]
    if lacking:
        _print_instructions(lacking, str(folder))


def print_comparisons(comparisons: "Iterable[tuple[Path, Comparison]]") -> None:
    """Print the table of expected and actual numbers, and a line per mismatch."""
    rows: list[list[Any]] = []
    lines = []
    for path, comparison in comparisons:
        for i, item in enumerate(comparison.items):
            head = ["", ""] if i else [path.stem, comparison.dataset.title]
            rows.append([*head, item.what, item.expected, item.actual, "" if item.agrees else "MISMATCH"])
        lines += [f"{path}: differs from {comparison.dataset.title}: {mismatch}" for mismatch in comparison.mismatches]
        lines += [f"{path}: {remark}" for remark in comparison.remarks]
    if rows:
        typer.echo()
        print_table(["dataset", "identified as", "quantity", "expected", "actual", ""], rows, left=("identified as", "quantity", ""))
    for line in lines:
        typer.echo(line)


def _chosen(names: list[str] | None, collection: str) -> tuple[Any, ...]:
    from smatcli.data.catalogue.datasets import COLLECTIONS, find_dataset
    from smatcli.errors import UserError, nearest

    if not names:
        return tuple(data for name, group in COLLECTIONS.items() if collection in (name, "all") for data in group)
    among = tuple(data for name in sorted(COLLECTIONS, key=lambda name: name != collection) for data in COLLECTIONS[name])
    chosen = {name: find_dataset(name, among) for name in names}
    for name, dataset in chosen.items():
        if dataset is None:
            hint = nearest(name, [each.name for each in among])
            raise UserError(f"{name}: is not a known dataset{hint or '; `smat data doctor --collection all` lists them'}")
    return tuple(chosen.values())


def _row(finding: "Finding") -> list[Any]:
    from smatcli.data.catalogue.expected import counts_text

    store = finding.store
    if store is None:
        return [finding.dataset.name, finding.dataset.title, finding.state, "", "", "", finding.path or ""]
    split = finding.dataset.images_by_split
    classes = len(store.class_names) if split else counts_text(len(store.classes(part)) for part in ("train", "valid", "test"))
    return [finding.dataset.name, finding.dataset.title, finding.state, classes, f"{len(store):,}", store.image_size, finding.path]


def _print_instructions(findings: "list[Finding]", root: str) -> None:
    from smatcli.data.catalogue.datasets import LINKS

    typer.echo("\nHow to get the missing and wrong datasets:")
    for finding in findings:
        dataset = finding.dataset
        size = dataset.store_bytes
        store = f"; store: {size_text(size)}" if size else ""
        exists = finding.path == Path(root, dataset.collection, f"{dataset.name}.h5")
        replace = " --replace" if exists else ""
        typer.echo(f"\n{dataset.title}: {dataset.origin}")
        typer.echo(f"    licence: {dataset.licence}; download: {dataset.download}{store}")
        typer.echo(f"    {dataset.command_for(root)}{replace}")
        if dataset.raw:
            typer.echo(f"    {dataset.command_for(root, raw=True)}{replace}    # from the original download")
    links = LINKS["paper"]
    if any("meta-dataset RECORDS" in finding.dataset.command for finding in findings):
        typer.echo(
            f"\nRECORDS is the output folder of Meta-Dataset's conversion: {links['records']}\n"
            f"PMF's HDF5 files of it (all but ImageNet) can be used instead, with prepare pmf-h5: {links['pmf']}\n"
            f"The *_splits.json files of the other commands: {links['splits']}"
        )
