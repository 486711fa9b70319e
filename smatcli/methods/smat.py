"""Sparse MetA-Tuning (Chen et al., ICML 2024): M sparse interpolated experts, merged for every task (Algorithm 1)."""

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
from smatcli.methods.running.sharing import Cut
from smatcli.phases import phase
from smatcli.seams import Episode, Support, Task

__all__ = ["Injected", "SmatMethod"]

TOLERANCE = 0.02


class SmatMethod(RoutedMethod):
    """theta_i = theta_pre + theta_delta * sum_m alpha_im z_m, and its ablations (`masks.kind`, `masks.group`, `interpolated`).

    `log_alpha` [M, P] ([M, G] where masks are structured) and `sparsity` exist where masks are learned; `fixed` [M, G] bool holds masks
    that are drawn once. `theta_delta` is [P], or [M, P] where every expert has its own.
    `dense`: name prefixes of parameters whose mask is always 1 (the release's head); their log_alpha still counts in E[L0], as there.
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
        # Closed in this order: at theta and E[L0] of all tasks, then at each task's scores and router logits.
        self._cuts: list[Cut] = []

    @property
    def mask_state(self) -> Tensor | None:
        """What the masks are made of: log_alpha, the fixed masks, or None (all one)."""
        return self.log_alpha if self.masks.learned else self.fixed

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """`delta`, `masks`, `router`, `multipliers` (masks and multipliers where masks are learned): every trainable parameter once."""
        router = list(self.router.parameters())
        if not self.masks.learned:
            return {"delta": [self.theta_delta], "router": router}
        return {"delta": [self.theta_delta], "masks": [self.log_alpha], "router": router, "multipliers": [self.sparsity.multipliers]}

    def default_groups(self) -> dict[str, GroupConfig]:
        """Adam on the experts (a mask's gradient is some 1e-6 of a weight's, so SGD would need a rate of 1e6); ascent by plain SGD."""
        settings = {
            "delta": GroupConfig(optimizer="adam", lr=1e-3),
            "masks": GroupConfig(optimizer="adam", lr=0.02),
            "router": GroupConfig(optimizer="adamw", lr=1e-3, weight_decay=0.01, clip=1.0),
            "multipliers": GroupConfig(optimizer="sgd", lr=self.config.sparsity.lr, schedule="constant", warmup=0.0),
        }
        return {name: settings[name] for name in self.groups()}

    def mixture(self, alpha: Tensor, generator: torch.Generator, injected: Injected | None) -> Mixture:
        """theta_i [P], the sparsity penalty and the ascent of the multipliers."""
        noise = injected.masks if injected else self._noise(generator)
        return self._constrained(self.merge(alpha, training=True, noise=noise), alpha)

    def begin(self, episodes: Sequence[Episode], generators: Sequence[torch.Generator]) -> None:
        """One merge for all tasks, where masks are learned element by element for one theta_delta; theta [P] is freed task by task."""
        self._begun, self._cuts = {}, []
        if len(episodes) < 2 or not self.masks.learned or self.masks.groups is not None or not self.config.interpolated:
            return
        with torch.autocast(self.theta_pre.device.type, enabled=False):
            openings = [self._open(*pair) for pair in zip(episodes, generators, strict=True)]
            seeds = [self._noise(generator) for generator in generators]
            drawn = [seed for seed in seeds if isinstance(seed, int)]
            before, after = [Cut() for _ in openings], Cut()
            self._cuts = [after, *before]
            with phase("merge"):
                alphas = torch.stack([cut.at(opening.alpha) for cut, opening in zip(before, openings, strict=True)])
                tensors = (self.theta_pre, self.theta_delta, self.log_alpha, alphas)
                found = merge_tasks(*tensors, self.shape, seeds=drawn or None, dense=self.dense)
                for episode, opening, cut in zip(episodes, openings, before, strict=True):
                    # `found` shrinks: a task's theta lives no longer than the task.
                    theta, nonzeros, l0 = found.pop(0)
                    merged = Merged(after.at(theta), nonzeros, after.at(l0))
                    opening = opening._replace(router_logits=cut.at(opening.router_logits), alpha=opening.alpha.detach())
                    self._begun[id(episode)] = (episode, opening, partial(self._constrained, merged, opening.alpha))

    @torch.no_grad()
    def skip_tasks(self, generators: Sequence[torch.Generator]) -> None:
        """The router's part, and the multipliers that these tasks reset: where zeros are counted, their masks must be drawn for it."""
        super().skip_tasks(generators)
        settings = self.config.sparsity
        if not (self.masks.learned and settings.reset and settings.measure == "counted"):
            return
        scores = torch.zeros(self.config.experts).to(self.theta_pre)
        for generator in generators:
            self.router.scores(scores, generator)  # draws what the task draws before its masks
            merged = self.merge(scores, training=True, noise=self._noise(generator))
            self.sparsity.reset(self.measured_sparsity(merged.nonzeros))

    def end(self) -> None:
        """The one backward through the merge, then that of each task's router: in the order in which tasks one by one would sum them."""
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
        """theta [P] for merging scores alpha [M], with graph; the non-zeros and E[L0] of each mask [M]."""
        tensors = (self.theta_pre, self.theta_delta, self.mask_state, alpha)
        return self.masks.merge(*tensors, training=training, noise=noise, dense=self.dense)

    def measured_sparsity(self, nonzeros: Tensor) -> Tensor:
        """Counted sparsity [M] of the masks in use, from their numbers of non-zeros [M]."""
        return 1 - nonzeros / self.space.size

    def _noise(self, generator: torch.Generator) -> Noise:
        if not self.masks.learned or self.config.masks.noise == "deterministic":
            return None
        return int(torch.randint(2**62, (), device=generator.device, generator=generator))

    @torch.no_grad()
    def task(self, support: Support) -> Task:
        """theta_i with inference masks and noise-free scores.

        `merge(scores)` normalises scores of any scale itself; all zero is theta_pre. `delta` is the same merge: it remembers the last
        binary state, and touches only the non-zeros of the experts that differ from it, whatever `alpha_from` says.
        """
        alpha = self.inference_scores(support)
        if not self.config.interpolated:
            theta_pre, experts = self.theta_pre, self.compressed()
            merge = partial(mix, theta_pre, experts)
            return self.made(merge(alpha), alpha=alpha, merge=merge, parts=partial(self.parts_of, support))
        merger = Merger(self.theta_pre, self.theta_delta.detach(), self.compressed())
        known = {"alpha": alpha, "merge": merger, "delta": lambda alpha_from, alpha_to, theta: merger(alpha_to)}
        return self.made(merger(alpha), **known, parts=partial(self.parts_of, support))

    def part_tensors(self) -> dict[str, Tensor]:
        """`delta`, and `masks` where they are learned."""
        return {"delta": self.theta_delta, **({"masks": self.log_alpha} if self.masks.learned else {})}

    def compose(self, tensors: Mapping[str, Tensor], alpha: Tensor) -> Tensor:
        """theta [P] by the gates of inference."""
        state = tensors.get("masks", self.mask_state)
        return self.masks.merge(self.theta_pre, tensors["delta"], state, alpha, training=False, dense=self.dense).theta

    def compressed(self) -> CompressedExperts:
        """The inference masks in compressed form, made again when they have changed; z_m * theta_delta_m where each expert has its own."""
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
        """Clamps log_alpha, keeps multipliers at or above 0, lowers the router's temperature."""
        self._compressed = None
        if self.masks.learned:
            self.log_alpha.clamp_(-self.config.masks.clamp, self.config.masks.clamp)
            self.sparsity.project()
        self.router.anneal(tasks_done)

    @torch.no_grad()
    def statistics(self) -> dict[str, float]:
        """Sparsity over experts (expected; counted by the training and the inference gate), multipliers, temperature."""
        found: dict[str, Tensor] = {}
        state = self.mask_state
        if state is not None:
            expected = 1 - self.masks.expected_l0(state)
            gates = {"counted": self.masks.counted(state, "training"), "inference": self.masks.counted(state, "inference")}
            found |= {f"sparsity_{name}": share.mean() for name, share in {"expected": expected, **gates}.items()}
            found |= {"sparsity_min": expected.min(), "sparsity_max": expected.max()}
        if self.masks.learned:
            found |= {"multiplier_mean": self.sparsity.multipliers.mean(), "multiplier_max": self.sparsity.multipliers.max()}
        return numbers(found | {"temperature": self.router.temperature})

    @torch.no_grad()
    def feasible(self) -> bool:
        """Whether every expert's sparsity is at most 0.02 below tau (fixed masks have theirs from the start)."""
        if not self.masks.learned:
            return True
        expected = 1 - self.masks.expected_l0(self.log_alpha)
        counted = self.masks.counted(self.log_alpha, "training") if self.config.sparsity.measure == "counted" else expected
        return bool(self.sparsity.measured(1 - expected, counted).min() >= self.config.sparsity.tau - TOLERANCE)
