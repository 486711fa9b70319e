"""Optimizer groups, each with its own rule, learning rate, schedule and gradient clipping."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from smatcli.config.schema import GroupConfig
from smatcli.engine.loop.distributed import ALONE, World
from smatcli.engine.loop.shards import Shards
from smatcli.errors import SmatError, UserError, nearest


class NonFinite(SmatError):
    """The gradient norm of optimizer group `group` is NaN or infinite; nothing was updated."""

    def __init__(self, group: str, norm: float) -> None:
        super().__init__(f"the gradient of group {group!r} is {norm}")
        self.group = group
        self.norm = norm


def factor(config: GroupConfig, step: int, steps: int) -> float:
    """Return the learning rate at update `step` (from 0) of `steps`, as a fraction of the peak: linear warm-up, then the schedule."""
    warm = round(config.warmup * steps)
    if step < warm:
        return (step + 1) / warm
    share = min(1.0, (step - warm) / max(1, steps - warm))
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * share))
    return 1 - share if config.schedule == "linear" else 1.0


class Optimizers:
    """One torch optimizer per group; see `build_optimizers`."""

    def __init__(
        self, groups: dict[str, list[nn.Parameter]], configs: dict[str, GroupConfig], steps: int, no_decay: set[int], world: World = ALONE
    ) -> None:
        self.groups, self.configs, self.steps = groups, configs, steps
        self.step_index = 0
        self.shards = Shards(world, [param for params in groups.values() for param in params])
        held = {name: [self.shards.held(param) for param in params] for name, params in groups.items()}
        no_decay = {id(self.shards.held(param)) for params in groups.values() for param in params if id(param) in no_decay}
        self.optimizers = {name: _optimizer(params, configs[name], no_decay) for name, params in held.items()}

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        for params in self.groups.values():
            for param in params:
                param.grad = None

    def set_step(self, step: int) -> None:
        """Set the number of updates done, which determines the next learning rates."""
        self.step_index = step

    def rates(self) -> dict[str, float]:
        """Return the learning rate of each group in the next update."""
        return {name: config.lr * factor(config, self.step_index, self.steps) for name, config in self.configs.items()}

    @torch.no_grad()
    def step(self) -> dict[str, float]:
        """Clip and update every group. Return the gradient norms before clipping.

        Raises NonFinite, before anything is changed, if a norm is NaN or infinite.
        """
        gradients = {n: [p.grad for p in params if p.grad is not None] for n, params in self.groups.items()}
        norms = {n: nn.utils.get_total_norm(grads) for n, grads in gradients.items() if grads}
        # One transfer for all groups, so that a GPU synchronises once.
        values = torch.stack([norm.float() for norm in norms.values()]).tolist() if norms else []
        sizes = dict.fromkeys(self.groups, 0.0) | dict(zip(norms, values, strict=True))
        for name, value in sizes.items():
            if not math.isfinite(value):
                raise NonFinite(name, value)
        rates = self.rates()
        for name, optimizer in self.optimizers.items():
            clip = self.configs[name].clip
            if clip is not None and sizes[name] > clip:
                torch._foreach_mul_(gradients[name], clip / (sizes[name] + 1e-6))
            for group in optimizer.param_groups:
                group["lr"] = rates[name]
            self.shards.set_gradients(self.groups[name])
            optimizer.step()
        self.shards.collect()
        self.step_index += 1
        return sizes

    @torch.no_grad()
    def broken(self) -> str | None:
        """Describe a parameter that is NaN or infinite; None if all are finite."""
        for name, params in self.groups.items():
            for i, param in enumerate(params):
                # aminmax propagates NaN and, unlike isfinite, needs no mask of the parameter's size.
                if param.numel() and not bool(torch.isfinite(torch.stack(torch.aminmax(param))).all()):
                    return f"parameter {i} of group {name!r} is not finite"
        return None

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the whole state: tensors by 'group/parameter/name', and plain data (JSON)."""
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
        """Load the result of `state_dict`. Raises SmatError if it belongs to other groups or parameters."""
        _, own = self.state_dict()
        if state.get("groups") != own["groups"]:
            raise SmatError(f"the checkpoint has the optimizer groups {state.get('groups')}, this run has {own['groups']}")
        fresh: dict[str, dict[Tensor, dict[str, Tensor]]] = {name: {} for name in self.groups}
        for key, value in tensors.items():
            name, index, part = key.rsplit("/", 2)
            param = self.groups[name][int(index)]
            if value.ndim and value.shape != param.shape:
                raise SmatError(f"optimizer state {key} has shape {tuple(value.shape)}, its parameter {tuple(param.shape)}")
            # Adam's step counter is kept on the parameter's device if the update is fused, else on the CPU.
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
    """Build the optimizers of `groups` for `steps` updates from `configs`, with `defaults` for groups that are not in `configs`.

    Parameters in `no_decay` get no weight decay. The states of large parameters are split over the processes of `world`. Raises UserError
    for a configured group that does not exist, for a group without settings, and for an option that its optimizer would ignore.
    """
    names = list(groups)
    for name in configs:
        if name not in groups:
            groups_there = f"the method has {', '.join(names)}" if names else "the method has no trainable groups"
            raise UserError(f"{where}.{name}: no such optimizer group{nearest(name, names)} ({groups_there})")
    merged = {**(defaults or {}), **configs}
    for name in names:
        if name not in merged:
            raise UserError(f"{where}.{name} is missing: the group has no default settings")
        config = merged[name]
        if config.momentum and config.optimizer != "sgd":
            raise UserError(f"{where}.{name}.momentum: {config.optimizer} has no momentum; remove it or use optimizer: sgd")
    filled = [n for n in names if len(groups[n])]
    return Optimizers({n: list(groups[n]) for n in filled}, {n: merged[n] for n in filled}, steps, {id(p) for p in no_decay}, world)


def _optimizer(params: list[nn.Parameter], config: GroupConfig, no_decay: set[int]) -> torch.optim.Optimizer:
    plain = [p for p in params if id(p) in no_decay]
    decayed = [p for p in params if id(p) not in no_decay]
    split: list[dict[str, Any]] = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    split = [part for part in split if part["params"]]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in params)
    if config.optimizer == "sgd":
        return torch.optim.SGD(split, lr=config.lr, momentum=config.momentum, fused=fused)
    rule = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return rule(split, lr=config.lr, fused=fused)
