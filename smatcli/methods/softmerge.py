"""SoftMerge: soft merging of M dense copies of each MLP by a router (SMEAR, Muqeeth et al. 2023), meta-trained as ProtoNet."""

from torch import Tensor, nn

from smatcli.config.methods import SoftMergeConfig
from smatcli.config.schema import GroupConfig
from smatcli.methods.mlp_experts import MlpMixture


class SoftMergeMethod(MlpMixture):
    """One merged network per task: MLPs averaged over M copies by the scores; all other parameters are trained (`shared` [P - P_mlp]).

    There is one score per task and expert for all layers. SMEAR has a router in every layer, which routes each example.
    """

    def __init__(self, config: SoftMergeConfig, backbone: nn.Module) -> None:
        super().__init__(backbone, config.scale, config.experts, config.router, None)
        self.shared = nn.Parameter(super().rest().clone())

    def rest(self) -> Tensor:
        """Return the shared parameters."""
        return self.shared

    def part_tensors(self) -> dict[str, Tensor]:
        """Return `experts` and `shared`."""
        return {**super().part_tensors(), "shared": self.shared}

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return `experts`, `shared` and `router`."""
        return {**super().groups(), "shared": [self.shared]}

    def default_groups(self) -> dict[str, GroupConfig]:
        """Return PMF's settings for all parameters of the network."""
        theta = GroupConfig(optimizer="adam", lr=1e-4, clip=1.0)
        return {**super().default_groups(), "experts": theta, "shared": theta}
