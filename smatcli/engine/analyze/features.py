"""One episode seen through the model: support and query features on their first two principal axes, before and after tuning."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smatcli.engine.analyze.subject import Job, Subject
from smatcli.engine.evaluate.questions import Dataset
from smatcli.errors import UserError
from smatcli.methods.prototypes import accuracy, cosine_logits, prototypes
from smatcli.runs.analysis import Analysis, texts
from smatcli.seams import Adaptation, Episode

STAGES = ("pre-trained", "meta-tuned")


def jobs(subject: Subject) -> list[Job]:
    """One analysis an adaptation; without named datasets the first in-domain and the first out-of-domain one are looked at."""
    chosen, made = subject.datasets, []
    if not subject.chosen:
        chosen = list({d.domain: d for d in reversed(subject.datasets)}.values())[::-1]
    for adapt in subject.adapts:
        subject.check(adapt)
        settings = {**subject.asked(None, adapt), "index": subject.index, "shown": [d.name for d in chosen]}
        found = Analysis("features", f"features-{subject.variant(adapt)}-{subject.questions.folder}", settings)
        found.facts = {"adapt": subject.variant(adapt)}
        made.append(Job(found, partial(fill, subject, adapt, chosen, found), len(chosen)))
    return made


def fill(subject: Subject, adapt: str, chosen: Sequence[Dataset], found: Analysis) -> None:
    """By dataset `coordinates` [K, S + Q, 2] of the unit-length features in K stages (pre-trained, meta-tuned, and adapted where that
    changes the parameters), `explained` [K, 2] shares of the variance, query `accuracy` [K], `label`, `is_query`."""
    lines = [["dataset", "stage", "image", "class", "part", "first axis", "second axis"]]
    for dataset in chosen:
        episodes = list(subject.each(dataset.name, 1, subject.index))
        if not episodes:
            raise UserError(f"--index {subject.index}: the list has {subject.questions.counts[dataset.name]} episodes of {dataset.name}")
        plan = subject.questions.samplers[dataset.name].plan(subject.index)
        names = [subject.stores[dataset.name].class_names[c] for c in plan.classes]
        stages, arrays = look(subject, episodes[0], subject.adaptation(adapt, dataset.name))
        found.groups[dataset.name] = {**arrays, "stage": texts(stages), "class_names": texts(names)}
        protocol = subject.questions.protocol(dataset.name)
        found.attributes[dataset.name] = {"domain": dataset.domain, "index": subject.index, "protocol": protocol}
        for k, stage in enumerate(stages):
            for i, (x, y) in enumerate(arrays["coordinates"][k]):
                part = "query" if arrays["is_query"][i] else "support"
                lines.append([dataset.name, stage, str(i), names[arrays["label"][i]], part, f"{x:.5f}", f"{y:.5f}"])
        subject.step(dataset=dataset.name, adaptation=adapt)
    found.tables = {"": lines}


@torch.no_grad()
def look(subject: Subject, episode: Episode, adaptation: Adaptation) -> tuple[list[str], dict[str, np.ndarray]]:
    """The stages of an episode, and the arrays that `fill` describes."""
    task, support = subject.task(episode), episode.support
    stages = dict(zip(STAGES, (subject.method.theta_pre, task.theta), strict=True))
    adapted = getattr(adaptation.adapt(task, support), "theta", None)
    if adapted is not None and not torch.equal(adapted, task.theta):
        stages["adapted"] = adapted
    if torch.equal(task.theta, subject.method.theta_pre):
        del stages["meta-tuned"]
    points, shares, right = [], [], []
    cut = len(support.labels)
    for theta in stages.values():
        features = task.embed(torch.cat([support.images, episode.query_images]), theta).float()
        centres = prototypes(features[:cut], support.labels, support.ways)
        right.append(accuracy(cosine_logits(features[cut:], centres, task.scale), episode.query_labels))
        coordinates, explained = principal(F.normalize(features, dim=1))
        points.append(coordinates.numpy())
        shares.append(explained.numpy())
    labels = torch.cat([support.labels, episode.query_labels]).cpu().numpy()
    arrays = {
        "coordinates": np.stack(points),
        "explained": np.stack(shares),
        "accuracy": np.array(right),
        "label": labels,
        "is_query": np.arange(len(labels)) >= cut,
    }
    return list(stages), arrays


def principal(features: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates [n, 2] of features [n, D] on the two directions of largest variance, and their shares [2] of it (float64, CPU).

    Signs are chosen so that the entry of largest size on each axis is positive.
    """
    centred = features.double().cpu()
    centred = centred - centred.mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    two = torch.zeros(len(centred), 2, dtype=torch.float64)
    two[:, : min(2, len(s))] = (u * s)[:, :2]
    signs = torch.sign(two.gather(0, two.abs().argmax(0)[None, :]))
    variance = s.square()
    explained = torch.zeros(2, dtype=torch.float64)
    explained[: min(2, len(s))] = variance[:2] / variance.sum().clamp_min(1e-30)
    return two * torch.where(signs == 0, torch.ones_like(signs), signs), explained
