"""Evaluate all single flips of a state in one batched forward pass, before the walk requests them.

Algorithm 2 is sequential: an accepted flip changes the start of the later ones. But the loss of a state depends only on its bits, so that
losses measured in advance can be looked up in the order of the walk; unused losses are discarded. The walk is the same as without batching;
features differ by the rounding of batched products.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import vmap

from smatcli.adaptation.states import Bits, Measure, State

LARGEST = 1024  # images in a batch of all flips; more images fill a device without batching
Shape = tuple[int, ...]


def can_batch(measure: Measure) -> bool:
    """Whether the task's network can be called with any parameters, and the batch is small enough to benefit."""
    task = measure.task
    callable_network = task.module is not None and task.run is not None and task.space is not None
    return callable_network and len(measure.alpha) * len(measure.images) <= LARGEST


class BatchedVisits:
    """`visit` for `walk`: measure all unseen neighbours of `here` together when the walk requests one that is not cached."""

    def __init__(self, measure: Measure) -> None:
        self.measure = measure
        self._seen: set[Bits] = set()
        self._base: Bits | None = None
        self._cached: dict[Bits, State] = {}

    def __call__(self, here: State, bits: Bits) -> State:
        """Return the state `bits`, as `Measure.visit` would."""
        if here.bits is None:  # the first state of the walk has no neighbours yet
            state = self.measure.visit(here, bits)
        else:
            if bits not in self._cached:
                self._cached = self._measured(here, bits)  # cached states are neighbours of a state that the walk has left
            state = self._cached.pop(bits)
            self.measure.trace.append((bits, state.loss))
        self._seen.add(bits)
        return state

    def _measured(self, here: State, bits: Bits) -> dict[Bits, State]:
        assert here.bits is not None
        first = next(m for m, (a, b) in enumerate(zip(here.bits, bits, strict=True)) if a != b)
        count = len(bits)
        order = [*range(first, count), *range(first)]  # the rest of this round, then the next round
        flips = [(*here.bits[:m], 1 - here.bits[m], *here.bits[m + 1 :]) for m in order]
        return measure_together(self.measure, here, [flip for flip in flips if flip not in self._seen])


def measure_together(measure: Measure, here: State, states: list[Bits]) -> dict[Bits, State]:
    """Measure states near `here` in one forward pass over all their parameters."""
    task = measure.task
    module, run, space = task.module, task.run, task.space
    assert module is not None
    assert run is not None
    assert space is not None
    pairs = [measure.moved(here, bits) for bits in states]

    def embed(theta: Tensor) -> Tensor:
        return run(module, space.unflatten(theta), measure.images)

    features = vmap(embed)(torch.stack([theta for _, theta in pairs]))
    return {bits: measure.state(bits, *pair, rows) for bits, pair, rows in zip(states, pairs, features, strict=True)}


class BatchingChoice:
    """Choice between one state at a time and all flips together: the faster on this device, by timing both once per shape."""

    def __init__(self, forced: bool | None = None) -> None:
        self.forced = forced
        self._choices: dict[Shape, bool] = {}

    def batched(self, measure: Measure, start: State, bits: Bits) -> bool:
        """Whether to batch; never on a CPU, where batched products are slower (half as fast for a ViT of width 128)."""
        if self.forced is not None:
            return self.forced and can_batch(measure)
        images = measure.images
        if images.device.type != "cuda" or not can_batch(measure):
            return False
        key = (len(measure.alpha), *images.shape)
        if key not in self._choices:
            flips = [(*bits[:m], 1 - bits[m], *bits[m + 1 :]) for m in range(len(bits))]
            at = measure.state(bits, *measure.moved(start, bits), measure.task.embed(images, start.theta))
            separate = _seconds(lambda: [measure.task.embed(images, measure.moved(at, flip)[1]) for flip in flips])
            self._choices[key] = _seconds(lambda: measure_together(measure, at, flips)) < separate
        return self._choices[key]


def _seconds(work: Callable[[], object]) -> float:
    """Return the duration of the second call in seconds; the first call selects kernels."""
    work()
    torch.cuda.synchronize()
    begun = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - begun
