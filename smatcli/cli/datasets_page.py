"""`python -m smatcli.cli.datasets_page data/README.md` writes the tables of the known datasets into that page, between its two marks."""

import sys
from pathlib import Path

from smatcli.data.catalogue.expected import counts_text
from smatcli.data.catalogue.known import Known
from smatcli.data.catalogue.paper import PMF_URL, RECORDS_URL, SPLITS_URL
from smatcli.data.catalogue.suites import collections
from smatcli.data.catalogue.tuning import FGVC_LISTS, VTAB_LISTS

BEGIN = "<!-- known datasets: made by `python -m smatcli.cli.datasets_page data/README.md`, do not edit by hand -->"
END = "<!-- end of known datasets -->"


def render() -> str:
    """The Markdown between the marks."""
    groups = collections()
    parts = [
        "### The 18 datasets of the paper",
        "Meta-Dataset's eight training sources, then ten that no training sees. `smat data doctor` says which of them are here, and "
        "`smat data verify` compares what a store holds with this table.",
        _facts(groups["paper"]),
        "One command each (for Meta-Dataset's ten also all at once, `smat data prepare meta-dataset RECORDS --out data/paper`, but then "
        "Quick, Draw! at 128 px too: 2.5 TB). Stores have squashed images of 128 px, of 28 px for Quick, Draw! and of 224 px for the last "
        "five, the sizes at which the paper's own release uses them.",
        _commands(groups["paper"]),
        f"RECORDS is the folder that [Meta-Dataset's conversion]({RECORDS_URL}) made. [PMF's HDF5 files]({PMF_URL}) of it (all but "
        "ImageNet) do as well: `smat data prepare pmf-h5 DIR`. From the datasets' own downloads, with "
        f"[Meta-Dataset's split files]({SPLITS_URL}):",
        _raw(groups["paper"]),
        "DOWNLOADS is any folder; without network leave `--download` out, and the error says which file to put where. Omniglot and "
        "ImageNet need Meta-Dataset's conversion (Omniglot also PMF's), as their episodes are drawn by alphabet and by WordNet.",
        "### VTAB-1k",
        f"19 tasks of 800 training and 200 validation images each; [this script]({VTAB_LISTS}) fetches them and writes the list files. "
        "All at once: `smat data prepare vtab VTAB --size 224 --out data/vtab`.",
        _facts(groups["vtab"]),
        _commands(groups["vtab"]),
        "### FGVC",
        f"Five tasks; [VPT's lists]({FGVC_LISTS}) train.json, val.json and test.json go beside the images of each download. "
        "All at once: `smat data prepare fgvc FGVC --size 256 --out data/fgvc`.",
        _facts(groups["fgvc"]),
        _commands(groups["fgvc"]),
        'A licence here is what the origin says about itself, in short; read it there. "none known" is no permission.',
    ]
    return "\n\n".join(parts)


def update(page: Path) -> None:
    """Replace what stands between the marks of `page`."""
    from smatcli.safe.files import atomic_write_text

    head, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    tail = rest.partition(END)[2]
    atomic_write_text(page, f"{head}{BEGIN}\n\n{render()}\n\n{END}{tail}")


def _facts(group: tuple[Known, ...]) -> str:
    tuning = group[0].collection != "paper"
    split = "classes | images train/valid/test" if tuning else "classes train/valid/test | images"
    lines = [f"| dataset | store | {split} | licence | download | raw store |", "|---|---|---|---|---|---|---|"]
    for known in group:
        numbers = [f"{known.number_of_classes:,}", counts_text(known.images_by_split or ())]
        if not isinstance(known.classes, int):
            numbers = [counts_text(known.classes), "" if known.images is None else f"{known.images:,}"]
        cells = [f"[{known.title}]({known.origin})", f"`{known.name}`", *numbers, known.licence, known.download, _size(known)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _commands(group: tuple[Known, ...]) -> str:
    return "\n".join(f"    {known.command_for()}" for known in group)


def _raw(group: tuple[Known, ...]) -> str:
    return "\n".join(f"    {known.command_for(raw=True)}" for known in group if known.raw)


def _size(known: Known) -> str:
    size = known.store_bytes
    if size is None:
        return ""
    return f"{size / 1e9:.1f} GB at {known.size} px" if size >= 1e9 else f"{size / 1e6:.0f} MB at {known.size} px"


if __name__ == "__main__":
    update(Path(sys.argv[1] if len(sys.argv) > 1 else "data/README.md"))
