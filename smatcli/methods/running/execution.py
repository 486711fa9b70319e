"""Execution of a backbone: compile its blocks, recompute activations, and process images in chunks, without changing results."""

import copy
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from smatcli.backbones.lean import lean as make_lean
from smatcli.errors import UserError
from smatcli.experts.space import ParameterSpace
from smatcli.methods.running.lazy_views import LazyViews
from smatcli.methods.running.recompute import can_recompute_cheaply, cheap_recomputation

Recompute = bool | Literal["auto", "cheap"]
Tensors = Mapping[str, Tensor]


@dataclass
class Compiled:
    """Compiled graphs: the number of images of each graph, and the total compile time in seconds."""

    shapes: list[int]
    seconds: float = 0.0

    def __str__(self) -> str:
        sizes = ", ".join(map(str, sorted(set(self.shapes))))
        return f"{len(self.shapes)} graphs in {self.seconds:.0f} s, for {sizes} images"


def bucket(count: int) -> int:
    """Round `count` images up to four sizes per octave, so that 1 to 1,024 images need at most 29 graphs."""
    if count <= 8:
        return 8
    step = 1 << max(0, (count - 1).bit_length() - 3)
    return -(-count // step) * step


def compiler_missing(device: torch.device) -> str | None:
    """Return the reason why `torch.compile` is unavailable, or None."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "Triton is not installed"
    if device.type == "cpu":
        return None if any(shutil.which(name) for name in ("g++", "clang++", "c++")) else "there is no C++ compiler"
    return f"not supported on {device.type}"


class Execution:
    """Run `module` with parameters by name on images [B, 3, H, W].

    `compile`: all transformer blocks are one compiled function, for numbers of images rounded up to a `bucket` (padded with zeros, which
    does not affect other images), by `backend` (default: inductor).
    `recompute`: recompute a block's activations in backward, either all of them (True) or the cheap ones ("cheap"; "auto": if the blocks
    are supported and not compiled).
    `chunk`: run at most this many images at a time and recompute all their activations in backward, so that memory does not grow with
    the episode.
    `lean`: compute only the CLS token in the last block, if the architecture is supported (`backbones.lean`). Results are equal up to
    rounding; ignored if blocks are compiled or fully recomputed.
    Raises `UserError` for a backbone without uniform blocks.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        compile: bool = False,
        recompute: Recompute = False,
        chunk: int | None = None,
        lean: bool = False,
        backend: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        short = make_lean(module) if lean and not compile and recompute is not True else None
        module = module if short is None else short
        self.module, self.recompute, self.chunk = module, recompute is True, chunk
        self._tower = {f"blocks.{i}": block for i, block in enumerate(_tower(module))}
        self._cheap = _cheap_blocks(_tower(module)[: None if short is None else -1], type(module).__name__, recompute, compile)
        self._backend = backend or _inductor
        self.compiled = Compiled([]) if compile else None
        self._blocks = _blocks(module, "train.compile" if compile else "train.checkpoint_activations") if compile or self.recompute else []
        self._block: Callable[[Tensors, Tensor], Tensor] = functional_block(self._blocks[0]) if self._blocks else _nothing
        if compile:
            self._block = self._compile(self._block)

    def __call__(self, tensors: Tensors | LazyViews, images: Tensor) -> Tensor:
        """Return features [B, D] under parameters by name."""
        if self.chunk is None or len(images) <= self.chunk:
            return self._part(tensors, images)
        graph = torch.is_grad_enabled() and any(t.requires_grad for t in tensors.values())
        parts = torch.split(images, self.chunk)
        if not graph:
            return torch.cat([self._part(tensors, part) for part in parts])
        kept: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        return torch.cat([checkpoint(self._part, tensors, part, **kept) for part in parts])

    def views(self, space: ParameterSpace, theta: Tensor) -> Tensors | LazyViews:
        """Return the parameters theta [P] by name, as lazy views if this execution benefits from them."""
        graph = torch.is_grad_enabled() and theta.requires_grad
        if not graph or theta.device.type != "cpu" or self.compiled is not None or not self._tower:
            return space.unflatten(theta)
        return LazyViews(space, theta, self._tower)

    def _part(self, tensors: Tensors | LazyViews, images: Tensor) -> Tensor:
        if isinstance(tensors, LazyViews):
            with tensors.attached():
                return self._part(tensors.tensors, images)
        count = len(images)
        if self.compiled is not None and bucket(count) > count:
            images = torch.cat([images, images.new_zeros(bucket(count) - count, *images.shape[1:])])
        with self._patched(), cheap_recomputation(self._cheap) if self._cheap else nullcontext():
            features: Tensor = functional_call(self.module, dict(tensors), (images,))
            return features[:count]

    @contextmanager
    def _patched(self) -> Iterator[None]:
        """Make blocks pass their tensors and input to `_run` inside this context."""
        try:
            for block in self._blocks:
                setattr(block, "forward", self._forward_of(block))  # noqa: B010
            yield
        finally:
            for block in self._blocks:
                block.__dict__.pop("forward", None)

    def _forward_of(self, block: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda x: self._run(dict(block.named_parameters()), x)

    def _run(self, tensors: Tensors, x: Tensor) -> Tensor:
        # The tensors are arguments, because the module no longer has the swapped parameters when backward recomputes the block.
        if self.recompute and torch.is_grad_enabled():
            kept: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
            result: Tensor = checkpoint(self._block, tensors, x, **kept)
            return result
        return self._block(tensors, x)

    def _compile(self, block: Callable[[Tensors, Tensor], Tensor]) -> Callable[[Tensors, Tensor], Tensor]:
        import torch._dynamo
        import torch._functorch.config

        compiled = self.compiled
        assert compiled is not None

        def backend(graph: Any, inputs: Any) -> Any:
            start = time.perf_counter()
            function = self._backend(graph, inputs)
            compiled.seconds += time.perf_counter() - start
            compiled.shapes.append(max(t.shape[0] for t in inputs if isinstance(t, Tensor) and t.ndim == 3))
            return function

        # Teacher and loss run backward through the same graph, so no backward may overwrite tensors that the forward saved.
        setattr(torch._functorch.config, "donated_buffer", False)  # noqa: B010
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 128)
        torch._dynamo.config.accumulated_recompile_limit = max(torch._dynamo.config.accumulated_recompile_limit, 512)
        return torch.compile(block, backend=backend, dynamic=False)


def _cheap_blocks(blocks: list[nn.Module], kind: str, recompute: Recompute, compile: bool) -> list[nn.Module]:
    """Return the blocks to recompute cheaply. Raises `UserError` if that was requested but is impossible."""
    if isinstance(recompute, bool) or (recompute == "auto" and compile):
        return []
    if compile:
        raise UserError(
            "train.checkpoint_activations=cheap: with train.compile, the compiler decides what to recompute; use auto, true or false"
        )
    if blocks and all(can_recompute_cheaply(block) for block in blocks):
        return blocks
    if recompute == "cheap":
        raise UserError(f"train.checkpoint_activations=cheap: the blocks of {kind} are not those of a plain ViT; use true")
    return []


def _tower(module: nn.Module) -> list[nn.Module]:
    blocks = getattr(module, "blocks", None)
    return list(blocks) if isinstance(blocks, nn.Sequential | nn.ModuleList) else []


def _inductor(graph: Any, inputs: Any) -> Any:
    from torch._inductor.compile_fx import compile_fx

    return compile_fx(graph, inputs)


def functional_block(block: nn.Module) -> Callable[[Tensors, Tensor], Tensor]:
    """Return `block` as a function of its tensors, which calls a copy of the block; the copy's own weights are not used."""
    template = copy.deepcopy(block).requires_grad_(requires_grad=False)

    def run(tensors: Tensors, x: Tensor) -> Tensor:
        return functional_call(template, dict(tensors), (x,))  # type: ignore[no-any-return]

    return run


def _nothing(tensors: Tensors, x: Tensor) -> Tensor:
    raise AssertionError("no blocks")


def _blocks(module: nn.Module, key: str) -> list[nn.Module]:
    blocks = _tower(module)
    if not blocks:
        raise UserError(f"{key}: {type(module).__name__} has no transformer blocks to run one by one; remove this key")
    if any(_signature(block) != _signature(blocks[0]) for block in blocks):
        raise UserError(f"{key}: the blocks of {type(module).__name__} differ from each other; remove this key")
    return blocks


def _signature(block: nn.Module) -> tuple[str, list[tuple[str, torch.Size]]]:
    return repr(block), [(name, p.shape) for name, p in block.named_parameters()] + [(n, b.shape) for n, b in block.named_buffers()]
