"""Analyses `similarity` and `expert-maps`, compared with explicit matrices and the plain model's attention."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from smatcli.cli import app
from smatcli.engine.analyze.expert_maps import maps
from smatcli.engine.analyze.similarity import cosines, similarity
from smatcli.engine.tune.tuning import tune
from smatcli.errors import UserError
from smatcli.runs.analysis import read_analysis
from smatcli.runs.reporter import SilentReporter
from smatcli.tuning.lora import LoraTuner
from smatcli.tuning.mlae import Mlae
from tests.tuning.world import IMAGES, load, make, shake, vit


@pytest.mark.parametrize("settings", [{"name": "mlae", "rank": 4}, {"name": "mlae", "rank": 4, "cell": 2}, {"name": "lora", "rank": 3}])
def test_cosines_are_those_of_the_matrices(settings):
    tuner = shake(make(**settings))
    assert isinstance(tuner, Mlae | LoraTuner)
    for experts in tuner.experts().values():
        flat = [(b @ a).double().flatten() for b, a in experts]
        want = [float(x @ y / x.norm() / y.norm()) for i, x in enumerate(flat) for y in flat[i + 1 :]]
        torch.testing.assert_close(cosines(experts), torch.tensor(want, dtype=torch.float64), atol=1e-6, rtol=1e-6)


def test_equal_experts_are_alike_and_a_single_one_has_no_pair():
    b, a = torch.randn(5, 1), torch.randn(1, 4)
    found = similarity({"one": [(b, a)], "three": [(b, a), (2 * b, a), (-b, a)]})
    assert np.isnan(found["cosine"][0])
    assert found["cosine"][1] == pytest.approx(-1 / 3)
    assert found["absolute"][1] == pytest.approx(1)
    assert found["model"] == pytest.approx([-1 / 3, 1])


def test_maps():
    tuner = shake(make(name="mlae", rank=3)).eval()
    assert isinstance(tuner, Mlae)
    attention, change = maps(tuner, IMAGES)
    assert attention.shape == change.shape == (3, 5, 2, 2)
    assert not change[:, 1].any()
    assert change[:, 0].min() > 0
    plain = vit()
    kept: dict[str, torch.Tensor] = {}
    attn: Any = plain.blocks[-1].attn
    attn.fused_attn = False
    attn.attn_drop.register_forward_hook(lambda m, i, o: kept.update(a=o))
    plain(IMAGES)
    want = kept["a"][:, :, 0, 1:].mean(1).unflatten(1, (2, 2)).detach().numpy()
    np.testing.assert_allclose(attention[:, 1], want, atol=1e-6)
    assert all(part.only is None for part in tuner.parts().values())
    for name, part in tuner.parts().items():  # without all other experts in the weights: the first alone
        with torch.no_grad():
            part.coefficients[1:] = 0
        assert name
    np.testing.assert_allclose(maps(tuner, IMAGES)[0][:, 0], attention[:, 2], atol=1e-6)


def test_maps_need_a_class_token():
    from smatcli.tuning import build_tuner
    from tests.tuning.world import config

    tuner = build_tuner(config(name="mlae", rank=2), [vit(class_token=False, global_pool="avg")], 3)
    assert isinstance(tuner, Mlae)
    with pytest.raises(UserError, match="has no class token"):
        maps(tuner, IMAGES)


def test_on_the_command_line_and_in_the_report(tmp_path: Path):
    for name, tuner in (("m", "{name: mlae, rank: 4}"), ("l", "{name: lora, rank: 4}"), ("n", "{name: linear}")):
        tune(load(tmp_path, f"run={tmp_path}/runs/{name}", f"tuner={tuner}", "tune.epochs=1"), SilentReporter())
    runs = [str(tmp_path / "runs" / name) for name in "mln"]
    done = CliRunner().invoke(app, ["analyze", *runs[:2]])
    assert done.exit_code == 0, done.output + done.stderr
    found = read_analysis(tmp_path / "runs" / "m" / "analysis" / "similarity.h5")
    assert found.groups["all"]["experts"].tolist() == [4, 4]
    assert Image.open(tmp_path / "runs" / "m" / "analysis" / "expert-maps-a.png").size == (7 * 66, 14 + 12 * 66)
    assert CliRunner().invoke(app, ["analyze", runs[2]]).exit_code == 2
    made = CliRunner().invoke(app, ["report", str(tmp_path / "runs"), "--out", str(tmp_path / "report")])
    assert made.exit_code == 0, made.output + made.stderr
    lines = (tmp_path / "report" / "figures" / "similarity-layers.csv").read_text().splitlines()
    assert len(lines) == 5
    assert "lora rank 4" in lines[-1] + lines[1]
