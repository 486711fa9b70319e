"""Meta-Dataset's rules for variable way and shot (Triantafillou et al., ICLR 2020), as pure functions of image counts, in float64.

Class c has n_c images; q of them are queries, and r_c = n_c - q remain for the support set.
"""

import math
from collections.abc import Sequence

import numpy as np

from smatcli.errors import UserError

LOG_WEIGHTS = (math.log(0.5), math.log(2.0))
MAX_QUERIES = 10
MAX_SPAN = 392  # largest number of classes below a graph node that episodes are drawn from


def num_query(images_per_class: np.ndarray, max_num_query: int = 10, shots: int | Sequence[int] | None = None) -> int:
    """Query images per class: min(max, min_c floor(n_c / 2)); with fixed `shots` b, or a range (a, b), min(max, min_c n_c - b)."""
    fewest = int(np.min(images_per_class))
    most = shots if isinstance(shots, int) or shots is None else max(shots)
    queries = min(max_num_query, fewest // 2 if most is None else fewest - most)
    if queries < 1:
        needed = 2 if most is None else most + 1
        raise UserError(f"a class has {fewest} images, but an episode needs at least {needed}; drop such classes")
    return queries


def support_set_size(remaining_per_class: np.ndarray, beta: float, max_support: int = 500, max_per_class: int = 100) -> int:
    """Size of the support set: min(max_support, sum_c floor(beta * min(max_per_class, r_c) + 1)), with one `beta` in [0, 1) per episode."""
    capped = np.minimum(max_per_class, np.asarray(remaining_per_class, np.float64))
    return min(max_support, int(np.floor(beta * capped + 1).sum()))


def support_per_class(images_per_class: np.ndarray, remaining_per_class: np.ndarray, size: int, log_weights: np.ndarray) -> np.ndarray:
    """Support images of each class [C], int64: k_c = min(r_c, floor(p_c (S - ways)) + 1), with p_c proportional to n_c exp(w_c).

    `log_weights` w_c [C] are uniform in [log 0.5, log 2]. Images lost to rounding and limits are not redistributed.
    """
    counts = np.asarray(images_per_class, np.float64)
    weights = counts * np.exp(np.asarray(log_weights, np.float64))
    share = weights / weights.sum()
    wanted = np.floor(share * (size - len(counts))).astype(np.int64) + 1
    return np.asarray(np.minimum(np.asarray(remaining_per_class, np.int64), wanted))
