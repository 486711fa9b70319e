"""Fine-tuning of low-rank updates of the q and v projections of all attention layers (LoRA, Hu et al. 2022), by peft on the timm model."""

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from smatcli.adaptation.dropout import Dropout, Streams, seeded
from smatcli.adaptation.finetune import FineTune, Tunable
from smatcli.config.finetune import LoraAdaptConfig
from smatcli.errors import UserError
from smatcli.experts.space import ParameterSpace
from smatcli.seams import Task

TUNED = ("q", "v")
SEPARATE = {"q", "v", "q_proj", "v_proj", "query", "value"}
SEED = 0  # for the initial A, which is the same for every task; the initial B is zero


class SplitQkv(nn.Module):
    """Replacement of a fused qkv projection by three layers, so that q and v can change separately. Every call supplies the weights."""

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        outputs, bias = fused.out_features // 3, fused.bias is not None
        like = {"bias": bias, "device": fused.weight.device, "dtype": fused.weight.dtype}
        layers = [nn.utils.skip_init(nn.Linear, fused.in_features, outputs, **like) for _ in range(3)]
        self.q, self.k, self.v = layers

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., D] to [..., 3 D]."""
        return torch.cat([self.q(x), self.k(x), self.v(x)], -1)


class LoraNetwork:
    """A copy of an architecture with LoRA branches: call `module` with `tensors(theta, branches)`.

    `space` lists the tensors of the branches, `initial` [N] are their initial values. The copy's own weights are empty.
    """

    def __init__(self, module: nn.Module, base: ParameterSpace, config: LoraAdaptConfig) -> None:
        self.base, self.scaling = base, config.alpha / config.rank
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(SEED)
            self.module, self.fused, self.targets = _branched(module, config)
        branches = {name: p for name, p in self.module.named_parameters() if ".lora_" in name}
        self.space = ParameterSpace(tuple(branches), tuple(p.shape for p in branches.values()))
        self.initial = self.space.flatten(self.module)
        for parameter in self.module.parameters():
            parameter.data = parameter.data.new_empty(0)
        self.streams = Streams()
        for name, part in list(self.module.named_modules()):
            if name.endswith(".lora_dropout") and config.dropout:
                part.default = Dropout(config.dropout, self.streams)

    def tensors(self, theta: Tensor, branches: Tensor) -> dict[str, Tensor]:
        """Return the parameters of `module` by name, for theta [P] and branches [N], as views."""
        named = {}
        for name, tensor in self.base.unflatten(theta).items():
            layer, kind = name.rpartition(".")[::2]
            if layer in self.fused:
                for part, third in zip("qkv", tensor.chunk(3), strict=True):
                    named[self._inner(f"{layer}.{part}", kind)] = third
            else:
                named[self._inner(layer, kind)] = tensor
        return {**named, **self.space.unflatten(branches)}

    def _inner(self, layer: str, kind: str) -> str:
        return f"{layer}.base_layer.{kind}" if layer in self.targets else f"{layer}.{kind}".removeprefix(".")

    def merged(self, theta: Tensor, branches: Tensor) -> Tensor:
        """Return theta [P] with the branches added to their weights."""
        out = theta.clone()
        weights = self.base.unflatten(out)
        parts = self.space.unflatten(branches)
        for target in self.targets:
            change = self.scaling * (parts[f"{target}.lora_B.default.weight"] @ parts[f"{target}.lora_A.default.weight"])
            layer, part = target.rpartition(".")[::2]
            weight = weights[f"{layer}.weight"].chunk(3)["qkv".index(part)] if layer in self.fused else weights[f"{target}.weight"]
            weight.add_(change)
        return out


def _split(net: nn.Module) -> tuple[set[str], list[str]]:
    """Replace fused projections by `SplitQkv`; return their names, and those of all layers that get a branch."""
    fused, targets = set(), []
    for name, layer in list(net.named_modules()):
        parent, last = name.rpartition(".")[::2]
        if not isinstance(layer, nn.Linear):
            continue
        if last == "qkv" and layer.out_features % 3 == 0:
            owner = net.get_submodule(parent)
            if getattr(owner, "q_bias", None) is not None:
                raise UserError(f"lora: {type(owner).__name__} keeps the biases of its fused qkv separately; use --adapt full")
            setattr(owner, last, SplitQkv(layer))
            fused.add(name)
            targets += [f"{name}.{part}" for part in TUNED]
        elif last in SEPARATE:
            targets.append(name)
    return fused, targets


def _branched(module: nn.Module, config: LoraAdaptConfig) -> tuple[nn.Module, set[str], set[str]]:
    """Return a copy with branches by peft, the names of its split projections, and those of the layers with a branch."""
    from peft import LoraConfig, inject_adapter_in_model

    net = copy.deepcopy(module).eval()
    fused, targets = _split(net)
    if not targets:
        raise UserError(f"lora: {type(module).__name__} has no attention layers with q and v projections; use --adapt full")
    settings: dict[str, Any] = {"r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout, "bias": "none"}
    return inject_adapter_in_model(LoraConfig(target_modules=targets, **settings), net), fused, set(targets)


class LoraAdaptation(FineTune[LoraAdaptConfig]):
    """Branches of rank r on q and v; the classifier has theta_i with the branches merged into it."""

    name = "lora"

    def __init__(self, config: LoraAdaptConfig) -> None:
        super().__init__(config)
        self.factor, self.noisy = config.factor, config.dropout > 0
        self._networks: list[tuple[nn.Module, LoraNetwork]] = []

    def network(self, task: Task) -> LoraNetwork:
        """Return the network with branches; the network of the last architecture is cached."""
        if task.module is None or task.space is None:
            raise UserError("lora needs a method whose tasks have a network; use --adapt full")
        if not self._networks or self._networks[0][0] is not task.module:
            self._networks[:] = [(task.module, LoraNetwork(task.module, task.space, self.config))]
        return self._networks[0][1]

    def tunable(self, task: Task, several: bool = False) -> Tunable:
        """Return the branches [N] as the tuned values."""
        net, run, theta = self.network(task), task.run, task.theta.clone()
        assert run is not None
        return Tunable(
            start=net.initial.to(theta),
            network=lambda values: net.tensors(theta, values),
            embed=lambda images, tensors: run(net.module, tensors, images),
            theta=lambda values: net.merged(theta, values),
            pure=lambda values, fixed, images: run(net.module, net.tensors(fixed, values), images),
            fixed=theta,
        )

    def noise(self, tasks: Sequence[Task]) -> AbstractContextManager[object]:
        """Seed the global generators, from which dropout draws, per task; restore them afterwards."""
        device, seeds = tasks[0].theta.device, [task.seed for task in tasks]
        return seeded(seeds[0], device) if len(tasks) == 1 else self.network(tasks[0]).streams.of(seeds, device)
