"""Dropout with reproducible noise per task: from the global generators, or from one generator state per task under vmap."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def generator_of(device: torch.device) -> torch.Generator:
    """Return the global generator of a device."""
    if device.type == "cuda":
        return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    return torch.default_generator


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[torch.Generator]:
    """Seed the global generator of a device; restore the global generators afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        generator = generator_of(device)
        generator.manual_seed(seed)
        yield generator


class Streams:
    """Generator states of the members of a group that is tuned side by side; empty while a task is tuned alone."""

    def __init__(self) -> None:
        self.states: list[Tensor] = []

    @contextmanager
    def of(self, seeds: Sequence[int], device: torch.device) -> Iterator[None]:
        """Let each member draw the same noise as if it had been seeded and tuned alone."""
        with seeded(0, device) as generator:
            try:
                for seed in seeds:
                    generator.manual_seed(seed)
                    self.states.append(generator.get_state())
                yield
            finally:
                self.states = []

    def draw(self, member: int, like: Tensor, p: float) -> Tensor:
        """Return a tensor in the shape of `like`: zero with probability p, else 1 / (1 - p)."""
        generator = generator_of(like.device)
        generator.set_state(self.states[member])
        noise = F.dropout(torch.ones_like(like, memory_format=torch.contiguous_format), p, training=True)
        self.states[member] = generator.get_state()
        return noise


class Dropout(nn.Module):
    """`nn.Dropout` with separate noise for each member under vmap."""

    def __init__(self, p: float, streams: Streams) -> None:
        super().__init__()
        self.p, self.streams = p, streams

    def forward(self, x: Tensor) -> Tensor:
        """Return x with noise, in training only."""
        if not self.training:
            return x
        if not self.streams.states:
            return F.dropout(x, self.p, training=True)
        noise: Tensor = _DropoutNoise.apply(x, self.p, self.streams)
        return x * noise


class _DropoutNoise(torch.autograd.Function):
    """Dropout noise in the shape of x, drawn per member by a vmap rule; no gradient."""

    @staticmethod
    def forward(x: Tensor, p: float, streams: Streams) -> Tensor:
        raise AssertionError("streams are used under vmap only")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        return None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None, None], x: Tensor, p: float, streams: Streams) -> tuple[Tensor, int]:
        with torch.no_grad():
            return torch.stack([streams.draw(i, row, p) for i, row in enumerate(x.detach().unbind(in_dims[0]))]), 0
