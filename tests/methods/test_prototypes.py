import numpy as np
import pytest
import torch

from smatcli.methods.prototypes import accuracy, cosine_logits, leave_one_out_logits, prototypes


def features(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def test_prototypes_are_class_means_in_any_label_order() -> None:
    x, labels = features(0, 7, 4), torch.tensor([2, 0, 1, 0, 2, 2, 0])
    found = prototypes(x, labels, 3)
    for c in range(3):
        assert np.allclose(found[c], x.numpy()[labels.numpy() == c].mean(0))


def test_logits_are_scaled_cosines_and_a_zero_vector_gives_zeros() -> None:
    x, centres = features(1, 5, 4), features(2, 3, 4)
    x[0] = 0
    found = cosine_logits(x, centres, 7.0).numpy()
    a, b = x.numpy(), centres.numpy()
    wanted = 7.0 * (a @ b.T) / np.maximum(np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)[None], 1e-12)
    assert np.allclose(found, wanted)
    assert (found[0] == 0).all()


def test_leave_one_out_is_what_leaving_each_image_out_gives() -> None:
    x, labels = features(3, 8, 5), torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    found = leave_one_out_logits(x, labels, 3, 10.0)
    for i in range(len(x)):
        keep = torch.arange(len(x)) != i
        wanted = cosine_logits(x[i : i + 1], prototypes(x[keep], labels[keep], 3), 10.0)
        assert torch.allclose(found[i], wanted[0])


def test_a_class_of_one_image_keeps_its_prototype() -> None:
    x, labels = features(4, 3, 5), torch.tensor([0, 1, 1])
    found = leave_one_out_logits(x, labels, 2, 10.0)
    assert found[0, 0].item() == pytest.approx(10.0)


def test_accuracy_is_the_share_of_right_answers() -> None:
    assert accuracy(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1, 1, 0])) == 0.75
