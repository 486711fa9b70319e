"""`python -m smatcli.cli.datasets_page data/README.md` writes the tables of the known datasets into that page, between its two marks."""

import sys
from pathlib import Path

from smatcli.data.catalogue.datasets import COLLECTIONS, LINKS, KnownDataset
from smatcli.data.catalogue.expected import counts_text

BEGIN = "<!-- known datasets: made by `python -m smatcli.cli.datasets_page data/README.md`, do not edit by hand -->"
END = "<!-- end of known datasets -->"


def render() -> str:
    """The Markdown between the marks."""
    links = LINKS["paper"]
    parts = [
        "### The 18 datasets of the paper",
        "Meta-Dataset's eight training sources, then ten that no training sees. `smat data doctor` says which of them are here, and "
        "`smat data verify` compares what a store holds with this table.",
        _facts(COLLECTIONS["paper"]),
        "One command each (for Meta-Dataset's ten also all at once, `smat data prepare meta-dataset RECORDS --out data/paper`, but then "
        "Quick, Draw! at 128 px too: 2.5 TB). Stores have squashed images of 128 px, of 28 px for Quick, Draw! and of 224 px for the last "
        "five, the sizes at which the paper's own release uses them.",
        _commands(COLLECTIONS["paper"]),
        f"RECORDS is the folder that [Meta-Dataset's conversion]({links['records']}) made. [PMF's HDF5 files]({links['pmf']}) of it "
        "(all but ImageNet) do as well: `smat data prepare pmf-h5 DIR`. From the datasets' own downloads, with "
        f"[Meta-Dataset's split files]({links['splits']}):",
        _raw(COLLECTIONS["paper"]),
        "DOWNLOADS is any folder; without network leave `--download` out, and the error says which file to put where. Omniglot and "
        "ImageNet need Meta-Dataset's conversion (Omniglot also PMF's), as their episodes are drawn by alphabet and by WordNet.",
        "### VTAB-1k",
        f"19 tasks of 800 training and 200 validation images each; [this script]({LINKS['vtab']['lists']}) fetches them and writes the "
        "list files. All at once: `smat data prepare vtab VTAB --size 224 --out data/vtab`.",
        _facts(COLLECTIONS["vtab"]),
        _commands(COLLECTIONS["vtab"]),
        "### FGVC",
        f"Five tasks; [VPT's lists]({LINKS['fgvc']['lists']}) train.json, val.json and test.json go beside the images of each download. "
        "All at once: `smat data prepare fgvc FGVC --size 256 --out data/fgvc`.",
        _facts(COLLECTIONS["fgvc"]),
        _commands(COLLECTIONS["fgvc"]),
        'A licence here is what the origin says about itself, in short; read it there. "none known" is no permission.',
    ]
    return "\n\n".join(parts)


def update(page: Path) -> None:
    """Replace what stands between the marks of `page`."""
    from smatcli.safe.files import atomic_write_text

    head, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    tail = rest.partition(END)[2]
    atomic_write_text(page, f"{head}{BEGIN}\n\n{render()}\n\n{END}{tail}")


def _facts(group: tuple[KnownDataset, ...]) -> str:
    tuning = group[0].collection != "paper"
    split = "classes | images train/valid/test" if tuning else "classes train/valid/test | images"
    lines = [f"| dataset | store | {split} | licence | download | raw store |", "|---|---|---|---|---|---|---|"]
    for dataset in group:
        numbers = [f"{dataset.number_of_classes:,}", counts_text(dataset.images_by_split or ())]
        if not isinstance(dataset.classes, int):
            numbers = [counts_text(dataset.classes), "" if dataset.images is None else f"{dataset.images:,}"]
        cells = [f"[{dataset.title}]({dataset.origin})", f"`{dataset.name}`", *numbers, dataset.licence, dataset.download, _size(dataset)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _commands(group: tuple[KnownDataset, ...]) -> str:
    return "\n".join(f"    {dataset.command_for()}" for dataset in group)


def _raw(group: tuple[KnownDataset, ...]) -> str:
    return "\n".join(f"    {dataset.command_for(raw=True)}" for dataset in group if dataset.raw)


def _size(dataset: KnownDataset) -> str:
    size = dataset.store_bytes
    if size is None:
        return ""
    return f"{size / 1e9:.1f} GB at {dataset.size} px" if size >= 1e9 else f"{size / 1e6:.0f} MB at {dataset.size} px"


if __name__ == "__main__":
    update(Path(sys.argv[1] if len(sys.argv) > 1 else "data/README.md"))
