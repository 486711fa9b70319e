"""DiffAugment compared with its definition, one image at a time in NumPy."""

import numpy as np
import pytest
import torch

from smatcli.adaptation.diffaugment import diff_augment


def images(count: int = 6, size: int = 16) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_hand(x: np.ndarray, brightness: float, saturation: float, contrast: float) -> np.ndarray:
    """Apply the three colour operations of Zhao et al. 2020, section 3, in order."""
    x = x + brightness
    grey = x.mean(0, keepdims=True)
    x = (x - grey) * saturation + grey
    return (x - x.mean()) * contrast + x.mean()


def test_colour_is_an_affine_change_within_its_ranges() -> None:
    before = images(200, 4).double()
    after = diff_augment(before, generator(), 1.0, translation=0.0)
    found = []
    for x, y in zip(before.numpy(), after.numpy(), strict=True):
        # chroma is scaled by saturation * contrast, the mean moves by brightness, the pixel means about it by contrast
        brightness = y.mean() - x.mean()
        grey_x, grey_y = x.mean(0), y.mean(0)
        contrast = ((grey_y - grey_y.mean()) * (grey_x - grey_x.mean())).sum() / ((grey_x - grey_x.mean()) ** 2).sum()
        saturation = ((y - grey_y) * (x - grey_x)).sum() / ((x - grey_x) ** 2).sum() / contrast
        np.testing.assert_allclose(y, by_hand(x, brightness, saturation, contrast), atol=1e-6)
        found.append((brightness, saturation, contrast))
    values = np.array(found)
    for column, (low, high) in zip(values.T, ((-0.5, 0.5), (0, 2), (0.5, 1.5)), strict=True):
        assert low - 1e-5 <= column.min() < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < column.max() <= high + 1e-5
        assert abs(column.mean() - (low + high) / 2) < 0.12 * (high - low)
    assert np.abs(np.corrcoef(values.T) - np.eye(3)).max() < 0.25


def test_translation_moves_whole_pixels_and_fills_with_the_mean_colour() -> None:
    before = images(300)
    after = diff_augment(before, generator(), 1.0, colour=False)
    seen = set()
    padded = torch.nn.functional.pad(before, (2, 2, 2, 2))
    for x, y in zip(padded, after, strict=True):
        shifts = [(r, c) for r in range(5) for c in range(5) if torch.equal(x[:, r : r + 16, c : c + 16], y)]
        assert len(shifts) == 1
        seen.add(shifts[0])
    assert len(seen) == 25


def test_probability_is_the_batch_s() -> None:
    before = images(3, 4)
    changed = [not torch.equal(diff_augment(before, generator(seed)), before) for seed in range(300)]
    assert 0.85 < np.mean(changed) < 0.95
    assert diff_augment(before, generator(), 0.0) is before
    for seed in range(50):
        after = diff_augment(before, generator(seed), 0.5, translation=0.0)
        same = [torch.equal(x, y) for x, y in zip(before, after, strict=True)]
        assert all(same) or not any(same)


def test_the_generator_is_the_only_noise_and_gradients_pass() -> None:
    before = images(2, 8).requires_grad_()
    torch.manual_seed(1)
    one = diff_augment(before, generator(), 1.0)
    torch.manual_seed(2)
    assert torch.equal(one, diff_augment(before, generator(), 1.0))
    one.sum().backward()
    assert before.grad is not None
    assert bool(before.grad.any())
    assert diff_augment(before.detach().double(), generator(), 1.0).dtype == torch.float64


@pytest.mark.parametrize("size", [4, 16, 17])
def test_odd_and_tiny_images(size: int) -> None:
    assert diff_augment(images(5, size), generator(), 1.0).shape == (5, 3, size, size)
    assert diff_augment(images(0, size), generator(), 1.0).shape == (0, 3, size, size)
