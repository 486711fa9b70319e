"""Small methods on a small vision transformer, and support sets that can be learned."""

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from smatcli.config.methods import MaskConfig, MethodConfig, PretrainedConfig, RouterConfig, SmatConfig, SoftMergeConfig, SparsityConfig
from smatcli.methods import build_method
from smatcli.methods.base import FlatMethod
from smatcli.seams import Support

ROUTER = RouterConfig(heads=2)
CONFIGS: dict[str, MethodConfig] = {
    "pretrained": PretrainedConfig(),
    "smat": SmatConfig(experts=3, router=ROUTER),
    "smat, inputs": SmatConfig(experts=3, router=ROUTER, masks=MaskConfig(group="input")),
    "smat, random": SmatConfig(experts=3, router=ROUTER, masks=MaskConfig(kind="random"), sparsity=SparsityConfig(tau=0.5)),
    "smat, own": SmatConfig(experts=2, router=ROUTER, interpolated=False),
    "softmerge": SoftMergeConfig(experts=2, router=ROUTER),
}


def backbone(**settings) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    return VisionTransformer(**{**sizes, **settings})


def make_method(name: str = "smat", **settings) -> FlatMethod:
    """Return a method with random changes to its trained tensors, so that theta is not theta_pre."""
    net = backbone(**settings)
    made = build_method(CONFIGS[name], net)
    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for group, parameters in made.groups().items():
            for p in parameters if group in ("delta", "experts", "shared") else []:
                p.add_(torch.randn(p.shape, generator=noise), alpha=0.05)
    made.after_step(1000)
    return made.eval()


def make_support(seed: int = 0, ways: int = 3, shots: int = 4, size: int = 16, noise: float = 1.0) -> Support:
    """Return a support set of noisy class patterns, with labels in random order."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(ways).repeat_interleave(shots)[torch.randperm(ways * shots, generator=generator)]
    patterns = torch.randn(ways, 3, size, size, generator=generator)
    return Support(patterns[labels] + noise * torch.randn(len(labels), 3, size, size, generator=generator), labels, ways)


def snapshot(method: nn.Module) -> dict[str, Tensor]:
    """Copy everything that a model stores: parameters, buffers, gradients, and the weights of its architecture."""
    found = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    found |= {f"grad.{name}": p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    return found | {f"net.{name}": t.clone() for name, t in method.backbone.state_dict().items()}  # type: ignore[operator, union-attr]


def assert_untouched(method: nn.Module, before: dict[str, Tensor]) -> None:
    after = snapshot(method)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
