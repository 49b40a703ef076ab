"""What an image's header says, before anything is decoded."""

from __future__ import annotations

import io

from PIL import Image

from orchestrator.data.decoding import FORMATS

from .limits import Limits
from .problems import Refusal


def check_image(data: bytes, limits: Limits) -> None:
    """Refuse an image by its header alone; what is no image passes, and the decoder says why.

    Raises:
        Refusal: It has too many pixels, or is an animation.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as err:
        raise Refusal("too-large", f"{err}. At most {limits.pixels:,} pixels are taken") from err
    except Exception:  # noqa: BLE001  (Pillow's parsers let anything through; so will the decoder's)
        return
    with image:
        width, height = image.size
        if width * height > limits.pixels:
            raise Refusal(
                "too-large",
                f"{width} × {height} is {width * height:,} pixels. At most {limits.pixels:,} are "
                "taken: send it smaller",
            )
        if not limits.animations and _is_animated(image):
            raise Refusal(
                "unsuitable",
                "The image is an animation or has several pages. Send one of its frames",
            )


def _is_animated(image: Image.Image) -> bool:
    """Whether there is a second frame; one too damaged to be found is none."""
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # noqa: BLE001  (as above)
        return False
