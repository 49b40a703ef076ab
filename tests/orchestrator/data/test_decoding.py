from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.data.decoding import decode_rgb
from orchestrator.errors import UnreadableExample


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    image = decode_rgb(data)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_the_pixels_that_were_saved(picture, kind):
    original = picture(1)
    options = {"lossless": True} if kind == "WEBP" else {}
    assert (pixels(encoded(original, kind, **options)) == np.asarray(original)).all()


def test_a_path_and_its_bytes_decode_alike(picture, tmp_path):
    data = encoded(picture(1), "JPEG")
    (tmp_path / "a.jpg").write_bytes(data)
    assert (np.asarray(decode_rgb(tmp_path / "a.jpg")) == pixels(data)).all()


def test_grey_and_one_bit_are_the_same_in_all_channels():
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    bits = grey.point(lambda v: 255 if v > 20 else 0).convert("1")
    assert (pixels(encoded(grey)) == np.asarray(grey)[..., None]).all()
    assert (pixels(encoded(bits)) == np.where(np.asarray(bits)[..., None], 255, 0)).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_divided_by_257_and_not_clipped(kind):
    values = np.linspace(0, 65_535, 256).astype(np.uint16).reshape(16, 16)
    expected = np.rint(values / 257).astype(np.uint8)
    assert expected.max() == 255
    assert len(np.unique(expected)) == 256
    assert (pixels(encoded(Image.fromarray(values), kind)) == expected[..., None]).all()


def test_16_bit_ppm_is_scaled_like_16_bit_png():
    values = np.linspace(0, 65_535, 16).astype(">u2")
    data = b"P5 4 4 65535\n" + values.tobytes()
    expected = np.rint(values.astype(float) / 257).reshape(4, 4, 1)
    assert (pixels(data) == expected).all()


def test_32_bit_grey_of_unknown_range_is_refused():
    with pytest.raises(UnreadableExample, match="do not fit 16 bits"):
        decode_rgb(encoded(Image.fromarray(np.full((4, 4), 70_000, np.int32)), "TIFF"))


def test_float_grey_is_scaled_from_one_and_refused_beyond():
    ramp = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    assert (pixels(encoded(Image.fromarray(ramp), "TIFF"))[..., 0] == np.rint(ramp * 255)).all()
    for bad in (ramp * 300, ramp * np.nan):
        with pytest.raises(UnreadableExample, match="not within 0 to 1"):
            decode_rgb(encoded(Image.fromarray(bad), "TIFF"))


def test_transparency_shows_white():
    rgba = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    rgba.putpixel((1, 0), (0, 0, 0, 0))
    assert pixels(encoded(rgba)).tolist() == [[[200, 0, 0], [255, 255, 255]]]
    half = Image.new("LA", (1, 1), (0, 128))
    assert pixels(encoded(half)).tolist() == [[[127, 127, 127]]]


def test_a_palette_colour_can_be_transparent():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    data = encoded(image, transparency=1)
    assert pixels(data).tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_cmyk_jpeg_becomes_its_colours():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red
    assert np.abs(pixels(encoded(image, "JPEG")).astype(int) - [255, 0, 0]).max() <= 3


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (pixels(data) == [255, 0, 0]).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, kind):
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:8, :8] = 255  # a white corner, top left as stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = pixels(encoded(Image.fromarray(stored), kind, exif=exif)).mean(axis=2) > 128
    # EXIF 2.3, table of Orientation: where the stored top and left sides really are.
    corner = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "tl", 6: "tr", 7: "br", 8: "bl"}[orientation]
    assert upright.shape == ((16, 32) if orientation <= 4 else (32, 16))
    rows = slice(0, 4) if corner[0] == "t" else slice(-4, None)
    columns = slice(0, 4) if corner[1] == "l" else slice(-4, None)
    assert upright[rows, columns].all()
    assert upright.sum() == 64


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow's remarks on damage
def test_damaged_exif_does_not_make_an_image_undecodable(picture):
    data = encoded(picture(1), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7fgarbage")
    assert decode_rgb(data).size == picture(1).size


def test_a_single_pixel_and_a_long_strip_decode():
    assert decode_rgb(encoded(Image.new("RGB", (1, 1)))).size == (1, 1)
    assert decode_rgb(encoded(Image.new("L", (20_000, 1)))).size == (20_000, 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM"])
def test_a_cut_file_is_refused(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    data = encoded(noise, kind)
    with pytest.raises(UnreadableExample):
        decode_rgb(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"just text", "not an image"),
        (b"%!PS-Adobe-3.0", "not an image"),
    ],
)
def test_what_is_no_image_is_refused_with_the_reason_and_the_path(data, reason, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    with pytest.raises(UnreadableExample, match=reason) as caught:
        decode_rgb(path)
    assert str(path) in str(caught.value)
    assert str(path) not in caught.value.reason


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))


def test_a_bomb_is_refused_by_its_header():
    with pytest.raises(UnreadableExample, match="megapixels, more than the 50 allowed"):
        decode_rgb(png_header(8_000, 8_000), max_pixels=50_000_000)
    with pytest.raises(UnreadableExample, match="more pixels than"):
        decode_rgb(png_header(40_000, 40_000))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow's remarks on damage
def test_random_damage_is_refused_or_decoded_but_never_crashes(picture):
    rng = np.random.default_rng(0)
    originals = [encoded(picture(3, 40, 30), k) for k in ("JPEG", "PNG", "GIF", "WEBP", "TIFF")]
    for _ in range(400):
        data = bytearray(originals[rng.integers(len(originals))])
        for at in rng.integers(0, len(data), rng.integers(1, 8)):
            data[at] = rng.integers(256)
        with contextlib.suppress(UnreadableExample):
            assert decode_rgb(bytes(data), max_pixels=10_000_000).mode == "RGB"


def test_a_reduced_decode_keeps_both_sides_and_resizes_to_nearly_the_same(picture):
    data = encoded(picture(5, 800, 600), "JPEG", quality=90)
    reduced = decode_rgb(data, least_side=140)
    assert reduced.size == (200, 150)
    size = (70 * 4 // 3, 70)
    whole = np.asarray(decode_rgb(data).resize(size, Image.Resampling.BILINEAR), int)
    assert np.abs(np.asarray(reduced.resize(size, Image.Resampling.BILINEAR)) - whole).mean() < 1


def test_an_image_smaller_than_least_side_stays_whole(picture):
    assert decode_rgb(encoded(picture(5, 80, 60), "JPEG"), least_side=61).size == (80, 60)


def test_a_missing_file_is_an_os_error_and_not_a_bad_image():
    with pytest.raises(FileNotFoundError):
        decode_rgb(Path("/nowhere/a.png"))


def test_the_multi_picture_jpeg_of_phones_gives_its_first_picture():
    first, second = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    assert np.abs(pixels(data).astype(int) - [255, 0, 0]).max() <= 3
