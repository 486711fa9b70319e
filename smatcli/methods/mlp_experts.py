"""SMAT with a fixed sparsity pattern: M dense experts over the MLP layers only (Table 2 of Chen et al., ICML 2024)."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from smatcli.config.methods import MlpExpertsConfig, RouterConfig, TeacherConfig
from smatcli.config.schema import GroupConfig
from smatcli.experts.merge import normalise
from smatcli.experts.mlp import MlpParts
from smatcli.experts.router import Router
from smatcli.methods.routed import Injected, Mixture, RoutedMethod, numbers
from smatcli.seams import Support, Task


class MlpMixture(RoutedMethod):
    """Methods whose theta_i has the MLP layers theta_pre + sum_m alpha_im e_m; all other parameters come from `rest`.

    The differences e_m of the experts from theta_pre are `experts` [M, P_mlp]. They start at zero: every expert is a copy of the
    pre-trained MLPs.
    """

    def __init__(self, backbone: nn.Module, scale: float, experts: int, router: RouterConfig, teacher: TeacherConfig | None) -> None:
        super().__init__(backbone, scale, teacher)
        self.parts = MlpParts.of(self.space)
        self.experts = nn.Parameter(self.theta_pre.new_zeros(experts, self.parts.size))
        self.router = Router(router, int(backbone.num_features), experts)  # type: ignore[arg-type]

    def rest(self) -> Tensor:
        """Return the parameters outside the MLP layers, [P - P_mlp]: the pre-trained ones."""
        return self.parts.take(self.theta_pre)[1]

    def merge(self, alpha: Tensor) -> Tensor:
        """Return theta [P] for normalised scores alpha [M], with graph."""
        return self.parts.join(self.parts.take(self.theta_pre)[0] + alpha @ self.experts, self.rest())

    def mixture(self, alpha: Tensor, generator: torch.Generator, injected: Injected | None) -> Mixture:
        """Return theta_i, without further loss terms."""
        return Mixture(self.merge(alpha), {}, {})

    @torch.no_grad()
    def task(self, support: Support) -> Task:
        """Return theta_i for noise-free scores. Its `merge(scores)` normalises scores of any scale; all zero give the pre-trained MLPs."""
        alpha = self.inference_scores(support)

        @torch.no_grad()
        def merge(scores: Tensor) -> Tensor:
            return self.merge(normalise(scores.to(alpha)))

        return self.made(merge(alpha), alpha=alpha, merge=merge, parts=partial(self.parts_of, support))

    def part_tensors(self) -> dict[str, Tensor]:
        """Return `experts`."""
        return {"experts": self.experts}

    def compose(self, tensors: Mapping[str, Tensor], alpha: Tensor) -> Tensor:
        """Return theta [P]; parameters outside the MLP layers are `shared` if `tensors` has it."""
        mlp, rest = self.parts.take(self.theta_pre)
        return self.parts.join(mlp + alpha @ tensors["experts"], tensors.get("shared", rest))

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return `experts` and `router`."""
        return {"experts": [self.experts], "router": list(self.router.parameters())}

    def default_groups(self) -> dict[str, GroupConfig]:
        """Return the settings of SMAT's `delta` and `router`."""
        return {
            "experts": GroupConfig(optimizer="adam", lr=1e-3),
            "router": GroupConfig(optimizer="adamw", lr=1e-3, weight_decay=0.01, clip=1.0),
        }

    def after_step(self, tasks_done: int) -> None:
        """Lower the router's temperature."""
        self.router.anneal(tasks_done)

    @torch.no_grad()
    def statistics(self) -> dict[str, float]:
        """Return the numbers of parameters (of one expert, of all trained ones), the experts' relative change, and the temperature."""
        mlp = self.parts.take(self.theta_pre)[0]
        counts = {
            "parameters_expert": torch.tensor(self.parts.size),
            "parameters_trained": torch.tensor(sum(p.numel() for p in self.parameters() if p.requires_grad)),
        }
        moved = (self.experts.norm(dim=1) / mlp.norm()).mean()
        return {name: float(n) for name, n in counts.items()} | numbers({"moved": moved, "temperature": self.router.temperature})


class MlpExpertsMethod(MlpMixture):
    """SMAT's task loss with experts in the MLP layers; all other parameters stay pre-trained."""

    def __init__(self, config: MlpExpertsConfig, backbone: nn.Module) -> None:
        super().__init__(backbone, config.scale, config.experts, config.router, config.teacher)
