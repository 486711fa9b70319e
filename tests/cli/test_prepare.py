"""`smat data prepare KIND`: one command per kind of source, and the arguments of its constructor."""

import importlib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from smatcli.cli import app
from smatcli.data.sources import SOURCES
from smatcli.data.stores.store import Store
from smatcli.errors import UserError

FIXTURE = Path(__file__).resolve().parents[1] / "data" / "mdsampler" / "fixture"
runner = CliRunner()


def smat(*words):
    return runner.invoke(app, ["data", "prepare", *map(str, words)])


@pytest.fixture
def opened(monkeypatch):
    """Record the arguments of sources, which all fail to open."""
    calls: list[tuple] = []

    def refuse(kind, *args, **options):
        calls.append((kind, *args, options))
        raise UserError("not here")

    # The engine imports the function by name. Imported later, it would keep the replacement.
    importlib.import_module("smatcli.engine.prepare.preparation")
    monkeypatch.setattr("smatcli.data.sources.open_source", refuse)
    return calls


def test_every_kind_has_a_command():
    assert {kind for kind in SOURCES if smat(kind, "--help").exit_code == 0} == set(SOURCES)
    assert "--encoding" in smat("vtab", "--help").stdout
    assert smat("floder").exit_code == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["torchvision", "DTD", "SVHN"], [("torchvision", n, {"root": None, "download": False}) for n in ("DTD", "SVHN")]),
        (["torchvision", "DTD", "--root", "r", "--download"], [("torchvision", "DTD", {"root": Path("r"), "download": True})]),
        (["coco", "im", "a.json"], [("coco", Path("im"), {"annotations": Path("a.json"), "enlarge": 1.2, "crowd": True})]),
        (
            ["coco", "im", "a.json", "--enlarge", 1, "--min-boxes", 30],
            [("coco", Path("im"), {"annotations": Path("a.json"), "enlarge": 1.0, "crowd": True, "min_boxes": 30})],
        ),
        (
            ["domainnet", "d", "--domain", "real", "--domain", "sketch"],
            [("domainnet", Path("d"), {"domain": n}) for n in ("real", "sketch")],
        ),
        *[([kind, "d"], [(kind, Path("d"), {})]) for kind in ("meta-dataset", "pmf-h5", "vtab", "fgvc", "cub", "fungi", "quickdraw")],
    ],
)
def test_what_reaches_the_source(tmp_path, monkeypatch, opened, words, expected):
    monkeypatch.chdir(tmp_path)
    done = smat(*words, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert opened == expected
    assert not (tmp_path / "out").exists()
    assert done.stderr.splitlines()[-1].startswith("smat: not here")


def test_a_folder_of_datasets_stands_for_all_of_them(tmp_path, opened):
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dataset_spec.json").touch()
    (tmp_path / "c").mkdir()
    smat("meta-dataset", tmp_path, tmp_path / "b", "--out", tmp_path / "out")
    assert [call[1] for call in opened] == [tmp_path / "a", tmp_path / "b", tmp_path / "b"]


def test_domains_that_are_there(tmp_path, opened):
    for name in ("sketch", "clipart", "other"):
        (tmp_path / name).mkdir()
    smat("domainnet", tmp_path, "--out", tmp_path / "out")
    assert [call[2] for call in opened] == [{"domain": "clipart"}, {"domain": "sketch"}]
    done = smat("domainnet", tmp_path / "other", "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "contains no DomainNet domain" in done.stderr


@pytest.mark.skipif(not FIXTURE.is_dir(), reason=f"no {FIXTURE}")
def test_the_two_layouts_of_meta_dataset_give_the_same_classes(tmp_path):
    for kind, folder in (("meta-dataset", "tfrecord"), ("pmf-h5", "pmf_h5")):
        done = smat(kind, FIXTURE / folder, "--out", tmp_path / kind, "--size", 32, "--encoding", "jpeg", "-j", 1, "--licence", "CC0")
        assert done.exit_code == 0, done.output
    stores = [Store.open(tmp_path / kind / "toy_shapes.h5") for kind in ("meta-dataset", "pmf-h5")]
    for store, kind in zip(stores, ("meta-dataset", "pmf-h5"), strict=True):
        assert store.class_names == ["disc", "square", "triangle"]
        assert store.counts.tolist() == [12] * 3
        assert store.class_split.tolist() == [0, 0, 2]
        assert (store.image_size, store.encoding) == (32, "jpeg")
        assert (store.source, store.facts["fit"], store.licence) == (f"{kind} toy_shapes", "squash", "CC0")
