"""`smat data episodes`, and `--episode` of `smat eval`."""

from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from smatcli.cli import app
from smatcli.config.schema import EpisodeConfig
from smatcli.data.episodes.lists import read_list
from smatcli.data.episodes.sampler import EpisodeSampler
from smatcli.data.stores.store import Store
from smatcli.runs.results import read_summary
from tests.data.episodes.test_sampler import flat
from tests.data.mdfiles import FIXTURE
from tests.engine.evaluate.evalruns import FakeMethod, make_run, make_store, serve

SPECS = Path(__file__).parent.parent / "data" / "mdsampler"


def smat(*arguments: object):
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200", "NO_COLOR": "1"})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "stores"
    folder.mkdir()
    for seed, name in enumerate(("near", "far")):
        make_store(folder, name, seed)
    return folder


def episodes(root: Path, *arguments: object):
    return smat("data", "episodes", *arguments, "--root", root)


def test_a_list_holds_the_samplers_episodes(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "l.npz"
    done = episodes(root, "near", "far", "--episode", "5w1s", "queries=4", "-n", 7, "--seed", 2, "--out", out)
    assert done.exit_code == 0, done.output
    found = read_list(out)
    sampler = EpisodeSampler({"far": Store.open(root / "far.h5")}, "test", EpisodeConfig(shots=1, queries=4), 2)
    assert [flat(found["far"].plan(i)) for i in range(7)] == [flat(sampler.plan(i)) for i in range(7)]
    assert all(made.hash[:12] in done.stdout for made in found.values())
    assert "5w1s4q-test" in done.stdout
    assert f"{out}: sha256 " in done.stdout
    again = smat("data", "episodes", out)
    assert again.stdout.splitlines()[:3] == done.stdout.splitlines()[:3]


def test_an_episode_is_drawn_as_a_picture(root: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "one.png", tmp_path / "other.png"
    assert episodes(root, "near", "-n", 4, "--index", 3, "--show", one, "--out", tmp_path / "l.npz").exit_code == 0
    assert smat("data", "episodes", tmp_path / "l.npz", "--index", 3, "--show", other, "--root", root).exit_code == 0
    pixels = [list(Image.open(path).convert("RGB").tobytes()) for path in (one, other)]
    assert pixels[0] == pixels[1]
    assert episodes(root, "near", "-n", 4, "--index", 2, "--show", other, "--replace").exit_code == 0
    assert list(Image.open(other).convert("RGB").tobytes()) != pixels[0]


def test_the_picture_shows_the_episodes_images(root: Path) -> None:
    """Each row of the picture has the class's stored pixels, support then query, scaled up by 3."""
    import numpy as np

    from smatcli.data.pictures import episode_picture

    store = Store.open(root / "near.h5")
    plan = EpisodeSampler({"near": store}, "test", EpisodeConfig(ways=3, shots=2, queries=4), 0).plan(0)
    picture = np.asarray(episode_picture(store, plan, "title"))
    for c in range(3):
        row = picture[48 + 50 * c : 96 + 50 * c]
        for image in [*plan.support[plan.support_labels == c], *plan.query[plan.query_labels == c]]:
            tile = np.repeat(np.repeat(store.images[image], 3, 0), 3, 1)
            places = [x for x in range(row.shape[1] - 47) if np.array_equal(row[:, x : x + 48], tile)]
            assert len(places) == 1


@pytest.mark.parametrize("kind", ["flat", "bilevel", "dag"])
def test_a_specification_is_described(kind: str) -> None:
    done = smat("data", "episodes", SPECS / f"{kind}_spec.json", "-n", 50, "--split", "train")
    assert done.exit_code == 0, done.output
    assert f"toy_{kind}" in done.stdout
    assert "meta-dataset-train" in done.stdout


def test_pmfs_validation_episodes_become_a_list(tmp_path: Path) -> None:
    file = FIXTURE / "pmf_h5" / "toy_shapes" / "val_ep2_img16.h5"
    made = smat("data", "prepare", "pmf-episodes", file, "--out", tmp_path / "stores", "--size", 16)
    assert made.exit_code == 0, made.output
    out = tmp_path / "l.npz"
    done = episodes(tmp_path / "stores", "toy_shapes_val_ep2_img16", "--episode", file, "--out", out)
    assert done.exit_code == 0, done.output
    assert [len(read_list(out)[name]) for name in read_list(out)] == [2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["near", "--episode", "meta-datset"], "did you mean 'meta-dataset'"),
        (["near", "quries=4"], "did you mean 'queries'"),
        (["neer"], "did you mean 'near'"),
        (["queries=4"], "name at least one dataset"),
        (["near", "--episode", "20w5s"], "20 ways"),
        (["near", "far", "--show", "p.png"], "name one"),
        (["near", "--out", "l.txt"], "ends in .npz"),
        (["near", "-n", "3", "--index", "3", "--show", "p.png"], "episode 3 does not exist"),
        ([str(SPECS / "flat_spec.json"), "--out", "l.npz"], "dataset_spec.json has no images"),
        (["missing.npz"], "list of episodes does not exist"),
        (["missing.npz", "near"], "can only be shown"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(root: Path, tmp_path: Path, monkeypatch, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    done = episodes(root, *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("smat:")]) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_nothing_is_overwritten(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "l.npz"
    assert episodes(root, "near", "-n", 2, "--out", out).exit_code == 0
    kept = out.read_bytes()
    assert "already exists" in episodes(root, "near", "-n", 3, "--out", out).stderr
    assert out.read_bytes() == kept
    assert episodes(root, "near", "-n", 3, "--out", out, "--replace").exit_code == 0
    assert len(read_list(out)["near"]) == 3


def test_eval_takes_a_protocol_or_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, FakeMethod())
    run, out = make_run(tmp_path), tmp_path / "l.npz"
    asked = ["--adapt", "proto", "--datasets", "near"]
    assert episodes(tmp_path / "data", "near", "-n", 4, "--out", out).exit_code == 0
    for episode, folder in (("meta-dataset", "proto-meta-dataset-test"), (str(out), None)):
        done = smat("eval", run, *asked, "--episode", episode, "--episodes", 4)
        assert done.exit_code == 0, done.output
        (row,) = read_summary(run / "eval" / (folder or next((run / "eval").glob("proto-list-*")).name) / "summary.csv")
        assert row.list_hash == read_list(out)["near"].hash
    changed = smat("eval", run, *asked, "--episode", "5w1s", "--queries", 3, "--episodes", 2)
    assert changed.exit_code == 0, changed.output
    assert (run / "eval" / "proto-5w1s3q-test").is_dir()
    refused = smat("eval", run, *asked, "--episode", "6w6s6", "--episodes", 2)
    assert refused.exit_code == 2
    assert "unknown episode protocol '6w6s6'" in refused.stderr
