"""Optimizer states split over the processes: each keeps, and updates with, the states of its share of every large parameter.

The parameters themselves stay whole in every process (each merges masks of its own tasks over all of P); what is split are Adam's two
moments: 2 M P / N numbers instead of 2 M P. Rajbhandari et al., ZeRO (2020), stage 1.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from smatcli.engine.distributed import BUCKET, World

SMALLEST = BUCKET  # elements of a parameter that is worth splitting


class Shards:
    """The shares of this process. `held(p)` is what an optimizer is given for p: a view of p's share, or p itself where it is small."""

    def __init__(self, world: World, parameters: Sequence[nn.Parameter]) -> None:
        self.world = world
        self._held: dict[nn.Parameter, nn.Parameter] = {}
        for parameter in parameters if world.size > 1 else ():
            if parameter.numel() >= SMALLEST and parameter.is_contiguous():
                places = world.share(parameter.numel())
                self._held[parameter] = nn.Parameter(parameter.detach().view(-1)[places.start : places.stop])

    def held(self, parameter: nn.Parameter) -> nn.Parameter:
        return self._held.get(parameter, parameter)

    def hand_over(self, parameters: Iterable[nn.Parameter]) -> None:
        """Before an update: the shares see their parameters' (clipped) gradients."""
        for parameter in parameters:
            if parameter in self._held:
                self._held[parameter].grad = None if parameter.grad is None else self._cut(parameter.grad)

    def collect(self) -> None:
        """After an update: every process gets what the others made."""
        for parameter, part in self._held.items():
            whole = parameter.detach()
            self.world.collect(whole)
            whole.view(-1)[:1].add_(0)  # caches that watch the parameter's version must see that it changed
            part.grad = None

    def whole(self, parameter: nn.Parameter, state: Tensor) -> Tensor:
        """An optimizer's state of `parameter` in full (every process asks)."""
        if parameter not in self._held or not state.ndim:
            return state
        full = torch.empty(parameter.numel(), dtype=state.dtype, device=state.device)
        places = self.world.share(parameter.numel())
        full[places.start : places.stop] = state
        self.world.collect(full)
        return full.view(parameter.shape)

    def part(self, parameter: nn.Parameter, state: Tensor) -> Tensor:
        """What `held(parameter)` needs of a full state."""
        return self._cut(state) if parameter in self._held and state.ndim else state

    def _cut(self, tensor: Tensor) -> Tensor:
        places = self.world.share(tensor.numel())
        return tensor.reshape(-1)[places.start : places.stop]
