"""Sparse MetA-Tuning (Chen et al., ICML 2024): M sparse interpolated experts, merged per task (Algorithm 1)."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from smatcli.config.methods import SmatConfig
from smatcli.config.schema import GroupConfig
from smatcli.experts.compress import CompressedExperts, Merger, mix
from smatcli.experts.families import Masks
from smatcli.experts.merge import Merged, merge_tasks
from smatcli.experts.merge_eager import Noise
from smatcli.experts.router import Router
from smatcli.experts.sparsity import SparsityController
from smatcli.methods.routed import Injected, Mixture, RoutedMethod, numbers
from smatcli.methods.running.graph_cut import GraphCut
from smatcli.phases import phase
from smatcli.seams import Episode, Support, Task

__all__ = ["Injected", "SmatMethod"]

TOLERANCE = 0.02


class SmatMethod(RoutedMethod):
    """theta_i = theta_pre + theta_delta * sum_m alpha_im z_m, and its ablations (`masks.kind`, `masks.group`, `interpolated`).

    Learned masks have `log_alpha` [M, P] ([M, G] if structured) and `sparsity`; masks that are drawn once are `fixed` [M, G] (bool).
    `theta_delta` is [P], or [M, P] if every expert has its own.
    `dense`: name prefixes of parameters whose mask is always 1 (the head in the release); their log_alpha still counts in E[L0], as in
    the release.
    """

    dense: Tensor | None
    fixed: Tensor | None
    log_alpha: nn.Parameter
    sparsity: SparsityController

    def __init__(self, config: SmatConfig, backbone: nn.Module, dense: tuple[str, ...] = ()) -> None:
        super().__init__(backbone, config.scale, config.teacher, (config.inner_steps, config.inner_lr), config.query_split)
        self.config = config
        self.masks = Masks(config.masks, self.space, own=not config.interpolated)
        self.shape = self.masks.shape
        zeros = torch.zeros_like(self.theta_pre)
        self.theta_delta = nn.Parameter(zeros if config.interpolated else zeros.repeat(config.experts, 1))
        if self.masks.learned:
            self.log_alpha = nn.Parameter(self.masks.initial_log_alpha(config.experts).to(self.theta_pre))
        else:
            self.register_buffer("fixed", self.masks.draw(config.experts, self.theta_pre, config.sparsity.tau))
        self.router = Router(config.router, int(backbone.num_features), config.experts)  # type: ignore[arg-type]
        if self.masks.learned:
            self.sparsity = SparsityController(config.sparsity, config.experts)
        self.register_buffer("dense", self.space.where(dense) if dense else None, persistent=False)
        self._compressed: tuple[object, CompressedExperts] | None = None
        # Backward order: first theta and E[L0] of all tasks, then each task's scores and router logits.
        self._cuts: list[GraphCut] = []

    @property
    def mask_state(self) -> Tensor | None:
        """State of the masks: log_alpha, the fixed masks, or None (all one)."""
        return self.log_alpha if self.masks.learned else self.fixed

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return `delta` and `router`, and `masks` and `multipliers` if masks are learned: every trainable parameter once."""
        router = list(self.router.parameters())
        if not self.masks.learned:
            return {"delta": [self.theta_delta], "router": router}
        return {"delta": [self.theta_delta], "masks": [self.log_alpha], "router": router, "multipliers": [self.sparsity.multipliers]}

    def default_groups(self) -> dict[str, GroupConfig]:
        """Return Adam for the experts and plain SGD for the multipliers.

        A mask's gradient is about 1e-6 of a weight's, so that SGD would need a learning rate of 1e6.
        """
        settings = {
            "delta": GroupConfig(optimizer="adam", lr=1e-3),
            "masks": GroupConfig(optimizer="adam", lr=0.02),
            "router": GroupConfig(optimizer="adamw", lr=1e-3, weight_decay=0.01, clip=1.0),
            "multipliers": GroupConfig(optimizer="sgd", lr=self.config.sparsity.lr, schedule="constant", warmup=0.0),
        }
        return {name: settings[name] for name in self.groups()}

    def mixture(self, alpha: Tensor, generator: torch.Generator, injected: Injected | None) -> Mixture:
        """Return theta_i [P], the sparsity penalty and the ascent of the multipliers."""
        noise = injected.masks if injected else self._noise(generator)
        return self._constrained(self.merge(alpha, training=True, noise=noise), alpha)

    def begin(self, episodes: Sequence[Episode], generators: Sequence[torch.Generator]) -> None:
        """Merge once for all tasks, if masks are learned element-wise for a shared theta_delta; each theta [P] is freed with its task."""
        self._begun, self._cuts = {}, []
        if len(episodes) < 2 or not self.masks.learned or self.masks.groups is not None or not self.config.interpolated:
            return
        with torch.autocast(self.theta_pre.device.type, enabled=False):
            starts = [self._start(*pair) for pair in zip(episodes, generators, strict=True)]
            seeds = [self._noise(generator) for generator in generators]
            drawn = [seed for seed in seeds if isinstance(seed, int)]
            before, after = [GraphCut() for _ in starts], GraphCut()
            self._cuts = [after, *before]
            with phase("merge"):
                alphas = torch.stack([cut.at(start.alpha) for cut, start in zip(before, starts, strict=True)])
                tensors = (self.theta_pre, self.theta_delta, self.log_alpha, alphas)
                merges = merge_tasks(*tensors, self.shape, seeds=drawn or None, dense=self.dense)
                for episode, start, cut in zip(episodes, starts, before, strict=True):
                    # `merges` shrinks, so that a task's theta does not outlive the task.
                    theta, nonzeros, l0 = merges.pop(0)
                    merged = Merged(after.at(theta), nonzeros, after.at(l0))
                    start = start._replace(router_logits=cut.at(start.router_logits), alpha=start.alpha.detach())
                    self._begun[id(episode)] = (episode, start, partial(self._constrained, merged, start.alpha))

    @torch.no_grad()
    def skip_tasks(self, generators: Sequence[torch.Generator]) -> None:
        """Update the router and reset multipliers as these tasks would; masks must be drawn if zeros are counted."""
        super().skip_tasks(generators)
        settings = self.config.sparsity
        if not (self.masks.learned and settings.reset and settings.measure == "counted"):
            return
        scores = torch.zeros(self.config.experts).to(self.theta_pre)
        for generator in generators:
            self.router.scores(scores, generator)  # advances the generator, as the task does before it draws its masks
            merged = self.merge(scores, training=True, noise=self._noise(generator))
            self.sparsity.reset(self.measured_sparsity(merged.nonzeros))

    def end(self) -> None:
        """Run the shared backward pass of the merge, then each router backward pass, and sum gradients in the order of separate tasks."""
        self._begun = {}
        for cut in self._cuts:
            cut.close()
        self._cuts = []

    def _constrained(self, merged: Merged, alpha: Tensor) -> Mixture:
        measured = self.measured_sparsity(merged.nonzeros)
        if not self.masks.learned:
            return Mixture(merged.theta, {}, {"sparsity": measured.mean()})
        measured = self.sparsity.measured(merged.expected_l0, measured)
        self.sparsity.reset(measured)
        penalty, ascent = self.sparsity.terms(merged.expected_l0, measured, alpha)
        logs = {"sparsity": measured.mean(), "multiplier": self.sparsity.multipliers.detach().mean()}
        return Mixture(merged.theta, {"sparsity": penalty, "lagrangian": ascent}, logs)

    def merge(self, alpha: Tensor, *, training: bool, noise: Noise = None) -> Merged:
        """Return theta [P] for merging scores alpha [M], with graph, and the non-zeros and E[L0] of each mask [M]."""
        tensors = (self.theta_pre, self.theta_delta, self.mask_state, alpha)
        return self.masks.merge(*tensors, training=training, noise=noise, dense=self.dense)

    def measured_sparsity(self, nonzeros: Tensor) -> Tensor:
        """Return the counted sparsity [M] of masks, from their numbers of non-zeros [M]."""
        return 1 - nonzeros / self.space.size

    def _noise(self, generator: torch.Generator) -> Noise:
        if not self.masks.learned or self.config.masks.noise == "deterministic":
            return None
        return int(torch.randint(2**62, (), device=generator.device, generator=generator))

    @torch.no_grad()
    def task(self, support: Support) -> Task:
        """Return theta_i with inference masks and noise-free scores.

        `merge(scores)` normalises scores of any scale; all zero give theta_pre. `delta` is the same merge: it remembers the last binary
        state and touches only the non-zeros of the experts that differ from it; it ignores `alpha_from`.
        """
        alpha = self.inference_scores(support)
        if not self.config.interpolated:
            theta_pre, experts = self.theta_pre, self.compressed()
            merge = partial(mix, theta_pre, experts)
            return self.made(merge(alpha), alpha=alpha, merge=merge, parts=partial(self.parts_of, support))
        merger = Merger(self.theta_pre, self.theta_delta.detach(), self.compressed())
        fields = {"alpha": alpha, "merge": merger, "delta": lambda alpha_from, alpha_to, theta: merger(alpha_to)}
        return self.made(merger(alpha), **fields, parts=partial(self.parts_of, support))

    def part_tensors(self) -> dict[str, Tensor]:
        """Return `delta`, and `masks` if they are learned."""
        return {"delta": self.theta_delta, **({"masks": self.log_alpha} if self.masks.learned else {})}

    def compose(self, tensors: Mapping[str, Tensor], alpha: Tensor) -> Tensor:
        """Return theta [P] under the inference gates."""
        state = tensors.get("masks", self.mask_state)
        return self.masks.merge(self.theta_pre, tensors["delta"], state, alpha, training=False, dense=self.dense).theta

    def compressed(self) -> CompressedExperts:
        """Return the inference masks in compressed form (z_m * theta_delta_m if each expert has its own); cached until they change."""
        state, own = self.mask_state, not self.config.interpolated
        sources = [t for t in (state, self.theta_delta if own else None) if t is not None]
        key = tuple((t.data_ptr(), t._version) for t in sources)
        if self._compressed is None or self._compressed[0] != key:
            rows = self.masks.inference(state, self.config.experts, self.theta_pre)
            if own:
                rows = (z * delta for z, delta in zip(rows, self.theta_delta.detach(), strict=True))
            if self.dense is not None:
                dense = self.dense
                rows = (z.masked_fill(dense, 1.0) for z in rows)
            self._compressed = (key, CompressedExperts.of(rows))
        return self._compressed[1]

    @torch.no_grad()
    def after_step(self, tasks_done: int) -> None:
        """Clamp log_alpha, keep multipliers at or above 0, and lower the router's temperature."""
        self._compressed = None
        if self.masks.learned:
            self.log_alpha.clamp_(-self.config.masks.clamp, self.config.masks.clamp)
            self.sparsity.project()
        self.router.anneal(tasks_done)

    @torch.no_grad()
    def statistics(self) -> dict[str, float]:
        """Return sparsity over experts (expected; counted under the training and inference gates), multipliers, and temperature."""
        values: dict[str, Tensor] = {}
        state = self.mask_state
        if state is not None:
            expected = 1 - self.masks.expected_l0(state)
            gates = {"counted": self.masks.counted(state, "training"), "inference": self.masks.counted(state, "inference")}
            values |= {f"sparsity_{name}": share.mean() for name, share in {"expected": expected, **gates}.items()}
            values |= {"sparsity_min": expected.min(), "sparsity_max": expected.max()}
        if self.masks.learned:
            values |= {"multiplier_mean": self.sparsity.multipliers.mean(), "multiplier_max": self.sparsity.multipliers.max()}
        return numbers(values | {"temperature": self.router.temperature})

    @torch.no_grad()
    def feasible(self) -> bool:
        """Whether every expert's sparsity is at most 0.02 below tau; always true for fixed masks."""
        if not self.masks.learned:
            return True
        expected = 1 - self.masks.expected_l0(self.log_alpha)
        counted = self.masks.counted(self.log_alpha, "training") if self.config.sparsity.measure == "counted" else expected
        return bool(self.sparsity.measured(1 - expected, counted).min() >= self.config.sparsity.tau - TOLERANCE)
