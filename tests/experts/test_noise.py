"""Counter-based noise: uniform, independent between experts, seeds and columns, and equal wherever it is computed."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from smatcli.experts.masks import HardConcrete
from smatcli.experts.merge import merge
from smatcli.experts.merge_eager import Gate
from smatcli.experts.noise import key_tensor, keys_of, logistic, uniform


def drawn(seed: int, experts: int = 4, size: int = 50_001) -> Tensor:
    return uniform(key_tensor([seed], experts)[0], slice(0, size), torch.zeros(1, dtype=torch.float64))


def plainly(k0: int, k1: int, columns: int) -> np.ndarray:
    """Compute the documented hash in unsigned 64-bit integers."""
    word = np.uint64(2**32 - 1)
    x = (np.arange(columns, dtype=np.uint64) * np.uint64(k1) + np.uint64(k0)) & word
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> np.uint64(shift))) * np.uint64(factor)) & word
    x ^= x >> np.uint64(16)
    return ((x >> np.uint64(9)).astype(np.float64) + 0.5) * 2.0**-23


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_is_the_hash_of_the_column(dtype: torch.dtype) -> None:
    keys = key_tensor([11], 3)[0]
    found = uniform(keys, slice(0, 5000), torch.zeros(1, dtype=dtype))
    expected = np.stack([plainly(int(k0), int(k1), 5000) for k0, k1 in keys])
    assert np.array_equal(found.double().numpy(), expected)
    assert torch.equal(uniform(keys, slice(1200, 1300), torch.zeros(1, dtype=dtype)), found[:, 1200:1300])
    assert torch.equal(logistic(11, 3, 5000, torch.zeros(1, dtype=dtype)), found.logit())


def test_keys_are_words_and_differ() -> None:
    """The second key of a pair is odd, so that its products with columns are distinct."""
    pairs = [pair for seed in range(100) for pair in keys_of(seed, 16)]
    assert len(set(pairs)) == 1600
    assert all(0 <= k0 < 2**32 and 0 < k1 < 2**32 and k1 % 2 for k0, k1 in pairs)
    assert keys_of(2**62 - 1, 2) != keys_of(2**62 - 2, 2)
    assert keys_of(3, 2) == keys_of(3, 16)[:2]


def test_it_is_uniform() -> None:
    u = drawn(1)
    assert u.shape == (4, 50_001)
    assert u.min() > 0
    assert u.max() < 1
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3
    pairs = torch.stack([u[:, :-1].flatten(), u[:, 1:].flatten()])
    counts = torch.histogramdd(pairs.T.contiguous(), [16, 16], [0, 1, 0, 1]).hist
    assert stats.chisquare(counts.flatten().numpy()).pvalue > 1e-3


def test_each_bit_is_fair() -> None:
    bits = (drawn(2) * 2**23).long().flatten()
    shares = torch.stack([(bits >> place & 1).double().mean() for place in range(23)])
    assert (shares - 0.5).abs().max() < 5 * 0.5 / len(bits) ** 0.5


def test_experts_seeds_and_columns_are_independent() -> None:
    """Correlations between experts, seeds and neighbouring columns are no larger than chance."""
    streams = torch.cat([drawn(seed) for seed in (1, 2, 3, 2**40)])
    streams = torch.cat([streams, *(streams[:4].roll(step, 1) for step in (1, 2, 16, 512, 4096))])
    found = torch.corrcoef(streams) - torch.eye(len(streams))
    assert found.abs().max() < 5 / 50_001**0.5


def test_it_gives_the_closed_forms_sparsity() -> None:
    shape, log_alpha, pre = HardConcrete(), torch.full((2, 100_000), -1.0), torch.zeros(100_000)
    nonzeros = merge(pre, pre, log_alpha, torch.ones(2), Gate(shape, noise=3)).nonzeros
    assert torch.allclose(nonzeros / 100_000, shape.expected_l0_element(torch.tensor(-1.0)), atol=0.006)
