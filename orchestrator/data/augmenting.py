"""Training transforms: random views of an image, all randomness from the generator passed in.

- `light`: flips, and a square of 90 to 100 % of the shorter side, a little off centre;
- `standard`: RandomResizedCrop (70 to 100 % of the area, ratio 3/4 to 4/3; Szegedy et al., 2015),
  flips, brightness and contrast within 20 % and saturation within 10 % in random order;
- `trivial`: the crop and a horizontal flip, then one operation of random strength (TrivialAugment,
  Müller & Hutter, ICCV 2021, wide ranges).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from orchestrator.data.transforms import RESAMPLING, channels_first, eval_pixels
from orchestrator.spec.parts import InputContract
from orchestrator.spec.strategy import Augment

Box = tuple[int, int, int, int]  # left, top, right, bottom
Operation = Callable[[Image.Image, float, tuple[int, int, int]], Image.Image]

_CROP_ATTEMPTS = 10
_MAX_TRANSLATION = 32.0  # pixels
_MAX_ROTATION = 135.0  # degrees
_MAX_SHEAR = 0.99
_STRENGTHS = 31


def example_rng(seed: int, epoch: int, example: str | int) -> np.random.Generator:
    """The generator for one view of one example.

    It depends on nothing else: not on workers, threads, batches, or what other examples there are.

    Args:
        seed: Of the experiment.
        epoch: So that each epoch has views of its own.
        example: Its content hash (hexadecimal), or its row.
    """
    key = int(example, 16) if isinstance(example, str) else example
    return np.random.default_rng([seed, epoch, key])


def augmented_pixels(
    image: Image.Image, contract: InputContract, augment: Augment, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """A random view of an RGB image, uint8 [3, S, S]; of `none`, the eval transform."""
    match augment:
        case "none":
            return eval_pixels(image, contract)
        case "light":
            view = _resized(image, light_box(image.size, rng), contract)
            view = _flipped(view, rng, vertical=True)
        case "standard":
            view = _resized(image, crop_box(image.size, rng), contract)
            view = _flipped(view, rng, vertical=True)
            view = _jittered(view, rng, brightness=0.2, contrast=0.2, saturation=0.1)
        case "trivial":
            view = _resized(image, crop_box(image.size, rng), contract)
            view = _flipped(view, rng, vertical=False)
            view = _trivial(view, rng, fill=_mean_colour(contract))
    return channels_first(view)


def contrasted_pixels(
    image: Image.Image, contract: InputContract, rng: np.random.Generator, *, least_share: float
) -> NDArray[np.uint8]:
    """A view of an RGB image that is far from the next one, uint8 [3, S, S].

    Crop, horizontal flip, colours, grey and blur as SimSiam draws them (Chen & He, CVPR 2021,
    appendix A), but for the hue.

    Args:
        image: Any size.
        contract: Size and interpolation.
        rng: Where the randomness comes from.
        least_share: Of the image's area that the crop shows.
    """
    view = _resized(image, crop_box(image.size, rng, scale=(least_share, 1.0)), contract)
    view = _flipped(view, rng, vertical=False)
    if rng.random() < 0.8:
        view = _jittered(view, rng, brightness=0.4, contrast=0.4, saturation=0.4)
    if rng.random() < 0.2:
        view = ImageOps.grayscale(view).convert("RGB")
    if rng.random() < 0.5:
        view = view.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
    return channels_first(view)


def light_box(size: tuple[int, int], rng: np.random.Generator) -> Box:
    """A square of 90 to 100 % of the shorter side, anywhere within the centre square."""
    full = min(size)
    side = max(1, round(full * rng.uniform(0.9, 1.0)))
    left, top = ((length - full) // 2 + rng.integers(0, full - side + 1) for length in size)
    return int(left), int(top), int(left) + side, int(top) + side


def crop_box(
    size: tuple[int, int],
    rng: np.random.Generator,
    *,
    scale: tuple[float, float] = (0.7, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """The box of a RandomResizedCrop.

    Of an image so long that no such box fits, the largest central one of the nearest ratio.

    Args:
        size: Width and height of the image.
        rng: Where the randomness comes from.
        scale: Range of the box's share of the area, uniform.
        ratio: Range of its width over height, uniform in the logarithm.
    """
    width, height = size
    for _ in range(_CROP_ATTEMPTS):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return left, top, left + w, top + h
    w = max(1, min(width, round(height * ratio[1])))
    h = max(1, min(height, round(width / ratio[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _resized(image: Image.Image, box: Box, contract: InputContract) -> Image.Image:
    size = (contract.size, contract.size)
    return image.resize(size, RESAMPLING[contract.interpolation], box=box)


def _flipped(image: Image.Image, rng: np.random.Generator, *, vertical: bool) -> Image.Image:
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if vertical and rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return image


def _jittered(
    image: Image.Image,
    rng: np.random.Generator,
    *,
    brightness: float,
    contrast: float,
    saturation: float,
) -> Image.Image:
    """Brightness, contrast and saturation each times a factor within 1 ± its argument."""
    changes = (
        (ImageEnhance.Brightness, brightness),
        (ImageEnhance.Contrast, contrast),
        (ImageEnhance.Color, saturation),
    )
    for position in rng.permutation(len(changes)):
        enhance, strength = changes[position]
        image = enhance(image).enhance(rng.uniform(1 - strength, 1 + strength))
    return image


def _trivial(
    image: Image.Image, rng: np.random.Generator, *, fill: tuple[int, int, int]
) -> Image.Image:
    operation = OPERATIONS[int(rng.integers(len(OPERATIONS)))]
    strength = int(rng.integers(_STRENGTHS)) / (_STRENGTHS - 1)
    sign = 1 if rng.random() < 0.5 else -1
    return operation(image, sign * strength, fill)


def _mean_colour(contract: InputContract) -> tuple[int, int, int]:
    """What is zero after normalisation, to fill what a rotation uncovers."""
    red, green, blue = (min(255, max(0, round(255 * value))) for value in contract.mean)
    return red, green, blue


def _affine(
    image: Image.Image, matrix: tuple[float, ...], fill: tuple[int, int, int]
) -> Image.Image:
    """`image` under the map from output to input pixels (x, y) → (ax + by + c, dx + ey + f)."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=fill)


def _shear_x(image: Image.Image, s: float, fill: tuple[int, int, int]) -> Image.Image:
    shear = s * _MAX_SHEAR
    return _affine(image, (1, shear, -shear * image.height / 2, 0, 1, 0), fill)


def _shear_y(image: Image.Image, s: float, fill: tuple[int, int, int]) -> Image.Image:
    shear = s * _MAX_SHEAR
    return _affine(image, (1, 0, 0, shear, 1, -shear * image.width / 2), fill)


def _enhanced(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return lambda image, s, fill: kind(image).enhance(1 + 0.99 * s)


# Each takes the image, a strength within -1 … 1, and the fill colour. Those of the paper's table
# without a sign use the magnitude.
OPERATIONS: tuple[Operation, ...] = (
    lambda image, s, fill: image,
    _shear_x,
    _shear_y,
    lambda image, s, fill: _affine(image, (1, 0, s * _MAX_TRANSLATION, 0, 1, 0), fill),
    lambda image, s, fill: _affine(image, (1, 0, 0, 0, 1, s * _MAX_TRANSLATION), fill),
    lambda image, s, fill: image.rotate(s * _MAX_ROTATION, fillcolor=fill),
    _enhanced(ImageEnhance.Brightness),
    _enhanced(ImageEnhance.Color),
    _enhanced(ImageEnhance.Contrast),
    _enhanced(ImageEnhance.Sharpness),
    lambda image, s, fill: ImageOps.posterize(image, 8 - round(6 * abs(s))),
    lambda image, s, fill: ImageOps.solarize(image, round(256 * (1 - abs(s)))),
    lambda image, s, fill: ImageOps.autocontrast(image),
    lambda image, s, fill: ImageOps.equalize(image),
)
