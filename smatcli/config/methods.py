"""Settings of the meta-tuning methods, one model each; `method.name` chooses."""

from typing import Annotated, Literal

from pydantic import Field

from smatcli.config.base import Strict


class PretrainedConfig(Strict):
    """No meta-tuning: prototypes of the pre-trained model."""

    name: Literal["pretrained"] = "pretrained"
    scale: float = Field(10.0, gt=0, description="logits = scale * cosine(query, prototype)")


class PmfConfig(Strict):
    """ProtoNet meta-training of all parameters (Hu et al., CVPR 2022)."""

    name: Literal["pmf"] = "pmf"
    scale: float = Field(10.0, gt=0, description="logits = scale * cosine(query, prototype)")


class MaskConfig(Strict):
    """Hard-concrete masks (Louizos et al. 2018): beta 2/3, gamma -0.1, zeta 1.1 unless set."""

    noise: Literal["stochastic", "deterministic"] = Field("stochastic", description="paper: stochastic; release: deterministic")
    beta: float = Field(2 / 3, gt=0)
    gamma: float = Field(-0.1, lt=0)
    zeta: float = Field(1.1, gt=1)
    eval_beta: float = Field(1.0, gt=0, description="temperature of the inference gate: 1 (Louizos et al. and the release) or beta")
    init_mean: float = Field(0.0, description="log_alpha ~ N(init_mean, init_std^2)")
    init_std: float = Field(0.5, ge=0)
    clamp: float = Field(4.605170185988092, gt=0, description="log_alpha is kept within +-clamp; release: log 100")


class RouterConfig(Strict):
    """The hypernetwork: class prototypes under theta_pre -> one transformer block -> M logits."""

    pool: Literal["mean", "first"] = Field("mean", description="mean: permutation-invariant; first: class 0's token, as in the release")
    heads: int = Field(4, gt=0)
    mlp_ratio: float = Field(2.0, gt=0)
    skill_tokens: int = Field(4, ge=0)
    spectral_norm: bool = Field(True, description="spectral normalisation of the block's linear layers, as in the release")
    sampling: Literal["gumbel", "none"] = Field("gumbel", description="training: relaxed Bernoulli noise on the logits, or none")
    temperature: tuple[float, float] = Field((5.0, 0.5), description="first and last Gumbel-sigmoid temperature")
    temperature_tasks: int = Field(18000, gt=0, description="tasks over which the temperature falls linearly from first to last")
    logit_l2: float = Field(0.0, ge=0, description="weight of mean(logits^2); release: 1e-4")


class SparsityConfig(Strict):
    """The constraint E[L0(z_m)] / dim <= 1 - tau, by a Lagrangian."""

    tau: float = Field(0.9, ge=0, lt=1, description="target share of zeros in every expert")
    measure: Literal["expected", "counted"] = Field("expected", description="ascent on 1 - E[L0] (paper) or on counted zeros (release)")
    weighting: Literal["uniform", "alpha"] = Field("uniform", description="each expert alike (paper) or weighted by its score (release)")
    reset: bool = Field(True, description="multiplier back to 0 when its constraint holds")
    project: bool = Field(True, description="multipliers are kept at or above 0 after each update; release: false")
    lr: float = Field(0.02, gt=0, description="rate of the gradient ascent on the multipliers")


class TeacherConfig(Strict):
    """The task-specific dense teacher: theta_i after K gradient steps on the query loss, no gradient through it."""

    steps: int = Field(1, ge=0, description="K; 0 = no teacher")
    prototypes: Literal["recomputed", "student"] = Field(
        "recomputed", description="under the teacher's parameters (paper), or the student's, moved by the same steps (release)"
    )
    lr: float = Field(5e-3, gt=0, description="rate of these steps (SGD)")
    temperature: float = Field(2.0, gt=0)
    direction: Literal["forward", "reverse"] = Field(
        "forward", description="KL(teacher || student), or the release's KL(student || teacher)"
    )
    weight: float = Field(0.25, ge=0, le=1, description="loss = (1 - weight) CE + weight KD")
    pretrained: bool = Field(False, description="distil from the pre-trained model too (release)")


class SmatConfig(Strict):
    """Sparse MetA-Tuning (Chen et al., ICML 2024)."""

    name: Literal["smat"] = "smat"
    scale: float = Field(10.0, gt=0, description="logits = scale * cosine(query, prototype)")
    experts: int = Field(8, gt=0, description="M")
    inner_steps: int = Field(0, ge=0, description="steps on the support loss before the query loss; release: 1, paper: 0")
    inner_lr: float = Field(1e-3, gt=0)
    masks: MaskConfig = MaskConfig()
    router: RouterConfig = RouterConfig()
    sparsity: SparsityConfig = SparsityConfig()
    teacher: TeacherConfig = TeacherConfig()


MethodConfig = Annotated[PretrainedConfig | PmfConfig | SmatConfig, Field(discriminator="name")]
