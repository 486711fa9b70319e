"""Saved classifiers: the same predictions without the run; truncated and foreign files are errors."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import smatcli
from smatcli.deploy.classifier import FORMAT
from smatcli.errors import UserError
from tests.deploy.world import SMAT, make_run, pictures


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return smatcli.load(make_run(tmp_path)).adapt(*pictures()).save(tmp_path / "my.smat")


@pytest.mark.parametrize(
    ("adapt", "overrides"),
    [
        ("proto", []),
        ("flip", []),
        ("lora", ["adapt.lora.lr=1e-3", "adapt.lora.steps=2"]),
        ("dipa", ["adapt.dipa.steps=2"]),
    ],
)
@pytest.mark.parametrize("position_size", [None, 32])
def test_same_predictions_without_the_run(tmp_path: Path, adapt: str, overrides: list[str], position_size: int | None) -> None:
    run = make_run(tmp_path, SMAT, position_size=position_size)
    classifier = smatcli.load(run).adapt(*pictures(), adapt=adapt, overrides=overrides, fit="squash")
    found = classifier.predict(pictures()[0])
    classifier.save(tmp_path / "my.smat")
    shutil.rmtree(run)
    again = smatcli.load_classifier(tmp_path / "my.smat")
    read = again.predict(pictures()[0])
    np.testing.assert_allclose(read.probabilities, found.probabilities, atol=1e-5)
    np.testing.assert_allclose(read.distances, found.distances, atol=1e-6)
    assert (again.classes, again.facts.fit, again.facts.adapt) == (("blue", "green", "red"), "squash", adapt)
    assert again.usual_distance == pytest.approx(classifier.usual_distance)
    assert classifier.usual_distance is not None
    copied = again.save(tmp_path / "copy.smat")
    np.testing.assert_array_equal(smatcli.load_classifier(copied).predict(pictures()[0]).probabilities, read.probabilities)


def test_existing_files_and_wrong_endings_are_refused(saved: Path) -> None:
    classifier = smatcli.load_classifier(saved)
    with pytest.raises(UserError, match="already exists"):
        classifier.save(saved)
    with pytest.raises(UserError, match=r"ends in \.smat"):
        classifier.save(saved.with_suffix(".pt"))
    classifier.save(saved, replace=True)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.9, 0.9999])
def test_a_cut_file_is_refused(saved: Path, share: float) -> None:
    raw = saved.read_bytes()
    saved.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(UserError, match="truncated or not a saved classifier"):
        smatcli.load_classifier(saved)


def test_a_changed_byte_is_noticed(saved: Path) -> None:
    raw = bytearray(saved.read_bytes())
    raw[-1000] ^= 1
    saved.write_bytes(raw)
    with pytest.raises(UserError, match="checksum mismatch"):
        smatcli.load_classifier(saved)


def rewrite(path: Path, **changes: object) -> None:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        body = json.loads(file.metadata()["smat"])
    save_file(load_file(path), path, {"format": FORMAT, "smat": json.dumps({**body, **changes})})


def test_another_backbone_and_foreign_files(saved: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    with safe_open(saved, "pt") as file:
        backbone = json.loads(file.metadata()["smat"])["backbone"]
    rewrite(saved, backbone={**backbone, "args": {**backbone["args"], "embed_dim": 16}})
    with pytest.raises(UserError, match="do not fit the backbone"):
        smatcli.load_classifier(saved)
    rewrite(saved, backbone=backbone, classes=["a"])
    with pytest.raises(UserError, match="1 classes, prototypes"):
        smatcli.load_classifier(saved)
    rewrite(saved, scale="wide")
    with pytest.raises(UserError, match="damaged classifier"):
        smatcli.load_classifier(saved)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.smat")
    for path, message in (
        (tmp_path / "other.smat", "not a saved classifier"),
        (tmp_path / "gone.smat", "file not found"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(UserError, match=message):
            smatcli.load_classifier(path)


def test_what_is_no_plain_network_is_not_saved(tmp_path: Path) -> None:
    classifier = smatcli.load(make_run(tmp_path)).adapt(*pictures())
    centres = classifier.head.centres  # type: ignore[attr-defined]
    predict = classifier.head.predict
    classifier.head.predict = lambda images: predict(images).flip(1)  # type: ignore[method-assign]
    with pytest.raises(UserError, match="cannot be saved"):
        classifier.save(tmp_path / "my.smat")
    classifier.head.centres = torch.cat([centres, centres], 1)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="cannot be saved"):
        classifier.save(tmp_path / "my.smat")
    assert not (tmp_path / "my.smat").exists()
