"""Parameters of transformer blocks as views of a flat vector, created when a block is reached.

Autograd processes nodes in reverse order of creation. If all views are created before the network runs, the gradients of all weights stay
separate tensors until the end of backward, scattered among short-lived activations: the heap fragments, and a process on a CPU takes a
third more memory. With lazy views, the gradients of a block become one tensor as soon as its backward ends.
"""

from collections.abc import Iterator, Mapping, ValuesView
from contextlib import contextmanager
from functools import partial
from itertools import groupby

import torch
from torch import Tensor, nn

from smatcli.experts.space import ParameterSpace


class LazyViews:
    """Views of theta [P] by name (`tensors`); inside `attached`, tensors of `blocks` (by name prefix) get their graph when a block runs.

    Raises `SmatError` if theta does not fit the space.
    """

    def __init__(self, space: ParameterSpace, theta: Tensor, blocks: Mapping[str, nn.Module]) -> None:
        space.check(theta)

        def owner(name: str) -> str | None:
            return next((prefix for prefix in blocks if name.startswith(f"{prefix}.")), None)

        groups = [(prefix, list(names)) for prefix, names in groupby(space.names, owner)]
        sizes, shapes = dict(zip(space.names, space.sizes, strict=True)), dict(zip(space.names, space.shapes, strict=True))
        parts = torch.split(theta, [sum(sizes[name] for name in names) for _, names in groups])
        self.tensors: dict[str, Tensor] = {}
        self._blocks: list[tuple[nn.Module, str, ParameterSpace, Tensor]] = []
        for (prefix, names), part in zip(groups, parts, strict=True):
            own = ParameterSpace(tuple(names), tuple(shapes[name] for name in names))
            self.tensors |= own.unflatten(part if prefix is None else part.detach())
            if prefix is not None:
                self._blocks.append((blocks[prefix], prefix, own, part))

    def values(self) -> ValuesView[Tensor]:
        """Return the tensors, like `values` of a mapping."""
        return self.tensors.values()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Make every block use its views with graph when it is called. The caller must restore the previous tensors."""
        handles = [block.register_forward_pre_hook(partial(_swap, prefix, own, part)) for block, prefix, own, part in self._blocks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _swap(prefix: str, own: ParameterSpace, part: Tensor, block: nn.Module, args: object) -> None:
    for name, tensor in own.unflatten(part).items():
        path, _, leaf = name.removeprefix(f"{prefix}.").rpartition(".")
        block.get_submodule(path)._parameters[leaf] = tensor  # type: ignore[assignment]
