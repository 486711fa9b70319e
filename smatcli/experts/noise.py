"""Counter-based noise of stochastic masks: recomputed wherever it is needed, with the same bits on every device.

The noise u of expert m at column p is a hash of p under two 32-bit keys, which derive from the task's seed and m. The C and the Triton
kernels of the merge compute the same hash; the keys are computed here only.
"""

import torch
from torch import Tensor

_WORD = 2**32 - 1
_LONG = 2**64 - 1
# Multipliers of a 32-bit integer hash with low bias (two multiplications, three shifts).
_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B


def keys_of(seed: int, experts: int) -> list[tuple[int, int]]:
    """Return a pair of 32-bit keys per expert, the second odd: SplitMix64 (Steele et al. 2014) from `seed`."""
    keys = []
    state = seed & _LONG
    for _ in range(experts):
        state = (state + 0x9E3779B97F4A7C15) & _LONG
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _LONG
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _LONG
        z ^= z >> 31
        keys.append((z & _WORD, (z >> 32) | 1))
    return keys


def key_tensor(seeds: list[int], experts: int) -> Tensor:
    """Return the keys of G seeds, [G, M, 2] int64 in [0, 2^32), as the fused kernels read them."""
    return torch.tensor([keys_of(seed, experts) for seed in seeds], dtype=torch.int64)


def uniform(keys: Tensor, columns: slice, like: Tensor) -> Tensor:
    """Return u [M, n] in (0, 1) for `keys` [M, 2] int64 and the columns of a slice: multiples of 2^-23 plus 2^-24.

    The result has the dtype and device of `like`; it is exact in fp32.
    """
    return uniform_at(keys, torch.arange(columns.start, columns.stop, dtype=torch.int32, device=like.device), like)


def uniform_at(keys: Tensor, columns: Tensor, like: Tensor) -> Tensor:
    """Return `uniform` for the column numbers `columns` [n] int32."""
    # Products of two's complement 32-bit integers wrap around like those of unsigned ones; right shifts differ, hence the masks.
    word = keys.to(like.device).to(torch.int32)
    x = columns * word[:, 1:] + word[:, :1]
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    x *= _signed(_FIRST)
    x ^= (x >> 15).bitwise_and_(0x1FFFF)
    x *= _signed(_SECOND)
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    return (x >> 9).bitwise_and_(0x7FFFFF).to(like.dtype).add_(0.5).mul_(2.0**-23)


def logistic(seed: int, experts: int, size: int, like: Tensor) -> Tensor:
    """Return logit(u) [M, size] of a seed, to be added to log_alpha."""
    return uniform(key_tensor([seed], experts)[0], slice(0, size), like).logit_()


def _signed(word: int) -> int:
    return word - 2**32 if word >= 2**31 else word
