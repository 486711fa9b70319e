import itertools
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from smatcli.backbones import create_backbone
from smatcli.config.loader import vision
from smatcli.config.schema import PretrainData
from smatcli.data.stores.store import write_store
from smatcli.engine.pretrain import pretraining as module
from smatcli.engine.pretrain.pretraining import pretrain
from smatcli.engine.pretrain.supervised import CosineClassifier, split_images
from smatcli.errors import UserError
from smatcli.runs.directory import RunDir
from smatcli.runs.reporter import SilentReporter
from tests.engine.pretrain.world import load


def _weights(run):
    return load_file(run / "backbone.safetensors")


def data_of(root, *overrides):
    data = load(root, *overrides).recipe.data
    assert isinstance(data, PretrainData)
    return data


def test_it_learns_and_leaves_a_backbone(tmp_path):
    run = pretrain(load(tmp_path, "pretrain.epochs=12", "pretrain.valid_every=4"), SilentReporter())
    valid = run.records("valid")
    assert [r["epoch"] for r in valid] == [4.0, 8.0, 12.0]
    assert valid[-1]["mean"] > 0.5  # eight colours; chance is 1/8
    facts = json.loads((run.path / "backbone.json").read_text())
    assert (facts["name"], facts["image_size"], facts["metrics"]["top1"]) == ("vit_tiny_patch16_224", 16, valid[-1]["mean"])
    assert RunDir.open(run.path).finished
    model = create_backbone(vision(run.recipe).backbone.model_copy(update={"weights": str(run.path)}))
    saved = _weights(run.path)
    assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())


def poisoned(monkeypatch, calls_that_are):
    """Make some batches NaN, by number of the call from 0."""
    augmented, calls = module.augmented, itertools.count()

    def poison(*given):
        inputs, targets = augmented(*given)
        return (inputs * float("nan") if calls_that_are(next(calls)) else inputs), targets

    monkeypatch.setattr(module, "augmented", poison)


def test_a_nan_loss_is_skipped_and_counted(tmp_path, monkeypatch):
    poisoned(monkeypatch, lambda call: call == 6)
    reporter = SilentReporter()
    run = pretrain(load(tmp_path), reporter)
    (skip,) = run.records("skip")
    assert (skip["step"], skip["reason"], skip["skipped"]) == (7, "the loss is nan", 1)
    assert "step 7 is skipped: the loss is nan; 1 so far" in reporter.lines
    assert all(torch.isfinite(w).all() for w in _weights(run.path).values())


def test_more_epochs_continue_a_finished_run(tmp_path):
    pretrain(load(tmp_path, "pretrain.epochs=1"), SilentReporter())
    run = pretrain(load(tmp_path, "pretrain.epochs=2"), SilentReporter(), resume=True)
    assert run.finished
    assert [r["epoch"] for r in run.records("valid")] == [1.0, 2.0]


def test_bad_data_leaves_no_run(tmp_path):
    with pytest.raises(UserError, match="no class in split 'valid'"):
        pretrain(load(tmp_path, "data.split.a=valid"), SilentReporter())
    with pytest.raises(UserError, match=r"momentum"):
        pretrain(load(tmp_path, "pretrain.optimizer.momentum=0.9"), SilentReporter())
    assert not (tmp_path / "run").exists()


def test_held_out_images_are_disjoint_counted_and_reproducible(tmp_path):
    data = data_of(tmp_path)
    split, again, other = (split_images(data, seed) for seed in (0, 0, 1))
    assert split.names == [*(f"a/a{i}" for i in range(5)), *(f"b/b{i}" for i in range(3))]
    for i, classes in enumerate((5, 3)):
        assert len(split.held_rows[i]) == 2 * classes  # a quarter of 8
        together = np.concatenate([split.train_rows[i], split.held_rows[i]])
        assert np.array_equal(np.sort(together), np.arange(8 * classes))  # the test class of `a` is the last one: never used
        assert np.array_equal(split.held_rows[i], again.held_rows[i])
        offset = 0 if i == 0 else 5
        assert np.array_equal(split.held_labels[i], split.held_rows[i] // 8 + offset)
    assert not np.array_equal(split.held_rows[0], other.held_rows[0])


def test_a_class_with_one_image_is_trained_on(tmp_path):
    images = np.zeros((3, 16, 16, 3), np.uint8)
    write_store(tmp_path / "s.h5", "s", 16, [("one", 0, images[:1]), ("three", 0, images)])
    split = split_images(data_of(tmp_path, "data.datasets=[s]", "data.split={}"), 0)
    assert (split.single, len(split.held_rows[0]), len(split.train_rows[0])) == (1, 1, 3)
    assert 0 in split.train_labels[0]


def test_cosine_logits_agree_with_their_formula():
    backbone = torch.nn.Flatten()
    backbone.num_features = 12  # type: ignore[assignment]
    model = CosineClassifier(backbone, 5, 7.0)
    images = torch.randn(4, 3, 2, 2)
    logits = model(images)
    feature, weight = images[1].flatten().tolist(), model.weight[3].tolist()
    dot = sum(a * b for a, b in zip(feature, weight, strict=True))
    expected = 7 * dot / math.sqrt(sum(a * a for a in feature) * sum(b * b for b in weight))
    assert logits[1, 3].item() == pytest.approx(expected, rel=1e-5)


def test_no_weight_decay_on_norms_biases_and_embeddings(tmp_path):
    model = CosineClassifier(create_backbone(vision(load(tmp_path).recipe).backbone), 4, 10.0)
    names = {id(p): n for n, p in model.named_parameters()}
    bare = {names[id(p)] for p in model.undecayed()}
    assert {"backbone.pos_embed", "backbone.cls_token", "backbone.norm.weight", "backbone.blocks.0.attn.qkv.bias"} <= bare
    assert not bare & {"backbone.patch_embed.proj.weight", "backbone.blocks.0.mlp.fc1.weight", "weight"}
