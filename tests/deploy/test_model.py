"""load, adapt and predict, compared with timm and arithmetic by hand."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

import smatcli
from smatcli.adaptation import ADAPTATIONS
from smatcli.deploy.model import FewShotModel, adapt_settings, run_recipe
from smatcli.errors import UserError
from tests.deploy.world import BACKBONE, COLOURS, SIZE, SMAT, make_pretrain_run, make_run, photo, pictures

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    folder = tmp_path_factory.mktemp("runs")
    yield {"smat": make_run(folder, SMAT, "smat"), "pmf": make_run(folder, {"name": "pmf"}, "pmf"), "pretrain": make_pretrain_run(folder)}


def by_hand(tensors: dict[str, torch.Tensor], support: list[Image.Image], labels: list[str], queries: list[Image.Image]) -> np.ndarray:
    """Return cosines [Q, C] of a plain timm model's features to class means, in float64."""
    model = timm.create_model(BACKBONE["name"], num_classes=0, img_size=SIZE, **BACKBONE["args"]).eval()  # type: ignore[arg-type]
    model.load_state_dict(tensors, strict=True)

    def features(images: list[Image.Image]) -> np.ndarray:
        pixels = np.stack([(np.asarray(image) / 255 - MEAN) / STD for image in images]).transpose(0, 3, 1, 2)
        with torch.no_grad():
            return model(torch.from_numpy(pixels).float()).double().numpy()

    known = features(support)
    centres = np.stack([known[[label == name for label in labels]].mean(0) for name in sorted(set(labels))])
    asked = features(queries)
    return (asked / np.linalg.norm(asked, axis=1, keepdims=True)) @ (centres / np.linalg.norm(centres, axis=1, keepdims=True)).T


def check(model: FewShotModel, tensors: dict[str, torch.Tensor]) -> None:
    support, labels = pictures()
    queries = [photo(colour, 77 + k, (SIZE, SIZE)) for k, colour in enumerate(COLOURS.values())]
    found = model.adapt(support, labels).predict(queries)
    cosines = by_hand(tensors, support, labels, queries)
    expected = np.exp(10 * cosines) / np.exp(10 * cosines).sum(1, keepdims=True)
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)
    np.testing.assert_allclose(found.distances, 1 - cosines.max(1), atol=1e-6)
    assert found.labels == [sorted(COLOURS)[i] for i in cosines.argmax(1)]


def test_probabilities_and_distances_of_a_tuned_backbone(runs: dict[str, Path]) -> None:
    model = smatcli.load(runs["pmf"])
    saved = load_file(runs["pmf"] / "checkpoints" / "last" / "model.safetensors")
    check(model, model.method.space.unflatten(saved["theta"]))


def test_a_pretraining_run_is_its_backbone(runs: dict[str, Path]) -> None:
    check(smatcli.load(runs["pretrain"]), load_file(runs["pretrain"] / "backbone.safetensors"))


def test_arrays_numbers_and_batches(runs: dict[str, Path]) -> None:
    support, _ = pictures()
    batch = np.stack([np.asarray(image) for image in support])
    model = smatcli.load(runs["smat"])
    named = model.adapt(support, ["b"] * 3 + ["g"] * 3 + ["r"] * 3).predict(support)
    numbered = model.adapt(batch, torch.tensor([0] * 3 + [4] * 3 + [9] * 3)).predict(torch.from_numpy(batch).permute(0, 3, 1, 2))
    np.testing.assert_array_equal(named.probabilities, numbered.probabilities)
    assert numbered.classes == (0, 4, 9)
    assert numbered.labels == [{"b": 0, "g": 4, "r": 9}[str(label)] for label in named.labels]


@pytest.mark.parametrize("adapt", sorted(ADAPTATIONS))
def test_any_adaptation_leaves_the_model_as_it_was(runs: dict[str, Path], adapt: str) -> None:
    model = smatcli.load(runs["smat"])
    before = {name: tensor.clone() for name, tensor in model.method.state_dict().items()}
    tuned = adapt in ("full", "lora", "joint", "dipa")
    settings = [f"adapt.{adapt}.lr=1e-3", f"adapt.{adapt}.steps=2"] if tuned else []
    classifier = model.adapt(*pictures(), adapt=adapt, overrides=settings)
    assert classifier.predict(pictures()[0]).probabilities.sum(1) == pytest.approx(np.ones(9), abs=1e-5)
    after = model.method.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not any(p.grad is not None for p in model.method.parameters())


def test_a_rate_that_is_not_given_is_chosen_on_the_support_set(runs: dict[str, Path]) -> None:
    model = FewShotModel.open(runs["pmf"])
    small = ["adapt.full.steps=2", "adapt.search.rates=[1e-4, 1e-3]"]
    classifier = model.adapt(*pictures(), adapt="full", overrides=small)
    assert classifier.info["rate"] in (0.0, 1e-4, 1e-3)
    assert any("search support" in line for line in model.reporter.lines)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="single image"):
        model.adapt(pictures(1)[0], pictures(1)[1], adapt="full", overrides=small)
    with pytest.raises(UserError, match="a paper search needs more"):
        model.adapt(*pictures(), adapt="full", overrides=["adapt.search.kind=paper"])


def test_usual_distance_is_the_95_percent_quantile_of_leave_one_out(runs: dict[str, Path]) -> None:
    support, labels = pictures()
    saved = load_file(runs["pmf"] / "checkpoints" / "last" / "model.safetensors")
    model = smatcli.load(runs["pmf"])
    tensors = model.method.space.unflatten(saved["theta"])
    own = []
    for i, label in enumerate(labels):
        others = [k for k in range(len(labels)) if k != i]
        cosines = by_hand(tensors, [support[k] for k in others], [labels[k] for k in others], [support[i]])
        own.append(1 - cosines[0, sorted(COLOURS).index(label)])
    assert model.adapt(support, labels).usual_distance == pytest.approx(np.quantile(own, 0.95), abs=1e-6)
    assert model.adapt(*pictures(1)).usual_distance is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["a"] * 9}, "one class only"),
        ({"labels": ["a", "b"]}, "9 images, but 2 labels"),
        ({"labels": "abcabcabc"}, "list of labels"),
        ({"labels": ["a", 1] * 4 + ["a"]}, "all names"),
        ({"images": ["missing.png"] * 9}, "missing.png"),
        ({"images": []}, "empty"),
        ({"adapt": "flop"}, "did you mean 'flip'"),
        ({"overrides": ["adapt.flip.rounds=3"]}, "has no effect on proto"),
        ({"overrides": ["train.steps=3"]}, "cannot be changed here"),
        ({"adapt": "flip", "overrides": ["adapt.flip.round=3"]}, "rounds"),
        ({"adapt": "flip", "overrides": ["adapt.search.episodes=3"]}, "has no effect"),
    ],
)
def test_bad_input(runs: dict[str, Path], change: dict[str, Any], message: str) -> None:
    support, labels = pictures()
    with pytest.raises(UserError) as caught:
        smatcli.load(runs["smat"]).adapt(**{"images": support, "labels": labels, **change})
    assert message in str(caught.value)


def test_what_is_no_run(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "my.smat").write_bytes(b"x")
    for path, message in ((tmp_path / "none", "does not exist"), (tmp_path, "not a run"), (tmp_path / "my.smat", "load_classifier")):
        with pytest.raises(UserError, match=message):
            smatcli.load(path)
    with pytest.raises(UserError, match="needs a method with experts"):
        adapt_settings(run_recipe(runs["pmf"]), "flip")
    recipe = runs["smat"] / "recipe.yaml"
    text = recipe.read_text()
    recipe.write_text(text.replace("embed_dim: 32", "embed_dim: 16"))
    try:
        with pytest.raises(UserError, match="does not fit the recipe"):
            smatcli.load(runs["smat"])
    finally:
        recipe.write_text(text)
