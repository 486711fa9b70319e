"""The cache of frozen features: found by image, limited in size, without effect on the loss."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from smatcli.engine.train.trainer import MetaLearner, train
from smatcli.errors import UserError
from smatcli.methods.running.feature_cache import FeatureCache
from smatcli.runs.reporter import SilentReporter
from tests.engine.train.world import load


def test_each_image_is_embedded_once_and_the_limit_holds() -> None:
    table, asked = torch.randn(20, 4), []

    def compute(places: Tensor) -> Tensor:
        asked.append(places.tolist())
        return table[rows[places]]

    cache = FeatureCache(limit=3 * 16)
    for wanted in ([1, 2], [2, 1, 3], [3, 4, 5, 4], [1, 2, 3]):
        rows = torch.tensor(wanted)
        assert torch.equal(cache.get("a", wanted, compute), table[rows])
    assert asked == [[0, 1], [2], [1, 2, 3]]  # no space for 4 and 5
    rows = torch.tensor([1])
    cache.get("b", [1], compute)
    assert asked[-1] == [0]  # another dataset's image
    assert cache.hit_share == pytest.approx(6 / 13)


@pytest.mark.parametrize("pretrained", ["false", "true"])
def test_training_with_the_cache_is_training_without(tmp_path: Path, pretrained: str) -> None:
    runs = []
    for cached in ("false", "true"):
        options = [
            "train.augment={}",
            f"train.cache_frozen={cached}",
            f"run={tmp_path}/{cached}",
            f"method.teacher.pretrained={pretrained}",
        ]
        runs.append(train(load(tmp_path, *options), SilentReporter()))
    plain, cached_run = ([record["loss"] for record in run.records("train")] for run in runs)
    assert plain == pytest.approx(cached_run, rel=1e-5)
    assert runs[1].records("valid")[-1]["frozen_cached"] > 0.2


def test_where_it_would_not_be_read_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cache_frozen has no effect with train.augment"):
        load(tmp_path, "train.cache_frozen=true")
    loaded = load(tmp_path, "train.cache_frozen=true", "train.augment={}", "method={name: pmf}")
    with pytest.raises(UserError, match=r"train.cache_frozen: this method does not use features of the pre-trained model"):
        MetaLearner(loaded.recipe, SilentReporter(), "none")  # type: ignore[arg-type]
