"""Optimizers by group: each with its own rule, rate, schedule and gradient clipping, counted in steps."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from smatcli.config.schema import GroupConfig
from smatcli.engine.loop.distributed import ALONE, BUCKET, World
from smatcli.errors import SmatError, UserError, nearest

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


class NonFinite(SmatError):
    """A gradient norm that is NaN or infinite; nothing was updated. `group` names the optimizer group."""

    def __init__(self, group: str, norm: float) -> None:
        super().__init__(f"the gradient of group {group!r} is {norm}")
        self.group = group
        self.norm = norm


def factor(config: GroupConfig, step: int, steps: int) -> float:
    """Share of the peak rate that update `step` (from 0) of `steps` uses: linear warm-up, then the schedule."""
    warm = round(config.warmup * steps)
    if step < warm:
        return (step + 1) / warm
    share = min(1.0, (step - warm) / max(1, steps - warm))
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * share))
    return 1 - share if config.schedule == "linear" else 1.0


class Optimizers:
    """One torch optimizer a group; made by `build_optimizers`."""

    def __init__(
        self, groups: dict[str, list[nn.Parameter]], configs: dict[str, GroupConfig], steps: int, bare: set[int], world: World = ALONE
    ) -> None:
        self.groups, self.configs, self.steps = groups, configs, steps
        self.step_index = 0
        self.shards = Shards(world, [param for params in groups.values() for param in params])
        held = {name: [self.shards.held(param) for param in params] for name, params in groups.items()}
        bare = {id(self.shards.held(param)) for params in groups.values() for param in params if id(param) in bare}
        self.optimizers = {name: _optimizer(params, configs[name], bare) for name, params in held.items()}

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for params in self.groups.values():
            for param in params:
                param.grad = None

    def set_step(self, step: int) -> None:
        """Updates done so far; the next one takes its rates from here."""
        self.step_index = step

    def rates(self) -> dict[str, float]:
        """Learning rate of the next update, per group."""
        return {name: config.lr * factor(config, self.step_index, self.steps) for name, config in self.configs.items()}

    @torch.no_grad()
    def step(self) -> dict[str, float]:
        """Clip and update every group; returns the gradient norms before clipping.

        Raises NonFinite before anything is changed when a norm is NaN or infinite.
        """
        found = {n: [p.grad for p in params if p.grad is not None] for n, params in self.groups.items()}
        norms = {n: nn.utils.get_total_norm(grads) for n, grads in found.items() if grads}
        # One transfer for all groups: a GPU waits once.
        values = torch.stack([norm.float() for norm in norms.values()]).tolist() if norms else []
        sizes = dict.fromkeys(self.groups, 0.0) | dict(zip(norms, values, strict=True))
        for name, value in sizes.items():
            if not math.isfinite(value):
                raise NonFinite(name, value)
        rates = self.rates()
        for name, optimizer in self.optimizers.items():
            clip = self.configs[name].clip
            if clip is not None and sizes[name] > clip:
                torch._foreach_mul_(found[name], clip / (sizes[name] + 1e-6))
            for group in optimizer.param_groups:
                group["lr"] = rates[name]
            self.shards.hand_over(self.groups[name])
            optimizer.step()
        self.shards.collect()
        self.step_index += 1
        return sizes

    @torch.no_grad()
    def broken(self) -> str | None:
        """What to say of a parameter that is NaN or infinite; None when all are finite."""
        for name, params in self.groups.items():
            for i, param in enumerate(params):
                # The extremes are NaN where one value is; a mask of all would take as much memory as the parameter.
                if param.numel() and not bool(torch.isfinite(torch.stack(torch.aminmax(param))).all()):
                    return f"parameter {i} of group {name!r} is not finite"
        return None

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors by 'group/parameter/name' and plain data (JSON): together the whole state."""
        tensors = {
            f"{name}/{i}/{key}": self.shards.whole(param, value)
            for name, params in self.groups.items()
            for i, param in enumerate(params)
            for key, value in self.optimizers[name].state.get(self.shards.held(param), {}).items()
            if isinstance(value, Tensor)
        }
        kinds = {name: {"optimizer": c.optimizer, "parameters": len(self.groups[name])} for name, c in self.configs.items()}
        return tensors, {"step": self.step_index, "groups": kinds}

    def load_state_dict(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave; SmatError when it belongs to other groups or parameters."""
        _, own = self.state_dict()
        if state.get("groups") != own["groups"]:
            raise SmatError(f"the checkpoint's optimizer groups {state.get('groups')} are not those of this run {own['groups']}")
        fresh: dict[str, dict[Tensor, dict[str, Tensor]]] = {name: {} for name in self.groups}
        for key, value in tensors.items():
            name, index, part = key.rsplit("/", 2)
            param = self.groups[name][int(index)]
            if value.ndim and value.shape != param.shape:
                raise SmatError(f"optimizer state {key} has shape {tuple(value.shape)}, its parameter {tuple(param.shape)}")
            # Adam's step counter lives where its update wants it: on the device of the parameter when fused, else on the CPU.
            here = param.device if value.ndim or self.optimizers[name].defaults.get("fused") else torch.device("cpu")
            fresh[name].setdefault(self.shards.held(param), {})[part] = self.shards.part(param, value).to(here, copy=True)
        for name, optimizer in self.optimizers.items():
            optimizer.state.clear()
            optimizer.state.update(fresh[name])
        self.step_index = int(state["step"])


def build_optimizers(
    groups: Mapping[str, Sequence[nn.Parameter]],
    configs: Mapping[str, GroupConfig],
    steps: int,
    defaults: Mapping[str, GroupConfig] | None = None,
    no_decay: Collection[nn.Parameter] = (),
    where: str = "train.groups",
    world: World = ALONE,
) -> Optimizers:
    """Optimizers for `groups` over `steps` updates; `defaults` fill in for groups that `configs` lacks.

    UserError on a configured group that does not exist, one without settings, and an option that its optimizer would ignore.
    Parameters in `no_decay` get no weight decay. The states of large parameters are split over the processes of `world`.
    """
    names = list(groups)
    for name in configs:
        if name not in groups:
            known = f"the method has {', '.join(names)}" if names else "the method has no trainable groups"
            raise UserError(f"{where}.{name}: no such optimizer group{nearest(name, names)} ({known})")
    merged = {**(defaults or {}), **configs}
    for name in names:
        if name not in merged:
            raise UserError(f"{where}.{name} is missing: the group has no default settings")
        config = merged[name]
        if config.momentum and config.optimizer != "sgd":
            raise UserError(f"{where}.{name}.momentum: {config.optimizer} has no momentum; remove it or use optimizer: sgd")
    filled = [n for n in names if len(groups[n])]
    return Optimizers({n: list(groups[n]) for n in filled}, {n: merged[n] for n in filled}, steps, {id(p) for p in no_decay}, world)


def _optimizer(params: list[nn.Parameter], config: GroupConfig, bare: set[int]) -> torch.optim.Optimizer:
    plain = [p for p in params if id(p) in bare]
    decayed = [p for p in params if id(p) not in bare]
    split: list[dict[str, Any]] = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    split = [part for part in split if part["params"]]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in params)
    if config.optimizer == "sgd":
        return torch.optim.SGD(split, lr=config.lr, momentum=config.momentum, fused=fused)
    rule = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return rule(split, lr=config.lr, fused=fused)
