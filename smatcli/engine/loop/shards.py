"""Optimizer states that are split over the processes of a run (train.shard_optimizer), as in ZeRO-1 (Rajbhandari et al. 2020)."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from smatcli.engine.loop.distributed import BUCKET, World

SMALLEST = BUCKET  # elements; the states of smaller parameters are not split


class Shards:
    """This process's shares of the parameters. Its optimizer updates `held(p)`: a view of its share of p, or p itself if p is small."""

    def __init__(self, world: World, parameters: Sequence[nn.Parameter]) -> None:
        self.world = world
        self._held: dict[nn.Parameter, nn.Parameter] = {}
        for parameter in parameters if world.size > 1 else ():
            if parameter.numel() >= SMALLEST and parameter.is_contiguous():
                places = world.share(parameter.numel())
                self._held[parameter] = nn.Parameter(parameter.detach().view(-1)[places.start : places.stop])

    def held(self, parameter: nn.Parameter) -> nn.Parameter:
        """Return the tensor that the optimizer of this process updates for `parameter`."""
        return self._held.get(parameter, parameter)

    def set_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Copy the (clipped) gradients of the parameters to their shares, before an update."""
        for parameter in parameters:
            if parameter in self._held:
                self._held[parameter].grad = None if parameter.grad is None else self._share_of(parameter.grad)

    def collect(self) -> None:
        """Exchange the updated shares after an update, so that every process has all parameters."""
        for parameter, part in self._held.items():
            whole = parameter.detach()
            self.world.collect(whole)
            whole.view(-1)[:1].add_(0)  # increments the version counter, which caches compare
            part.grad = None

    def whole(self, parameter: nn.Parameter, state: Tensor) -> Tensor:
        """Return the full optimizer state of `parameter`; collective, so every process must call it."""
        if parameter not in self._held or not state.ndim:
            return state
        full = torch.empty(parameter.numel(), dtype=state.dtype, device=state.device)
        places = self.world.share(parameter.numel())
        full[places.start : places.stop] = state
        self.world.collect(full)
        return full.view(parameter.shape)

    def part(self, parameter: nn.Parameter, state: Tensor) -> Tensor:
        """Return the part of a full optimizer state that belongs to `held(parameter)`."""
        return self._share_of(state) if parameter in self._held and state.ndim else state

    def _share_of(self, tensor: Tensor) -> Tensor:
        places = self.world.share(tensor.numel())
        return tensor.reshape(-1)[places.start : places.stop]
