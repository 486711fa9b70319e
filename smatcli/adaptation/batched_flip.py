"""All single flips of a state measured in one batched forward pass, before it is known which of them the walk will ask for.

Algorithm 2 is sequential: a flip that is kept changes what the later ones start from. A state's loss depends on its bits alone, so what
was measured ahead is looked up, in the order in which the walk asks, and what it never asks for is forgotten. The walk is that of one
state at a time; features differ by the rounding of a batched product.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import vmap

from smatcli.adaptation.states import Bits, Measure, State

LARGEST = 1024  # images in a batch of all flips: more fill a device one state after the other as well
Shape = tuple[int, ...]


def can_batch(measure: Measure) -> bool:
    """Does the task say how its network is called with any parameters, and is the batch small enough to gain?"""
    task = measure.task
    known = task.module is not None and task.run is not None and task.space is not None
    return known and len(measure.alpha) * len(measure.images) <= LARGEST


class BatchedVisits:
    """`visit` for `walk`: measures the unseen neighbours of `here` together when the walk asks for one that is not known."""

    def __init__(self, measure: Measure) -> None:
        self.measure = measure
        self._seen: set[Bits] = set()
        self._base: Bits | None = None
        self._known: dict[Bits, State] = {}

    def __call__(self, here: State, bits: Bits) -> State:
        """The state `bits`, as `Measure.visit` would give it."""
        if here.bits is None:  # the first state of the walk has no neighbours yet
            found = self.measure.visit(here, bits)
        else:
            if bits not in self._known:
                self._known = self._measured(here, bits)  # what was known started from a state that the walk has left
            found = self._known.pop(bits)
            self.measure.trace.append((bits, found.loss))
        self._seen.add(bits)
        return found

    def _measured(self, here: State, bits: Bits) -> dict[Bits, State]:
        assert here.bits is not None
        first = next(m for m, (a, b) in enumerate(zip(here.bits, bits, strict=True)) if a != b)
        count = len(bits)
        order = [*range(first, count), *range(first)]  # the rest of this round, then the next one
        asked = [(*here.bits[:m], 1 - here.bits[m], *here.bits[m + 1 :]) for m in order]
        return together(self.measure, here, [one for one in asked if one not in self._seen])


def together(measure: Measure, here: State, states: list[Bits]) -> dict[Bits, State]:
    """The states, near `here`, by one forward pass over all their parameters."""
    task = measure.task
    module, run, space = task.module, task.run, task.space
    assert module is not None
    assert run is not None
    assert space is not None
    pairs = [measure.moved(here, bits) for bits in states]

    def embed(theta: Tensor) -> Tensor:
        return run(module, space.unflatten(theta), measure.images)

    features = vmap(embed)(torch.stack([theta for _, theta in pairs]))
    return {bits: measure.state(bits, *pair, found) for bits, pair, found in zip(states, pairs, features, strict=True)}


class BatchingChoice:
    """Which is faster on this device for a number of images: one state at a time, or all flips together; tried once for each."""

    def __init__(self, forced: bool | None = None) -> None:
        self.forced = forced
        self._found: dict[Shape, bool] = {}

    def batched(self, measure: Measure, start: State, bits: Bits) -> bool:
        """On a CPU never: batched products are slower there (a ViT of width 128: half as fast)."""
        if self.forced is not None:
            return self.forced and can_batch(measure)
        images = measure.images
        if images.device.type != "cuda" or not can_batch(measure):
            return False
        key = (len(measure.alpha), *images.shape)
        if key not in self._found:
            flips = [(*bits[:m], 1 - bits[m], *bits[m + 1 :]) for m in range(len(bits))]
            at = measure.state(bits, *measure.moved(start, bits), measure.task.embed(images, start.theta))
            one = _seconds(lambda: [measure.task.embed(images, measure.moved(at, flip)[1]) for flip in flips])
            self._found[key] = _seconds(lambda: together(measure, at, flips)) < one
        return self._found[key]


def _seconds(work: Callable[[], object]) -> float:
    """Of the second call: the first one chooses kernels."""
    work()
    torch.cuda.synchronize()
    begun = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - begun
