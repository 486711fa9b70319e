"""The table of known datasets: compare its numbers with the literature, its commands with the command line, its page with itself."""

import shlex

import click
import pytest
import typer

from smatcli.cli import app
from smatcli.cli.datasets_page import BEGIN, END, render, update
from smatcli.data.catalogue.datasets import COLLECTIONS, Counts, KnownDataset, find_dataset, read_collection
from smatcli.data.sources import SOURCES

PAPER = COLLECTIONS["paper"]
FGVC = COLLECTIONS["fgvc"]
VTAB = COLLECTIONS["vtab"]

EVERY = [known for group in COLLECTIONS.values() for known in group]
TEN = [known for known in PAPER if "meta-dataset" in known.command]

# Triantafillou et al., Meta-Dataset, ICLR 2020: classes for training, validation and test.
META_DATASET = {
    "ilsvrc_2012": (712, 158, 130),
    "omniglot": (883, 81, 659),
    "aircraft": (70, 15, 15),
    "cu_birds": (140, 30, 30),
    "dtd": (33, 7, 7),
    "quickdraw": (241, 52, 52),
    "fungi": (994, 200, 200),
    "vgg_flower": (71, 15, 16),
    "traffic_sign": (0, 0, 43),
    "mscoco": (0, 40, 40),
}


def named(name: str) -> KnownDataset:
    return next(known for known in EVERY if known.name == name)


def by_split(known: KnownDataset) -> Counts:
    """Classes by split; of a tuning task, images."""
    counts = known.images_by_split or known.classes
    assert not isinstance(counts, int)
    return counts


def test_the_paper_has_eighteen_and_the_benchmarks_nineteen_and_five():
    assert [len(group) for group in (PAPER, VTAB, FGVC)] == [18, 19, 5]
    assert len({known.name for known in EVERY}) == 42


def test_classes_of_meta_dataset_are_the_published_ones():
    assert {known.name: known.classes for known in TEN} == META_DATASET
    sums = [sum(by_split(known)[part] for known in TEN) for part in range(3)]
    assert sums == [3144, 598, 1192]
    assert sum(sums) == 4934  # the totals that its README gives


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("omniglot", 1623 * 20),  # 20 drawers of 1,623 characters
        ("aircraft", 100 * 100),
        ("dtd", 47 * 120),
        ("fungi", 85_578 + 4_182),  # training and validation images of the challenge
        ("cu_birds", 5_994 + 5_794),
        ("vgg_flower", 1_020 + 1_020 + 6_149),
        ("ilsvrc_2012", 1_281_167 - 403),  # without near-duplicates of CUB, Caltech-101 and Caltech-256
        ("mnist", 60_000 + 10_000),
        ("cifar10", 10 * 6_000),
        ("cifar100", 100 * 600),
        ("food101", 101 * 1_000),
        ("pets", 3_680 + 3_669),
        ("cars", 8_144 + 8_041),
    ],
)
def test_images_are_the_sum_of_the_published_parts(name, images):
    assert named(name).images == images


@pytest.mark.parametrize(
    ("name", "train"), [("CUB_200_2011", 5_994), ("nabirds", 23_929), ("Stanford-dogs", 12_000), ("Stanford-cars", 8_144)]
)
def test_vpt_splits_the_official_training_images(name, train):
    assert sum(by_split(named(f"fgvc_{name}"))[:2]) == train


def test_vtab_has_a_thousand_training_images_and_the_known_test_sets():
    assert all(by_split(known)[:2] == (800, 200) for known in VTAB)
    tests = {known.name.removeprefix("vtab_"): by_split(known)[2] for known in VTAB}
    assert tests["eurosat"] == 27_000 // 5
    assert tests["resisc45"] == 31_500 // 5
    assert tests["dsprites_loc"] == 737_280 // 10
    assert tests["patch_camelyon"] == 2**15
    assert tests["smallnorb_azi"] == 24_300 // 2
    assert tests["dtd"] == 47 * 40


@pytest.mark.parametrize("known", EVERY, ids=lambda known: known.name)
def test_numbers_are_consistent(known):
    assert known.title
    assert known.licence
    assert known.download
    assert known.origin.startswith("http")
    if known.images_by_split:
        assert isinstance(known.classes, int)
        assert known.images is None
        return
    assert isinstance(known.classes, tuple)
    assert len(known.classes) == 3
    if known.images_per_class:
        low, high = known.images_per_class
        assert low * known.number_of_classes <= known.images <= high * known.number_of_classes
    assert all(other != known.images for other in known.variants)


@pytest.mark.parametrize("group", [PAPER, VTAB + FGVC])
def test_names_lead_to_one_dataset_only(group):
    for known in group:
        for name in (known.name, known.name.upper().replace("_", "-"), *known.aliases):
            assert [one.name for one in group if find_dataset(name, (one,))] == [known.name]
    assert find_dataset("no such", group) is None


def parsed(command: str) -> tuple[str, click.Context]:
    """The kind of `smat data prepare KIND ...`, and what click makes of the rest (UsageError for anything it does not know)."""
    words = shlex.split(command)
    assert words[:3] == ["smat", "data", "prepare"]
    prepare = typer.main.get_command(app).commands["data"].commands["prepare"]  # type: ignore[attr-defined]
    return words[3], prepare.commands[words[3]].make_context(words[3], words[4:])


@pytest.mark.parametrize("known", EVERY, ids=lambda known: known.name)
def test_commands_are_of_the_command_line(known):
    for raw in (False, True) if known.raw else (False,):
        kind, context = parsed(known.command_for("a folder", raw=raw))
        given = context.params
        assert kind in SOURCES
        assert str(given["out"]) == f"a folder/{known.collection}"
        assert given["size"] == known.size
        assert given["fit"] == "squash"
        assert given["name"] in (None, known.name)
        if kind == "torchvision":
            from smatcli.data.sources.torchvision_sets import dataset_name

            assert dataset_name(given["names"][0])
        if known.collection == "paper" and kind not in ("meta-dataset", "pmf-h5"):
            assert (given["split"] == "0/0/100") != (given["splits_file"] is not None)
            assert given["name"] == known.name


def test_the_page_is_what_the_table_says(repo):
    page = (repo / "data/README.md").read_text(encoding="utf-8")
    between = page.partition(BEGIN)[2].partition(END)[0]
    assert between.strip() == render().strip(), "run `python -m smatcli.cli.datasets_page data/README.md`"


def test_every_dataset_is_on_the_page():
    text = render()
    for known in EVERY:
        assert all(word in text for word in (known.title, known.origin, known.licence, known.download, f"    {known.command_for()}\n"))
    assert "| 1,280,764 |" in text
    assert "63.0 GB at 128 px" in text  # 1,280,764 x 128 x 128 x 3 bytes


def test_update_keeps_what_is_outside_the_marks(tmp_path):
    page = tmp_path / "README.md"
    page.write_text(f"# Mine\n\n{BEGIN}\nSTALE\n{END}\n\nend\n", encoding="utf-8")
    update(page)
    once = page.read_text(encoding="utf-8")
    update(page)
    assert once.startswith("# Mine\n\n")
    assert once.endswith("\n\nend\n")
    assert "STALE" not in once
    assert page.read_text(encoding="utf-8") == once


def test_a_wrong_fact_names_file_dataset_and_key(tmp_path):
    facts = """title = "x"
[[dataset]]
name = "a"
title = "A"
classes = [1, 2]
origin = "http://a"
licence = "MIT"
download = "1 MB"
command = "smat"
"""
    path = tmp_path / "vtab.toml"
    path.write_text(facts, encoding="utf-8")
    with pytest.raises(ValueError, match=r"vtab\.toml, dataset a: classes"):
        read_collection(path)
    path.write_text(facts.replace("[1, 2]", "3") + 'licens = "MIT"\n', encoding="utf-8")
    with pytest.raises(ValueError, match="dataset a: licens: Unexpected"):
        read_collection(path)
    path.write_text(facts.replace("[1, 2]", "3"), encoding="utf-8")
    assert read_collection(path)[0][0].classes == 3
