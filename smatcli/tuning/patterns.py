"""Patterns of MLAE: the number of experts per block, or the mean number of experts that dropout keeps."""

from smatcli.config.tuning import MlaeConfig
from smatcli.errors import UserError

LEVELS = 4  # one per quarter of the depth: 1/4, 3/4, 5/4 and 7/4 of the mean


def counts(pattern: str, mean: int, depth: int, seed: int = 0) -> list[int]:
    """Return the number of experts in each of `depth` blocks, `mean` * `depth` in total.

    incremental: [2, 2, 2, 6, 6, 6, 10, 10, 10, 14, 14, 14] for a mean of 8 in 12 blocks (MLAE); decremental: reversed; hourglass: many at
    both ends, few in the middle; protruding: few at both ends, many in the middle; random: uniform in [1, 2 mean - 1], redrawn until the
    sum is right. If the depth is not a multiple of 4, numbers rise evenly from a quarter of the mean to seven quarters.
    """
    if pattern == "uniform":
        return [mean] * depth
    if pattern == "random":
        return _random(mean, depth, seed)
    rising = _rising(mean, depth)
    if pattern == "incremental":
        return rising
    if pattern == "decremental":
        return rising[::-1]
    middle = rising if pattern == "protruding" else rising[::-1]
    return middle[::2] + middle[1::2][::-1]  # every second value from the left, the others in reverse from the right


def _rising(mean: int, depth: int) -> list[int]:
    if depth % LEVELS == 0:
        shares = [(2 * (i * LEVELS // depth) + 1) / LEVELS for i in range(depth)]
    else:
        shares = [0.25 + 1.5 * i / max(1, depth - 1) if depth > 1 else 1.0 for i in range(depth)]
    exact = [share * mean for share in shares]
    numbers = [int(value) for value in exact]
    left = mean * depth - sum(numbers)
    for i in sorted(range(depth), key=lambda i: (numbers[i] - exact[i], -i))[:left]:  # largest remainder, deeper blocks first
        numbers[i] += 1
    return sorted(numbers)


def _random(mean: int, depth: int, seed: int) -> list[int]:
    from smatcli.data.counted import counted_rng

    rng = counted_rng("mlae-pattern", seed, mean, depth)
    while True:
        numbers = rng.integers(1, 2 * mean, depth)
        if int(numbers.sum()) == mean * depth:
            return [int(n) for n in numbers]


def experts_of(config: MlaeConfig, depth: int) -> list[int]:
    """Return the number of experts per block. Raises `UserError` for a pattern that does not fit the depth."""
    mean = config.rank // config.cell
    if config.mask not in ("fixed", "mixed"):
        return [mean] * depth
    return _listed(config, depth) or counts(_name(config, "incremental"), mean, depth, config.pattern_seed)


def rates_of(config: MlaeConfig, depth: int) -> list[float]:
    """Return the probability of dropping an expert, per block; for `stochastic`, the mean number kept follows the pattern.

    p_l = 1 - (1 - p) n_l / mean(n). Raises `UserError` if that is not a probability.
    """
    if config.mask in ("none", "fixed"):
        return [0.0] * depth
    if isinstance(config.p, list):
        if len(config.p) != depth:
            raise UserError(f"tuner.p: has {len(config.p)} values, but the backbone has {depth} blocks; give one value per block")
        return list(config.p)
    if config.mask == "mixed":
        return [config.p] * depth
    mean = config.rank // config.cell
    kept = _listed(config, depth) or counts(_name(config, "uniform"), mean, depth, config.pattern_seed)
    rates = [config.p + (1 - config.p) * (1 - n / mean) for n in kept]
    if min(rates) < -1e-9 or max(rates) >= 1:
        least = 1 - mean / max(kept)
        hint = "blocks with no expert at all" if max(rates) >= 1 else f"more than all of them in a block; set p to {least:.3g} or more"
        raise UserError(f"tuner.pattern: with p = {config.p:g} it keeps {kept} of {mean} experts on average times {1 - config.p:g}: {hint}")
    return [max(0.0, rate) for rate in rates]


def _name(config: MlaeConfig, default: str) -> str:
    return config.pattern if isinstance(config.pattern, str) else default


def _listed(config: MlaeConfig, depth: int) -> list[int] | None:
    if not isinstance(config.pattern, list):
        return None
    if len(config.pattern) != depth or min(config.pattern) < 0 or not any(config.pattern):
        raise UserError(f"tuner.pattern: {config.pattern} does not fit; give {depth} numbers of experts, one per block, not all 0")
    return list(config.pattern)
