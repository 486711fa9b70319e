"""Dropout whose noise belongs to a task: from the global generators alone, and from one state a member where tasks are batched by vmap."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def generator_of(device: torch.device) -> torch.Generator:
    """The global generator of a device."""
    if device.type == "cuda":
        return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    return torch.default_generator


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[torch.Generator]:
    """The global generator of a device begins at `seed`; afterwards the global generators are as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        generator = generator_of(device)
        generator.manual_seed(seed)
        yield generator


class Streams:
    """The generator states of the members that are tuned side by side; none while a task is tuned alone."""

    def __init__(self) -> None:
        self.states: list[Tensor] = []

    @contextmanager
    def of(self, seeds: Sequence[int], device: torch.device) -> Iterator[None]:
        """Each member draws what it would alone, after its seed was set."""
        with seeded(0, device) as generator:
            try:
                for seed in seeds:
                    generator.manual_seed(seed)
                    self.states.append(generator.get_state())
                yield
            finally:
                self.states = []

    def draw(self, member: int, like: Tensor, p: float) -> Tensor:
        """Zeros (with chance p) and 1 / (1 - p), shaped as `like`."""
        generator = generator_of(like.device)
        generator.set_state(self.states[member])
        found = F.dropout(torch.ones_like(like, memory_format=torch.contiguous_format), p, True)
        self.states[member] = generator.get_state()
        return found


class Dropout(nn.Module):
    """`nn.Dropout` whose noise within vmap is that of each member."""

    def __init__(self, p: float, streams: Streams) -> None:
        super().__init__()
        self.p, self.streams = p, streams

    def forward(self, x: Tensor) -> Tensor:
        """x with noise; while training only."""
        if not self.training:
            return x
        if not self.streams.states:
            return F.dropout(x, self.p, True)
        noise: Tensor = _Noise.apply(x, self.p, self.streams)
        return x * noise


class _Noise(torch.autograd.Function):
    """Noise shaped as x, by a rule for vmap; no gradient."""

    @staticmethod
    def forward(x: Tensor, p: float, streams: Streams) -> Tensor:
        raise AssertionError("only members side by side have streams")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        return None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None, None], x: Tensor, p: float, streams: Streams) -> tuple[Tensor, int]:
        with torch.no_grad():
            return torch.stack([streams.draw(i, one, p) for i, one in enumerate(x.detach().unbind(in_dims[0]))]), 0
