"""Settings of the meta-tuning methods, with one model per method, selected by `method.name`."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from smatcli.config.base import Strict


class PretrainedConfig(Strict):
    """No meta-tuning: prototypes are computed with the pre-trained model."""

    name: Literal["pretrained"] = "pretrained"
    scale: float = Field(10.0, gt=0, description="logits = scale * cosine(query, prototype)")


class PmfConfig(Strict):
    """ProtoNet meta-training of all parameters (Hu et al., CVPR 2022)."""

    name: Literal["pmf"] = "pmf"
    scale: float = Field(10.0, gt=0, description="logits = scale * cosine(query, prototype)")


class MaskConfig(Strict):
    """Hard-concrete masks (Louizos et al. 2018)."""

    noise: Literal["stochastic", "deterministic"] = Field("stochastic", description="paper: stochastic; release: deterministic")
    beta: float = Field(2 / 3, gt=0)
    gamma: float = Field(-0.1, lt=0)
    zeta: float = Field(1.1, gt=1)
    eval_beta: float = Field(1.0, gt=0, description="temperature of the inference gate: 1 (Louizos et al. and the release) or beta")
    init_mean: float = Field(0.0, description="log_alpha ~ N(init_mean, init_std^2)")
    init_std: float = Field(0.5, ge=0)
    clamp: float = Field(4.605170185988092, gt=0, description="log_alpha is clamped to [-clamp, clamp]; release: log 100")
    kind: Literal["learned", "random", "magnitude", "dense"] = Field(
        "learned", description="random, magnitude: fixed from the start, with a fraction tau of zeros; dense: no zeros"
    )
    group: Literal["element", "input", "output"] = Field(
        "element", description="what a mask entry selects: one parameter, or all weights of an input or output feature"
    )


class RouterConfig(Strict):
    """The router (a hypernetwork): one transformer block that maps class prototypes under theta_pre to M logits."""

    pool: Literal["mean", "first"] = Field("mean", description="mean: permutation-invariant; first: token of class 0, as in the release")
    heads: int = Field(4, gt=0)
    mlp_ratio: float = Field(2.0, gt=0)
    skill_tokens: int = Field(4, ge=0)
    spectral_norm: bool = Field(True, description="spectral normalisation of the block's linear layers, as in the release")
    sampling: Literal["gumbel", "none"] = Field("gumbel", description="noise on the logits in training: relaxed Bernoulli, or none")
    temperature: tuple[float, float] = Field((5.0, 0.5), description="initial and final temperature of the Gumbel-sigmoid")
    temperature_tasks: int = Field(18000, gt=0, description="number of tasks over which the temperature decreases linearly")
    logit_l2: float = Field(0.0, ge=0, description="weight of mean(logits^2); release: 1e-4")


class SparsityConfig(Strict):
    """The constraint E[L0(z_m)] / dim <= 1 - tau, enforced by a Lagrangian."""

    tau: float = Field(0.9, ge=0, lt=1, description="target fraction of zeros in every expert")
    measure: Literal["expected", "counted"] = Field(
        "expected", description="sparsity in the constraint: 1 - E[L0] (paper) or the counted zeros (release)"
    )
    weighting: Literal["uniform", "alpha"] = Field(
        "uniform", description="weights of the constraints: equal (paper) or the merging scores (release)"
    )
    reset: bool = Field(True, description="reset a multiplier to 0 when its constraint holds")
    project: bool = Field(True, description="clip multipliers at 0 after each update; release: false")
    lr: float = Field(0.02, gt=0, description="learning rate of the gradient ascent on the multipliers")


class TeacherConfig(Strict):
    """The task-specific dense teacher: theta_i after K gradient steps on the query loss, detached."""

    steps: int = Field(1, ge=0, description="number of gradient steps (K); 0 = no teacher")
    prototypes: Literal["recomputed", "student"] = Field(
        "recomputed", description="those of the teacher's parameters (paper), or those of the student, updated in the same steps (release)"
    )
    lr: float = Field(5e-3, gt=0, description="learning rate of the gradient steps (SGD)")
    temperature: float = Field(2.0, gt=0)
    direction: Literal["forward", "reverse"] = Field(
        "forward", description="KL(teacher || student), or the release's KL(student || teacher)"
    )
    weight: float = Field(0.25, ge=0, le=1, description="loss = (1 - weight) CE + weight KD")
    pretrained: bool = Field(False, description="also distil from the pre-trained model, as in the release")


class SmatConfig(Strict):
    """Sparse MetA-Tuning (Chen et al., ICML 2024)."""

    name: Literal["smat"] = "smat"
    scale: float = Field(10.0, gt=0, description="logits = scale * cosine(query, prototype)")
    experts: int = Field(8, gt=0, description="number of experts (M)")
    interpolated: bool = Field(True, description="all experts share one theta_delta; false: one per expert")
    query_split: bool = Field(True, description="false: support and query form a single set, used for the prototypes and classified")
    inner_steps: int = Field(0, ge=0, description="gradient steps on the support loss before the query loss; release: 1, paper: 0")
    inner_lr: float = Field(1e-3, gt=0)
    masks: MaskConfig = MaskConfig()
    router: RouterConfig = RouterConfig()
    sparsity: SparsityConfig = SparsityConfig()
    teacher: TeacherConfig = TeacherConfig()

    @model_validator(mode="after")
    def _every_option_is_read(self) -> Self:
        kind = self.masks.kind
        if kind != "learned":
            unread = [f"masks.{key}" for key in _changed(self.masks, {"kind", "group"})]
            unread += [f"sparsity.{key}" for key in _changed(self.sparsity, {"tau"})]
            if unread:
                raise ValueError(f"{unread[0]} has no effect with masks.kind {kind}; remove it")
        if kind == "dense":
            if self.sparsity.tau:
                raise ValueError("masks.kind dense has no zeros; set sparsity.tau to 0")
            if self.masks.group != "element":
                raise ValueError("masks.group has no effect with masks.kind dense; remove it")
            if self.interpolated and self.experts > 1:
                raise ValueError("with masks.kind dense all experts are equal; set interpolated to false, or experts to 1")
        return self


class MlpExpertsConfig(Strict):
    """SMAT with dense experts in the MLP layers only; the position of the experts is fixed, not learned."""

    name: Literal["mlp_experts"] = "mlp_experts"
    scale: float = Field(10.0, gt=0, description="logits = scale * cosine(query, prototype)")
    experts: int = Field(8, gt=0, description="number of experts (M)")
    router: RouterConfig = RouterConfig()
    teacher: TeacherConfig = TeacherConfig()


class SoftMergeConfig(Strict):
    """M dense copies of every MLP, averaged per task with the scores of a router (SMEAR, Muqeeth et al. 2023).

    All parameters are trained.
    """

    name: Literal["softmerge"] = "softmerge"
    scale: float = Field(10.0, gt=0, description="logits = scale * cosine(query, prototype)")
    experts: int = Field(8, gt=0, description="number of experts (M)")
    router: RouterConfig = RouterConfig()


def _changed(config: BaseModel, allowed: set[str]) -> list[str]:
    """Return the fields that differ from their default, except those in `allowed`."""
    default = type(config)()
    return [key for key in type(config).model_fields if key not in allowed and getattr(config, key) != getattr(default, key)]


# The last model is the default: its keys are valid in a recipe without method.name.
MethodConfig = Annotated[PretrainedConfig | PmfConfig | SoftMergeConfig | MlpExpertsConfig | SmatConfig, Field(discriminator="name")]


_LATER = {"interpolated": True, "query_split": True, "masks": {"kind": "learned", "group": "element"}}


def method_facts(config: BaseModel) -> dict[str, Any]:
    """Return the settings of a method that results record.

    Options in `_LATER` are omitted at their default, so that results from before these options existed remain comparable.
    """
    facts = config.model_dump(mode="json")
    for key, default in _LATER.items():
        inner = default if isinstance(default, dict) else {}
        target = facts.get(key) if inner else facts
        for name, value in (inner or {key: default}).items():
            if isinstance(target, dict) and name in target and target[name] == value:
                del target[name]
    return facts
