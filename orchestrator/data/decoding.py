"""Image bytes → upright 8-bit RGB, or a reason why not.

One decoder for audit, training and serving, so that a file means the same pixels everywhere:

- orientation from EXIF is applied;
- 16-bit grey is divided by 257 (65,535 / 255), never clipped; floats are accepted from 0 to 1;
- transparency is composited on white, as viewers and catalogues show it; dropping the alpha
  channel instead would reveal whatever colour lies hidden beneath it;
- CMYK, YCbCr, LAB, palettes and 1-bit are converted by Pillow, without colour management;
- of animations and multi-page files, the first frame.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from orchestrator.errors import UnreadableExample

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MAX_PIXELS = 100_000_000  # 300 MB as RGB
BACKGROUND = (255, 255, 255)

# What Pillow's parsers let through when bytes are hostile or cut short.
_PARSER_ERRORS = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    ArithmeticError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
)


def decode_rgb(
    data: bytes | Path, *, max_pixels: int = MAX_PIXELS, least_side: int | None = None
) -> Image.Image:
    """The upright RGB image that `data` encodes.

    Args:
        data: An encoded image, or the local file that holds it.
        max_pixels: Width x height above which an image is refused, before it is decoded. Pillow
            itself refuses above 179 megapixels.
        least_side: Lets a JPEG be decoded at 1/2, 1/4 or 1/8 of its scale, the smallest whose
            sides are all at least this long; an image with a shorter side than this stays whole.
            The reduction averages blocks in the DCT domain. Resized to half of `least_side` or
            less, photographs came out 0.2 to 1.5 grey levels of 255 (mean) from a whole decode,
            and 22 at most. Other formats ignore it.

    Raises:
        UnreadableExample: With the reason.
    """
    source = str(data) if isinstance(data, Path) else ""
    try:
        with data.open("rb") if isinstance(data, Path) else io.BytesIO(data) as file:
            return _decoded(file, max_pixels, least_side)
    except UnreadableExample as err:
        raise UnreadableExample(err.reason, source=source) from err.__cause__


def _decoded(file: BinaryIO, max_pixels: int, least_side: int | None) -> Image.Image:
    try:
        with Image.open(file, formats=FORMATS) as image:
            _refuse_bomb(image.size, max_pixels)
            if least_side is not None:
                image.draft(None, (least_side, least_side))
            image.load()
            _turn_upright(image)
            return _rgb(image)
    except UnidentifiedImageError as err:
        raise UnreadableExample(_unidentified_reason(file)) from err
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as err:
        raise UnreadableExample(f"more pixels than Pillow decodes safely: {err}") from err
    except _PARSER_ERRORS as err:
        raise UnreadableExample(f"damaged: {err or type(err).__name__}") from err


def _refuse_bomb(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise UnreadableExample(
            f"{width} x {height} is {width * height / 1e6:,.0f} megapixels, "
            f"more than the {max_pixels / 1e6:,.0f} allowed"
        )


def _unidentified_reason(file: BinaryIO) -> str:
    file.seek(0)
    if not file.read(1):
        return "the file is empty"
    return f"not an image of a known format ({', '.join(FORMATS)})"


def _turn_upright(image: Image.Image) -> None:
    """Turn `image` as its EXIF says; damaged EXIF does not make good pixels useless."""
    with contextlib.suppress(*_PARSER_ERRORS):
        ImageOps.exif_transpose(image, in_place=True)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_16_bit(image)
    if image.mode == "F":
        return _from_float(image)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        return _on_background(image.convert("RGBA"))
    return image.convert("RGB")


def _on_background(image: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", image.size, BACKGROUND)
    canvas.paste(image, mask=image.getchannel("A"))
    return canvas


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Grey of modes `I;16*`, and of `I`, which Pillow uses for 16-bit grey in PPM and some TIFF."""
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65_535:
        raise UnreadableExample(
            f"grey values from {low} to {high} do not fit 16 bits. Save it as 8 or 16 bits"
        )
    return _grey((values + 128) // 257)


def _from_float(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if not (values.min() >= 0 and values.max() <= 1):  # also refuses NaN
        raise UnreadableExample(
            f"float values from {values.min():g} to {values.max():g} are not within 0 to 1. "
            "Save it as 8 or 16 bits"
        )
    return _grey(np.rint(values * 255))


def _grey(values: NDArray[np.generic]) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")
