from itertools import pairwise
from pathlib import Path

import pytest
import torch

from smatcli.errors import UserError
from smatcli.experts.compress import CompressedExperts, Merger
from smatcli.experts.masks import HardConcrete
from smatcli.experts.merge import merge, normalise
from smatcli.experts.merge_eager import Gate

SHAPE = HardConcrete()
M, P = 4, 1000


def compressed(log_alpha: torch.Tensor, dense: torch.Tensor | None = None, dtype: torch.dtype | None = None) -> CompressedExperts:
    """Return the compressed inference masks of log_alpha [M, P]; masks are 1 where `dense`."""
    rows = (SHAPE.eval_gate(row) for row in log_alpha)
    return CompressedExperts.of((z if dense is None else z.masked_fill(dense, 1.0) for z in rows), dtype)


@pytest.fixture
def log_alpha() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(M, P) * 2 + torch.tensor([-5.0, -4.0, -3.5, 3.0])[:, None]


def test_round_trip_is_exact(log_alpha: torch.Tensor) -> None:
    z = SHAPE.eval_gate(log_alpha)
    experts = compressed(log_alpha)
    assert all(torch.equal(experts.mask(m), z[m]) for m in range(M))
    assert experts.nonzeros == (z > 0).sum(1).tolist()
    assert experts.experts[0].positions is not None
    assert experts.experts[0].positions.dtype == torch.int32
    assert experts.experts[3].positions is None


def test_bytes_are_eight_a_non_zero_below_half_density(log_alpha: torch.Tensor) -> None:
    experts = compressed(log_alpha)
    assert experts.nbytes == 8 * sum(experts.nonzeros[:3]) + 4 * P
    half = compressed(log_alpha, dtype=torch.float16)
    assert half.nbytes == 6 * sum(experts.nonzeros[:3]) + 2 * P
    assert torch.allclose(half.mask(1).float(), SHAPE.eval_gate(log_alpha[1]), atol=1e-3)


def test_merge_by_scatter_is_the_dense_merge(log_alpha: torch.Tensor) -> None:
    pre, delta = torch.randn(2, P)
    merger = Merger(pre, delta, compressed(log_alpha))
    for scores in (torch.rand(M), torch.tensor([1.0, 0, 1, 0]), torch.tensor([0.0, 0, 0, 0.3])):
        dense, *_ = merge(pre, delta, log_alpha, normalise(scores), Gate(SHAPE, training=False))
        assert torch.allclose(merger(scores), dense, atol=1e-6)
        assert torch.allclose(merger(normalise(scores)), dense, atol=1e-6)
    assert torch.equal(merger(torch.zeros(M)), pre)


def test_a_flip_touches_one_experts_non_zeros(log_alpha: torch.Tensor) -> None:
    experts = compressed(log_alpha)
    merger = Merger(torch.zeros(P), torch.ones(P), experts)
    merger(torch.tensor([1.0, 0, 1, 1]) / 3)
    before = merger.touched
    merger(torch.tensor([1.0, 1, 1, 1]) / 4)
    assert merger.touched - before == experts.nonzeros[1]


def test_a_binary_state_does_not_depend_on_the_way_to_it(log_alpha: torch.Tensor) -> None:
    pre, delta = torch.randn(2, P)
    experts = compressed(log_alpha)
    walk = [torch.randint(0, 2, (M,)).float() for _ in range(200)]
    travelled = Merger(pre, delta, experts)
    for scores in walk:
        assert torch.equal(travelled(scores), Merger(pre, delta, experts)(scores))
    assert sum((a != b).sum() for a, b in pairwise(walk)) > 100


def test_dense_parameters_are_one(log_alpha: torch.Tensor) -> None:
    dense = torch.zeros(P, dtype=torch.bool)
    dense[:10] = True
    experts = compressed(log_alpha, dense=dense)
    assert all(experts.mask(m)[:10].eq(1).all() for m in range(M))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_file_round_trip(log_alpha: torch.Tensor, tmp_path: Path, dtype: torch.dtype) -> None:
    experts = compressed(log_alpha, dtype=dtype)
    experts.save(tmp_path / "experts.safetensors")
    loaded = CompressedExperts.load(tmp_path / "experts.safetensors")
    assert loaded.size == P
    assert loaded.nbytes == experts.nbytes
    assert all(torch.equal(loaded.mask(m), experts.mask(m)) for m in range(M))
    assert [path.name for path in tmp_path.iterdir()] == ["experts.safetensors"]


def test_files_that_are_not_experts_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "text").write_text("not weights")
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    for name in ("text", "other", "absent"):
        with pytest.raises(UserError, match=name):
            CompressedExperts.load(tmp_path / name)
