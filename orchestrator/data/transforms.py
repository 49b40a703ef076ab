"""The one eval transform of training and serving, and normalisation.

The geometry is that of torchvision's `Resize` and `CenterCrop`, and so that of most published
weights: the shorter side becomes `round(size / crop_fraction)`, the longer is cut to an integer,
and the crop's corner is rounded half to even.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from orchestrator.data.decoding import MAX_PIXELS, decode_rgb
from orchestrator.spec.frozen import digest_of
from orchestrator.spec.parts import Contract, InputContract

RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_VERSION = 1  # raise it when pixels change for an equal contract
_ASPECT = 4  # a longer image is cut to this times its shorter side before it is resized


def eval_pixels(image: Image.Image, contract: InputContract) -> NDArray[np.uint8]:
    """An RGB image as a backbone sees it before normalisation, uint8 [3, S, S].

    Of a strip such as 20,000 x 1 the middle is cut out first: resized whole, it would be gigabytes.
    """
    short = resized_side(contract)
    if contract.resize == "squash":
        size = (short, short)
    else:
        image = _without_far_ends(image)
        width, height = image.size
        shorter = min(width, height)
        size = (short * width // shorter, short * height // shorter)
    resized = image.resize(size, RESAMPLING[contract.interpolation])
    left, top = (round((side - contract.size) / 2) for side in size)
    return channels_first(resized.crop((left, top, left + contract.size, top + contract.size)))


def eval_pixels_of(
    data: bytes | Path, contract: InputContract, *, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """From encoded bytes to `eval_pixels`: the path that training and serving share.

    Raises:
        UnreadableExample: With the reason.
    """
    image = decode_rgb(data, max_pixels=max_pixels, least_side=decode_side(contract))
    return eval_pixels(image, contract)


def normalized(pixels: NDArray[np.uint8], contract: InputContract) -> NDArray[np.float32]:
    """Pixels scaled to 0 … 1, less the mean, over the deviation, by channel.

    Args:
        pixels: uint8 [N, 3, S, S].
        contract: Gives mean and deviation.

    Returns:
        float32 [N, 3, S, S].
    """
    scale, shift = scale_and_shift(contract.mean, contract.std)
    values = np.multiply(pixels, scale, dtype=np.float32)
    values += shift
    return values


def dihedral(pixels: NDArray[np.uint8], view: int) -> NDArray[np.uint8]:
    """One of the eight ways to lay a square image down; 0 leaves it as it is.

    Bit 0 mirrors left and right, bit 1 top and bottom (both: half a turn), bit 2 swaps the axes
    first. They are exact: no pixel is interpolated.

    Args:
        pixels: uint8 [N, 3, S, S].
        view: 0–7.
    """
    turned = pixels.swapaxes(2, 3) if view & 4 else pixels
    turned = turned[:, :, ::-1, :] if view & 2 else turned
    turned = turned[:, :, :, ::-1] if view & 1 else turned
    return np.ascontiguousarray(turned)


def resized_side(contract: InputContract) -> int:
    """The shorter side, in pixels, from which the centre is cut."""
    return round(contract.size / contract.crop_fraction)


def decode_side(contract: InputContract) -> int:
    """The `least_side` for decoding: twice what the eval transform resizes to."""
    return 2 * resized_side(contract)


def transform_digest(contract: Contract) -> str:
    """Names how inputs are prepared for evaluation; equal digests give equal values."""
    return digest_of({"transform": "eval", "version": _VERSION, "contract": contract.to_json()})


def channels_first(image: Image.Image) -> NDArray[np.uint8]:
    """The pixels of an RGB image as a contiguous uint8 [3, H, W]."""
    return np.ascontiguousarray(np.asarray(image, np.uint8).transpose(2, 0, 1))


def _without_far_ends(image: Image.Image) -> Image.Image:
    width, height = image.size
    longest = _ASPECT * min(width, height)
    if max(width, height) <= longest:
        return image
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    return image.crop((left, top, min(width, left + longest), min(height, top + longest)))


@lru_cache(maxsize=64)
def scale_and_shift(
    mean: tuple[float, float, float], std: tuple[float, float, float]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(v / 255 - mean) / std as v * scale + shift; scale and shift are float32 [3, 1, 1]."""
    deviation = np.asarray(std, np.float64)
    scale = 1 / (255 * deviation)
    shift = -np.asarray(mean, np.float64) / deviation
    return (
        scale.astype(np.float32).reshape(3, 1, 1),
        shift.astype(np.float32).reshape(3, 1, 1),
    )
