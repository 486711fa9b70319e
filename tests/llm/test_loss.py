"""Loss terms, router and gates against plain loops."""

import math

import pytest
import torch

from smatcli.config.llm import OrthogonalityConfig, PromptRouterConfig
from smatcli.config.methods import MaskConfig
from smatcli.experts.gates import Gates
from smatcli.llm.loss import IGNORED, answer_nll, orthogonality, overlap, sparsities
from smatcli.llm.prompt_router import PromptRouter, pooled


def test_answer_nll_by_hand():
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 5, dtype=torch.float64)
    labels = torch.tensor([[IGNORED, IGNORED, 3, 1], [IGNORED, 2, IGNORED, IGNORED]])
    total, count = answer_nll(logits, labels)
    expected = -sum(math.log(float(logits[b, t - 1].softmax(-1)[labels[b, t]])) for b, t in ((0, 2), (0, 3), (1, 1)))
    assert count == 3
    assert float(total) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("norm", ["frobenius", "spectral"])
@pytest.mark.parametrize("rows", ["unit", "none"])
def test_orthogonality_by_its_formula(norm, rows):
    p = torch.rand(4, 9, dtype=torch.float64)
    z = [row / row.norm() if rows == "unit" else row for row in p]
    gram = torch.tensor([[float(a @ b) - (i == j) for j, b in enumerate(z)] for i, a in enumerate(z)], dtype=torch.float64)
    size = math.sqrt(float((gram**2).sum())) / math.sqrt(12) if norm == "frobenius" else float(torch.linalg.eigvalsh(gram).abs().max()) / 3
    ours = orthogonality(p, OrthogonalityConfig(norm=norm, rows=rows))
    assert float(ours) == pytest.approx(size, abs=1e-12)


def test_orthogonality_ends_at_0_and_1():
    assert float(orthogonality(torch.eye(3), OrthogonalityConfig())) == pytest.approx(0, abs=1e-7)
    assert float(orthogonality(torch.ones(3, 5), OrthogonalityConfig())) == pytest.approx(1, abs=1e-6)
    assert float(orthogonality(torch.ones(1, 5), OrthogonalityConfig())) == 0


def test_densities_of_the_three_scopes():
    members = torch.tensor([1.0, 3.0, 4.0])
    gates = Gates(MaskConfig(), 3, members)
    p = torch.rand(2, 3, dtype=torch.float64)
    share = [1 / 8, 3 / 8, 4 / 8]
    each = [sum(float(p[m, g]) * share[g] for g in range(3)) for m in range(2)]
    union = sum(share[g] * (1 - (1 - float(p[0, g])) * (1 - float(p[1, g]))) for g in range(3))
    assert gates.density(p, "each").tolist() == pytest.approx(each)
    assert gates.density(p, "all").tolist() == pytest.approx([sum(each) / 2])
    assert gates.density(p, "union").tolist() == pytest.approx([union])
    assert union <= sum(each)


def test_sparsities_and_overlap_of_masks_by_hand():
    gates = Gates(MaskConfig(), 4, torch.tensor([2.0, 1.0, 1.0, 4.0]))
    log_alpha = torch.tensor([[4.0, 4.0, -9.0, -9.0], [4.0, -9.0, 4.0, -9.0]])
    found = sparsities(gates, log_alpha)
    assert found == pytest.approx({"sparsity_parameters": 1 - 3 / 8, "sparsity_entries": 0.5, "sparsity_union": 0.5})
    assert overlap(gates.inference(log_alpha)) == pytest.approx(1 / 3)
    assert math.isnan(overlap(torch.ones(1, 3)))


def test_noise_of_gates_is_counted():
    gates = Gates(MaskConfig(), 50)
    log_alpha = torch.zeros(3, 50)
    assert torch.equal(gates.draw(log_alpha, 7), gates.draw(log_alpha, 7))
    assert not torch.equal(gates.draw(log_alpha, 7), gates.draw(log_alpha, 8))
    plain = Gates(MaskConfig(noise="deterministic"), 50)
    assert torch.equal(plain.draw(log_alpha, 7), plain.draw(log_alpha, 8))


@pytest.mark.parametrize("scores", ["softmax", "gumbel-sigmoid"])
def test_scores_sum_to_1(scores):
    router = PromptRouter(PromptRouterConfig(scores=scores, temperature=(2.0, 0.5), hidden=6), 5, 3)
    logits = router(torch.randn(4, 5))
    alpha = router.alpha(logits, torch.Generator().manual_seed(0))
    torch.testing.assert_close(alpha.sum(-1), torch.ones(4))
    assert alpha.shape == (4, 3)
    router.anneal(0.5)
    assert float(router.temperature) == pytest.approx(1.25)


def test_features_skip_padding():
    hidden = torch.randn(2, 4, 3)
    mask = torch.tensor([[0, 1, 1, 1], [1, 0, 0, 0]])
    torch.testing.assert_close(pooled(hidden, mask), torch.stack([hidden[0, 1:].mean(0), hidden[1, 0]]))
