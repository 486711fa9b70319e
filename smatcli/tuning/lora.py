"""`lora`: low-rank updates of linear layers, by peft."""

from collections.abc import Sequence

from torch import Tensor, nn

from smatcli.config.tuning import LoraTuneConfig
from smatcli.tuning.base import Wrapped, only
from smatcli.tuning.layers import linear_layers

NAME = "default"  # name of the only adapter in peft's layers


class LoraTuner(Wrapped):
    """LoRA, W + alpha / r B A (Hu et al. 2022): A is initialised by Kaiming's rule, B with zeros."""

    def __init__(self, config: LoraTuneConfig, backbone: nn.Module, classes: int) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        super().__init__(backbone, classes)
        self.layers = list(linear_layers(backbone, config.layers))
        peft = LoraConfig(
            target_modules=self.layers,
            r=config.rank,
            lora_alpha=config.alpha,  # type: ignore[arg-type]
            lora_dropout=config.dropout,
            bias="none",
        )
        self.backbone = inject_adapter_in_model(peft, backbone)

    def experts(self) -> dict[str, list[tuple[Tensor, Tensor]]]:
        """Return rank-one parts (b [out, 1], a [1, in]) per layer, for comparison with `mlae`."""
        parts = {}
        for name in self.layers:
            layer = self.backbone.get_submodule(name)
            a, b = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight  # type: ignore[union-attr, index]
            parts[name] = [(b[:, i : i + 1].detach(), a[i : i + 1].detach()) for i in range(len(a))]
        return parts

    def settle(self, backbone: nn.Module) -> None:
        """Replace peft's layers by linear layers with merged weights."""
        for name in self.layers:
            layer = backbone.get_submodule(name)
            layer.merge(safe_merge=True)  # type: ignore[operator]
            backbone.set_submodule(name, layer.get_base_layer())  # type: ignore[operator]


def build(config: LoraTuneConfig, backbones: Sequence[nn.Module], classes: int) -> LoraTuner:
    """Build LoRA on the layers of the recipe."""
    return LoraTuner(config, only(backbones), classes)
