"""`smat data doctor`, and the table of `smat data verify`."""

import shlex

import pytest
from typer.testing import CliRunner

from smatcli.cli import app
from smatcli.data.catalogue.datasets import COLLECTIONS
from tests.data.knownstores import paper, spread, write_known

PAPER = COLLECTIONS["paper"]

runner = CliRunner()


def smat(*words):
    return runner.invoke(app, ["data", *map(str, words)])


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SMAT_DATA", raising=False)
    return tmp_path


def test_doctor_without_any_data(here):
    done = smat("doctor")
    assert done.exit_code == 0
    assert "18 datasets in data: 0 present, 0 wrong, 18 missing" in done.stdout
    lines = [line.split("    #")[0].strip() for line in done.stdout.splitlines()]
    assert all(known.command_for("data") in lines and any(known.origin in line for line in lines) for known in PAPER)
    assert list(here.iterdir()) == []


def test_doctor_tells_present_wrong_and_missing_apart(here):
    write_known(here / "data/paper", paper("dtd"))
    write_known(here / "data/paper", paper("aircraft"), [5] * 20, [0] * 20)
    write_known(here / "data/old", paper("cars"), [5] * 20, [0] * 20)
    done = smat("doctor")
    assert done.exit_code == 0
    assert "1 present, 2 wrong, 15 missing" in done.stdout
    rows = {line.split()[0]: line.rstrip() for line in done.stdout.splitlines() if line.strip()}
    assert "present" in rows["dtd"]
    assert "33/7/7" in rows["dtd"]
    assert "5,640" in rows["dtd"]
    assert rows["dtd"].endswith("data/paper/dtd.h5")
    assert "wrong" in rows["aircraft"]
    assert "missing" in rows["omniglot"]
    wrong = "data/paper/aircraft.h5: differs from FGVC-Aircraft: classes train/valid/test 20/0/0, expected 70/15/15; images 100, expected"
    assert wrong in done.stdout
    assert f"{paper('aircraft').command_for()} --replace\n" in done.stdout  # the wrong store is in the way
    assert f"{paper('cars').command_for()}\n" in done.stdout
    assert paper("dtd").command_for() not in done.stdout


def test_doctor_of_some_datasets_and_another_folder(here):
    write_known(here / "my stores", paper("dtd"))
    done = smat("doctor", "dtd", "VGGFlower", "vtab_dtd", "--root", "my stores")
    assert done.exit_code == 0
    assert "3 datasets in my stores: 1 present, 0 wrong, 2 missing" in done.stdout
    assert f"--out {shlex.quote('my stores/paper')}" in done.stdout
    assert f"--out {shlex.quote('my stores/vtab')}" in done.stdout
    done = smat("doctor", "omniglott")
    assert done.exit_code == 2
    assert "did you mean 'omniglot'" in done.stderr


@pytest.mark.parametrize(("collection", "count"), [("vtab", 19), ("fgvc", 5), ("all", 42)])
def test_doctor_of_other_collections(collection, count):
    assert f"{count} datasets in data: 0 present, 0 wrong, {count} missing" in smat("doctor", "-c", collection).stdout


def test_doctor_when_all_is_there_says_nothing_more(here):
    write_known(here / "data", paper("dtd"))
    done = smat("doctor", "dtd")
    assert done.stdout.rstrip().endswith("1 present, 0 wrong, 0 missing")


def test_verify_names_mismatches_and_keeps_its_exit_codes(here):
    write_known(here / "data", paper("dtd"))
    counts = spread(paper("aircraft"))
    counts[5] -= 1
    write_known(here / "data", paper("aircraft"), counts)
    done = smat("verify")
    assert done.exit_code == 0
    assert done.stdout.count(": sound") == 2
    assert "data/aircraft.h5: differs from FGVC-Aircraft: images 9,999, expected 10,000\n" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["images", "10,000", "9,999", "MISMATCH"] in rows
    assert ["images", "5,640", "5,640"] in rows
    assert "data/dtd.h5: not" not in done.stdout

    with (here / "data/dtd.h5").open("r+b") as file:
        file.seek(-1000, 2)
        byte = file.read(1)[0]
        file.seek(-1000, 2)
        file.write(bytes([byte ^ 1]))
    done = smat("verify")
    assert done.exit_code == 1
    assert "1 of 2 stores are damaged" in done.stderr
    assert "MISMATCH" in done.stdout


def test_verify_of_other_stores_prints_no_table(here):
    write_known(here / "data", paper("dtd"), [2, 3], [0, 2], name="mine", source="folder mine")
    done = smat("verify")
    assert done.exit_code == 0
    assert done.stdout == "data/mine.h5: sound\n"
