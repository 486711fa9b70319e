import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smatcli.data.stores.store import Store
from smatcli.data.stores.verify import verify_store
from smatcli.data.synthetic import DOMAINS, LICENCE, catalogue, draw_class, fonts, make_synthetic
from smatcli.data.synthetic.canvas import Draws, cover, grid, hsv, upsample
from smatcli.errors import UserError

TRAINING = [name for name, domain in DOMAINS.items() if domain.role == "id"]
UNSEEN = [name for name, domain in DOMAINS.items() if domain.role == "ood"]
CLASSES, PER_CLASS = 40, 20


@pytest.fixture(scope="module")
def drawn() -> dict[str, np.ndarray]:
    """Images uint8 [40, 20, 32, 32, 3] of every domain."""
    return {name: np.stack([draw_class(name, c, per_class=PER_CLASS) for c in range(CLASSES)]) for name in DOMAINS}


def nearest_mean(features: np.ndarray, episodes: int = 60, shots: int = 5) -> float:
    """5-way accuracy of the nearest class mean (Euclidean) of features [C, n, D] over fixed episodes."""
    rng = np.random.default_rng(0)
    right = []
    for _ in range(episodes):
        chosen = rng.permutation(len(features))[:5]
        order = np.stack([rng.permutation(features.shape[1]) for _ in chosen])
        picked = features[chosen[:, None], order]
        means, queries = picked[:, :shots].mean(1), picked[:, shots:]
        distance = ((queries[:, :, None] - means) ** 2).sum(-1)
        right.append((distance.argmin(-1) == np.arange(5)[:, None]).mean())
    return float(np.mean(right))


def spectrum(images: np.ndarray) -> np.ndarray:
    """Log amplitude spectrum of the grey, standardised image: invariant to position, brightness and polarity."""
    grey = images.astype(np.float32).mean(-1)
    grey = (grey - grey.mean((2, 3), keepdims=True)) / (grey.std((2, 3), keepdims=True) + 1)
    return np.log1p(np.abs(np.fft.rfft2(grey))).reshape(*images.shape[:2], -1)


def test_domains_are_as_many_as_promised() -> None:
    assert len(TRAINING) >= 6
    assert len(UNSEEN) >= 4
    assert len(TRAINING) + len(UNSEEN) == len(DOMAINS)
    for name, domain in DOMAINS.items():
        classes = [c for c, _ in catalogue(name)]
        assert domain.description
        assert len(classes) >= 40
        assert len(set(classes)) == len(classes)


@pytest.mark.parametrize("name", DOMAINS)
def test_raw_pixels_are_not_enough_but_a_class_is_a_class(name: str, drawn: dict[str, np.ndarray]) -> None:
    images = drawn[name]
    assert nearest_mean(images.reshape(CLASSES, PER_CLASS, -1) / np.float32(255)) < 0.70
    assert nearest_mean(spectrum(images)) > 0.27  # chance is 0.20, the standard error below 0.01


@pytest.mark.parametrize("name", DOMAINS)
def test_no_image_is_blank_or_repeated(name: str, drawn: dict[str, np.ndarray]) -> None:
    flat = drawn[name].reshape(CLASSES * PER_CLASS, -1)
    assert flat.std(1).min() > 6
    assert len(np.unique(flat, axis=0)) == len(flat)


@pytest.mark.parametrize("name", DOMAINS)
def test_image_depends_on_its_own_place_only(name: str, drawn: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(draw_class(name, 7, per_class=6), drawn[name][7, :6])
    assert not np.array_equal(draw_class(name, 7, seed=1, per_class=6), drawn[name][7, :6])
    assert draw_class(name, 7, size=20, per_class=2).shape == (2, 20, 20, 3)


def test_stores(tmp_path: Path) -> None:
    paths = make_synthetic(tmp_path / "a", classes=20, per_class=4, domains=["shapes", "numbers"])
    again = make_synthetic(tmp_path / "b", classes=20, per_class=4, domains=["numbers", "shapes"])
    assert [p.name for p in paths] == ["shapes.h5", "numbers.h5"]
    shapes, numbers = (Store.open(p) for p in paths)
    assert {Store.open(p).content_hash for p in again} == {shapes.content_hash, numbers.content_hash}
    assert np.bincount(shapes.class_split).tolist() == [10, 5, 5]  # a part has five classes or more
    assert len(numbers.classes("test")) == 20
    assert len(numbers.classes("train")) == 0
    assert numbers.licence == LICENCE
    assert "seed 0" in numbers.source
    assert numbers.image_size == 32
    np.testing.assert_array_equal(np.asarray(shapes.images[:4]), draw_class("shapes", 0, per_class=4))
    assert [verify_store(path) for path in paths] == [None, None]


def test_default_split_is_24_6_10(tmp_path: Path) -> None:
    (path,) = make_synthetic(tmp_path, per_class=1, domains=["sketches"])
    assert np.bincount(Store.open(path).class_split).tolist() == [24, 6, 10]


def test_same_again_is_kept_and_another_is_refused(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"classes": 2, "per_class": 2, "domains": ["tilings"]}
    (path,) = make_synthetic(tmp_path, **settings)
    before = path.stat().st_mtime_ns, path.stat().st_ino
    make_synthetic(tmp_path, **settings)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
    with pytest.raises(UserError, match=r"tilings\.h5: exists"):
        make_synthetic(tmp_path, classes=2, per_class=2, seed=1, domains=["shapes", "tilings"])
    assert not (tmp_path / "shapes.h5").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"domains": ["glyph"]}, "did you mean 'glyphs'"),
        ({"domains": []}, "no synthetic domain"),
        ({"seed": -1}, "seed is -1"),
        ({"size": 4}, "size is 4"),
        ({"per_class": 0}, "per_class is 0"),
        ({"classes": 91, "domains": ["numbers"]}, "has 90 classes, 91 were requested"),
    ],
)
def test_bad_requests(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        make_synthetic(tmp_path / "x", **settings)
    assert not (tmp_path / "x").exists()


def test_all_default_stores_take_less_than_20_seconds(tmp_path: Path) -> None:
    catalogue.cache_clear()
    start = time.process_time()  # two busy cores are shared with other tests: the clock on the wall says little
    paths = make_synthetic(tmp_path)
    assert time.process_time() - start < 20
    assert len(paths) == len(DOMAINS)
    assert all(Store.open(p).counts.min() >= 20 for p in paths)


def test_every_letter_is_a_glyph_of_its_fonts() -> None:
    """A missing glyph would be drawn as the font's box, so no letter may look like it."""
    for _, text in catalogue("glyphs"):
        having = [font for font in fonts.LETTER_FONTS if ord(text) in fonts.code_points(font)]
        assert len(having) >= 3
    box = fonts.glyph_mask("DejaVuSans", "\uffff")
    assert 0xFFFF not in fonts.code_points("DejaVuSans")
    assert all(np.abs(fonts.glyph_mask("DejaVuSans", text) - box).mean() > 0.01 for _, text in catalogue("glyphs"))


def test_no_training_domain_draws_with_the_digits_fonts() -> None:
    assert not set(fonts.LETTER_FONTS) & set(fonts.DIGIT_FONTS)
    assert all(set(map(ord, "0123456789")) <= fonts.code_points(font) for font in fonts.DIGIT_FONTS)
    assert not any(text.isdigit() for _, text in catalogue("glyphs"))


def test_draws_are_counted() -> None:
    few, many = Draws(3, "x").normal(1.0, 5, 7), Draws(3, "x").normal(1.0, 50, 7)
    np.testing.assert_array_equal(few, many[:5])
    draws = Draws(3, "x")
    assert not np.array_equal(draws.uniform(0, 1, 9), draws.uniform(0, 1, 9))
    assert not np.array_equal(Draws(3, "x").uniform(0, 1, 9), Draws(3, "y").uniform(0, 1, 9))


def test_coverage_of_a_disc_is_its_area() -> None:
    x, y = grid(64)
    for field in (np.hypot(x, y) - 0.7, x * x + y * y - 0.49):
        assert float(cover(field).mean()) * 4 == pytest.approx(np.pi * 0.49, rel=5e-3)


def test_upsample_reproduces_a_plane() -> None:
    """A cubic B-spline with linear knots is the line itself."""
    knots = np.broadcast_to(np.arange(-1, 6, dtype=np.float32), (1, 7, 7))
    expected = (np.arange(16) + 0.5) / 16 * 4
    np.testing.assert_allclose(upsample(knots, 16)[0, 3], expected, atol=1e-5)


def test_hsv_agrees_with_the_standard_library() -> None:
    import colorsys

    triples = np.random.default_rng(0).random((50, 3))
    expected = [colorsys.hsv_to_rgb(*triple) for triple in triples]
    np.testing.assert_allclose(hsv(*triples.T), expected, atol=1e-5)
