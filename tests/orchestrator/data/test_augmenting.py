from __future__ import annotations

import colorsys

import numpy as np
import pytest
from PIL import Image

from orchestrator.data.augmenting import (
    OPERATIONS,
    augmented_pixels,
    crop_box,
    example_rng,
    light_box,
)
from orchestrator.data.transforms import eval_pixels

RANDOM = ["light", "standard", "trivial"]


def views(image, contract, augment, n=200):
    return [augmented_pixels(image, contract, augment, example_rng(0, 0, k)) for k in range(n)]


@pytest.mark.parametrize("augment", RANDOM)
def test_a_view_depends_on_seed_epoch_and_example_alone(picture, contract, augment):
    image = picture(0, 60, 50)

    def view(*key):
        return augmented_pixels(image, contract, augment, example_rng(*key)).tobytes()

    keys = [(s, e, x) for s in range(3) for e in range(3) for x in ("ab" * 16, "cd" * 16)]
    found = {key: view(*key) for key in keys}
    assert all(view(*key) == found[key] for key in reversed(keys))
    assert len(set(found.values())) > len(keys) // 2


@pytest.mark.parametrize("augment", RANDOM)
def test_views_vary_and_have_the_shape_of_the_contract(picture, contract, augment):
    found = views(picture(0, 60, 50), contract, augment)
    assert all(view.shape == (3, 16, 16) and view.dtype == np.uint8 for view in found)
    assert len({view.tobytes() for view in found}) > 100


def test_none_is_the_eval_transform(picture, contract):
    image = picture(0, 60, 50)
    view = augmented_pixels(image, contract, "none", example_rng(0, 0, 0))
    assert (view == eval_pixels(image, contract)).all()


@pytest.mark.parametrize("augment", RANDOM)
@pytest.mark.parametrize("size", [(1, 1), (2_000, 1), (1, 2_000), (17, 16)])
def test_any_shape_has_views(contract, augment, size):
    assert views(Image.new("RGB", size), contract, augment, n=30)[0].shape == (3, 16, 16)


def test_crops_are_inside_and_within_scale_and_ratio():
    rng = np.random.default_rng(0)
    for _ in range(2_000):
        left, top, right, bottom = crop_box((400, 300), rng)
        assert 0 <= left < right <= 400
        assert 0 <= top < bottom <= 300
        w, h = right - left, bottom - top
        assert 0.69 < w * h / (400 * 300) <= 1
        assert 0.74 < w / h < 1.35


def test_crop_scale_is_uniform_where_every_ratio_fits():
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(3_000):
        left, top, right, bottom = crop_box((1_000, 1_000), rng, scale=(0.2, 0.5))
        areas.append((right - left) * (bottom - top) / 1e6)
    quantiles = np.quantile(areas, [0.1, 0.5, 0.9])
    np.testing.assert_allclose(quantiles, [0.23, 0.35, 0.47], atol=0.02)


def test_an_image_too_long_for_the_crop_gives_its_middle():
    assert crop_box((1_000, 30), np.random.default_rng(0)) == (480, 0, 520, 30)
    assert crop_box((30, 1_000), np.random.default_rng(0)) == (0, 480, 30, 520)


def test_light_boxes_are_squares_in_the_centre_square():
    rng = np.random.default_rng(0)
    for _ in range(500):
        left, top, right, bottom = light_box((400, 300), rng)
        assert left >= 50
        assert right <= 350
        assert top >= 0
        assert bottom <= 300
        assert right - left == bottom - top
        assert 270 <= right - left <= 300


@pytest.mark.parametrize(
    ("augment", "orientations"), [("light", 4), ("standard", 4), ("trivial", 2)]
)
def test_flips_are_equally_likely(contract, augment, orientations):
    halves = np.zeros((40, 40, 3), np.uint8)
    halves[:20, :20] = 255
    corners = np.zeros(4)
    for view in views(Image.fromarray(halves), contract, augment, n=400):
        brightness = view.mean(axis=0).reshape(2, 8, 2, 8).mean(axis=(1, 3)).ravel()
        corners[brightness.argmax()] += 1
    likely = np.sort(corners)[-orientations:]
    slack = 0.45 if augment == "trivial" else 0.2  # rotations move the corner too
    assert (np.abs(likely / 400 * orientations - 1) < slack).all()


def test_colour_jitter_stays_within_its_factors(contract):
    grey = views(Image.new("RGB", (32, 32), (100, 100, 100)), contract, "standard", n=300)
    levels = np.array([view.mean() for view in grey])
    assert levels.min() >= 79
    assert levels.max() <= 121
    assert levels.std() > 8
    red = views(Image.new("RGB", (32, 32), (160, 80, 80)), contract, "standard", n=100)
    hues = [colorsys.rgb_to_hsv(*view.mean(axis=(1, 2)) / 255)[0] for view in red]
    assert max(min(hue, 1 - hue) for hue in hues) < 0.01  # hue is never touched


def test_each_trivial_operation_is_the_identity_at_its_weakest(picture):
    image = picture(0, 33, 21)
    weakest = [operation(image, 0.0, (0, 0, 0)) for operation in OPERATIONS]
    same = [np.array_equal(np.asarray(image), np.asarray(view)) for view in weakest]
    assert len(OPERATIONS) == 14
    assert same == [True] * 12 + [False] * 2  # autocontrast and equalize have no strength


def test_each_trivial_operation_keeps_the_size_and_does_something(picture):
    image = picture(0, 33, 21)
    for position, operation in enumerate(OPERATIONS):
        for strength in (-1.0, 1.0):
            view = operation(image, strength, (1, 2, 3))
            assert view.size == image.size
            assert view.mode == "RGB"
            assert (position == 0) == np.array_equal(np.asarray(image), np.asarray(view))
