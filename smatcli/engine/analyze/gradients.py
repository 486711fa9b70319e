"""Analysis `gradients`: cosines between the gradients of tasks, by part of the model (Chen et al., ICML 2024, Fig. 3b)."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smatcli.engine.analyze.masks import CHUNK
from smatcli.engine.analyze.subject import AnalysisJob, Subject
from smatcli.methods.base import FullPrecision, embed_both
from smatcli.methods.prototypes import cosine_logits, prototypes
from smatcli.methods.smat import SmatMethod
from smatcli.runs.analysis import Analysis, texts
from smatcli.seams import Episode, Task

TASKS = 2  # per training dataset, by default


def jobs(subject: Subject) -> list[AnalysisJob]:
    """Return the single analysis, with the same number of episodes from each training dataset."""
    recipe, count = subject.recipe, subject.options.episodes or TASKS
    drawn = {"train": list(recipe.data.train), "episode": recipe.episode.model_dump(mode="json"), "seed": recipe.seed, "tasks": count}
    analysis = Analysis("gradients", "gradients", subject.settings(**drawn))
    return [AnalysisJob(analysis, lambda: fill(subject, analysis, count), count * len(recipe.data.train))]


def fill(subject: Subject, analysis: Analysis, count: int) -> None:
    """Fill the analysis with cosines between the gradients of training episodes, [K, E, E] for K parts of the model, in fp32.

    g is the gradient of a task's query cross-entropy at theta_i (prototypes from its support set; no noise, teacher or penalty).
    `theta`: g, with respect to all parameters. `delta`: (sum_m alpha_im z_m) g, with respect to theta_delta. `expert m`: z_m g, the part
    that passes through expert m (alpha_im > 0 cancels in the cosine; NaN for a task that does not use the expert).
    """
    recipe, method = subject.recipe, subject.method
    gradients, scores, names, indices, losses = [], [], [], [], []
    precision, method.precision = method.precision, FullPrecision()
    try:
        for dataset in recipe.data.train:
            for episode in subject.training_episodes(dataset, count):
                task = subject.task(episode)
                loss, gradient = task_gradient(task, episode)
                gradients.append(gradient.cpu())
                scores.append(torch.ones(1) if task.alpha is None else task.alpha.detach().float().cpu())
                names.append(dataset)
                indices.append(episode.index)
                losses.append(loss)
                subject.step(dataset=dataset, loss=loss)
    finally:
        method.precision = precision
    alpha = torch.stack(scores)
    grams = {name: cosines(gram) for name, gram in products(method, torch.stack(gradients), alpha).items()}
    cosine = np.stack(list(grams.values()))
    for m, name in enumerate(n for n in grams if n.startswith("expert ")):
        unused = (alpha[:, m] <= 0).numpy()
        cosine[list(grams).index(name)][unused[:, None] | unused[None, :]] = np.nan
    same = np.array(names)[:, None] == np.array(names)[None, :]
    lines = [["part", "pairs", "mean", "mean, same dataset", "mean, different datasets"]]
    for name, values in zip(grams, cosine, strict=True):
        means = [pair_values(values, wanted) for wanted in (np.ones_like(same), same, ~same)]
        lines.append([name, str(len(means[0])), *(f"{m.mean():.6f}" if len(m) else "" for m in means)])
    arrays = {
        "cosine": cosine.astype(np.float32),
        "part": texts(list(grams)),
        "dataset": texts(names),
        "index": np.array(indices),
        "loss": np.array(losses, np.float32),
        "alpha": alpha.numpy(),
    }
    analysis.groups, analysis.tables, analysis.facts = {"all": arrays}, {"": lines}, {"parameters": method.space.size}


def task_gradient(task: Task, episode: Episode) -> tuple[float, Tensor]:
    """Return the query loss of an episode at the task's parameters, and its gradient [P]."""
    theta, support = task.theta.detach().clone().requires_grad_(), episode.support
    with torch.enable_grad():
        support_features, query_features = embed_both(task.embed, episode, theta)
        logits = cosine_logits(query_features, prototypes(support_features, support.labels, support.ways), task.scale)
        loss = F.cross_entropy(logits, episode.query_labels)
        (gradient,) = torch.autograd.grad(loss, [theta])
    return float(loss.detach()), gradient


def products(method: object, gradients: Tensor, alpha: Tensor) -> dict[str, np.ndarray]:
    """Return the inner products [E, E] (float64) of gradients [E, P] by part of the model; `alpha` is [E, M]."""
    grams: dict[str, np.ndarray] = {}
    masks = _masks(method) if isinstance(method, SmatMethod) else None
    for start in range(0, gradients.shape[1], CHUNK):
        g = gradients[:, start : start + CHUNK]
        parts = {"theta": g}
        if isinstance(method, SmatMethod) and masks is not None:
            z = masks[:, start : start + CHUNK]
            if method.config.interpolated:
                parts["delta"] = g * (alpha @ z)
            parts |= {f"expert {m + 1}": g * row for m, row in enumerate(z)}
        for name, values in parts.items():
            gram = (values @ values.T).double().numpy()
            grams[name] = grams[name] + gram if name in grams else gram
    return grams


def _masks(method: SmatMethod) -> Tensor:
    """Return the inference masks z [M, P] on the CPU."""
    rows = method.masks.inference(method.mask_state, method.config.experts, method.theta_pre)
    dense = method.dense
    return torch.stack([(z if dense is None else z.masked_fill(dense, 1.0)).float().cpu() for z in rows]).detach()


def cosines(gram: np.ndarray) -> np.ndarray:
    """Return cosines [E, E] from inner products; NaN where a vector is zero."""
    norms = np.sqrt(np.diag(gram))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.outer(norms, norms) > 0, gram / np.outer(norms, norms), np.nan)


def pair_values(cosine: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the finite cosines of the pairs i < j in the mask `wanted` [E, E]."""
    chosen = np.triu(wanted, 1)
    values: np.ndarray = cosine[chosen]
    finite: np.ndarray = values[np.isfinite(values)]
    return finite
