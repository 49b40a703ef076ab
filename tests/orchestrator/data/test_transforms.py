from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from orchestrator.data.transforms import (
    decode_side,
    eval_pixels,
    eval_pixels_of,
    normalized,
    transform_digest,
)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "resized"), [((80, 60), (24, 18)), ((50, 90), (18, 32))])
def test_eval_is_resize_then_centre_crop(picture, contract, interpolation, size, resized):
    contract = contract.model_copy(update={"interpolation": interpolation})
    image = picture(0, *size)
    whole = image.resize(resized, Image.Resampling[interpolation.upper()])
    left, top = round((resized[0] - 16) / 2), round((resized[1] - 16) / 2)
    expected = np.asarray(whole)[top : top + 16, left : left + 16].transpose(2, 0, 1)
    pixels = eval_pixels(image, contract)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert (pixels == expected).all()


@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (1, 20_000), (15, 17), (300, 16)])
def test_any_shape_gives_a_square_without_gigabytes(contract, size):
    contract = contract.model_copy(update={"size": 224})
    pixels = eval_pixels(Image.new("RGB", size, (10, 20, 30)), contract)
    assert pixels.shape == (3, 224, 224)
    assert (pixels.reshape(3, -1) == np.array([[10], [20], [30]])).all()


def test_the_middle_of_a_strip_is_what_is_seen(contract):
    strip = np.zeros((16, 1600, 3), np.uint8)
    strip[:, 780:820] = 255
    assert (eval_pixels(Image.fromarray(strip), contract) == 255).all()


def test_the_path_from_bytes_reduces_large_jpegs_and_changes_little(picture, contract):
    image = picture(3, 640, 480)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    pixels = eval_pixels_of(buffer.getvalue(), contract)
    whole = eval_pixels(Image.open(buffer), contract)
    assert decode_side(contract) == 36
    assert np.abs(pixels.astype(int) - whole).mean() < 1


def test_normalised_values_match_the_closed_form(contract):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16), np.uint8)
    mean, std = (np.array(v).reshape(3, 1, 1) for v in (contract.mean, contract.std))
    expected = (pixels / 255.0 - mean) / std
    values = normalized(pixels, contract)
    assert values.dtype == np.float32
    assert values.shape == pixels.shape
    np.testing.assert_allclose(values, expected, atol=1e-6)


def test_the_digest_names_the_contract(contract):
    changes = [{"size": 32}, {"crop_fraction": 0.9}, {"interpolation": "bicubic"}]
    others = {transform_digest(contract.model_copy(update=change)) for change in changes}
    assert len(others | {transform_digest(contract)}) == 4
