"""The recipes of the paper: their methods can be built and trained, and each ablation differs from SMAT only in its ablated part."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from smatcli.config import load_recipe
from smatcli.config.methods import MethodConfig, SmatConfig, method_facts
from smatcli.config.schema import TrainRecipe
from smatcli.data.catalogue.datasets import COLLECTIONS
from smatcli.engine.loop.optimizers import build_optimizers
from smatcli.methods import build_method
from tests.experts.parity import release_config

PAPER = COLLECTIONS["paper"]

ROOT = Path(__file__).resolve().parents[2] / "recipes"
FILES = sorted((ROOT / "paper").rglob("*.yaml"))
LEARNED = {f"sparsity.{key}" for key in ("measure", "weighting", "project", "lr")} | {"masks.noise"}
DIFFERENCES = {
    "table2/no_teacher": {f"teacher.{key}" for key in ("steps", "prototypes", "direction", "pretrained")},
    "table2/no_interpolation": {"interpolated", "masks.kind", "sparsity.tau", *LEARNED},
    "table2/no_split": {"query_split"},
    "ablations/own_sparse": {"interpolated"},
    "ablations/random_masks": {"masks.kind", *LEARNED},
    "ablations/magnitude_masks": {"masks.kind", *LEARNED},
    "ablations/input_masks": {"masks.group"},
    "ablations/output_masks": {"masks.group"},
    "ablations/experts1": {"experts"},
    "ablations/experts4": {"experts"},
    "ablations/experts16": {"experts"},
    "table4/smat": set(),
    "fig4/smat_domains3": set(),
}


def recipe(name: str | Path) -> TrainRecipe:
    found = load_recipe(name).recipe
    assert isinstance(found, TrainRecipe)
    return found


def flat(config: MethodConfig) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.model_dump().items():
        found |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.yaml")), ids=lambda p: p.relative_to(ROOT).with_suffix("").as_posix())
def test_every_recipes_method_and_groups_fit(path: Path) -> None:
    loaded = load_recipe(path).recipe
    if not isinstance(loaded, TrainRecipe):
        return
    torch.manual_seed(0)
    net = VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=0)
    method = build_method(loaded.method, net)
    optimizers = build_optimizers(method.groups(), loaded.train.groups, max(1, loaded.train.steps), method.default_groups())
    if path in FILES and loaded.train.steps:
        assert set(optimizers.groups) == set(loaded.train.groups), "the paper's recipes leave no rate to our defaults"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).with_suffix("").as_posix())
def test_data_and_header_of_the_papers_recipes(path: Path) -> None:
    loaded, text = recipe(path), path.read_text()
    datasets = [*loaded.data.train, *loaded.data.id, *loaded.data.ood]
    assert set(datasets) <= {known.name for known in PAPER}
    assert len(loaded.data.id) + len(loaded.data.ood) == len(PAPER) == 18
    assert loaded.run == f"runs/paper/{path.relative_to(ROOT / 'paper').with_suffix('').as_posix()}"
    header = " ".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("#"))
    assert any(words in header for words in ("not available here", "not known here", "hushell/pmf_cvpr22"))
    assert loaded.backbone.image_size % (14 if "patch14" in loaded.backbone.name else 16) == 0


@pytest.mark.parametrize("name", DIFFERENCES)
def test_an_ablation_differs_in_what_it_ablates(name: str) -> None:
    ours, full = flat(recipe(f"paper/{name}").method), flat(recipe("paper/table1/smat").method)
    assert {key for key in full if ours[key] != full[key]} == DIFFERENCES[name]


def test_the_papers_smat_is_the_releases_arithmetic_but_for_the_order_of_classes() -> None:
    release = release_config(8)
    pooled = release.model_copy(update={"router": release.router.model_copy(update={"pool": "mean"})})
    assert recipe("paper/table1/smat").method == pooled


def test_domains_are_added_one_by_one() -> None:
    found = [recipe(f"paper/fig4/smat_domains{n}").data.train for n in range(1, 8)] + [recipe("paper/table1/smat").data.train]
    assert [len(domains) for domains in found] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert all(longer[:-1] == shorter for shorter, longer in pairwise(found))


def test_results_of_before_the_switches_stay_comparable() -> None:
    """The facts of a default SMAT are unchanged; a switch that is used is recorded."""
    old = {"name", "scale", "experts", "inner_steps", "inner_lr", "masks", "router", "sparsity", "teacher"}
    facts = method_facts(SmatConfig())
    assert set(facts) == old
    assert set(facts["masks"]) == {"noise", "beta", "gamma", "zeta", "eval_beta", "init_mean", "init_std", "clamp"}
    used = method_facts(recipe("paper/table2/no_interpolation").method)
    assert used["interpolated"] is False
    assert used["masks"]["kind"] == "dense"
    assert "query_split" not in used
