"""Prototype classification against a per-image computation in float64."""

import numpy as np
import torch

from smatcli.adaptation.proto import Proto
from smatcli.seams import Task
from tests.adaptation.tasks import PIXELS, Counted, make_support, state_loss


def test_logits_are_scaled_cosines_to_class_means() -> None:
    support, theta = make_support(0), torch.linspace(0.5, 2, PIXELS)
    query = torch.randn(7, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    embed = Counted()
    classifier = Proto().adapt(Task(theta, embed, scale=7.0), support)
    found = classifier.predict(query)
    features = (support.images.flatten(1) * theta).double().numpy()
    asked = (query.flatten(1) * theta).double().numpy()
    for c in range(support.ways):
        centre = features[support.labels.numpy() == c].mean(0)
        expected = [7 * x @ centre / (np.linalg.norm(x) * np.linalg.norm(centre)) for x in asked]
        np.testing.assert_allclose(found[:, c].numpy(), expected, rtol=1e-5)
    assert embed.calls == classifier.info["passes"] == 2
    assert embed.images == len(support.labels) + 7


def test_support_loss_is_reported() -> None:
    support, theta = make_support(1), torch.ones(PIXELS)
    info = Proto().adapt(Task(theta, Counted()), support).info
    np.testing.assert_allclose(info["loss"], state_loss(support, theta), rtol=1e-5)
