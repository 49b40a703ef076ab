"""Bombs: images of a few bytes that decode to many."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

from PIL import Image


def png_bomb(side: int) -> bytes:
    """A PNG of side × side pixels in a few kilobytes, without ever making them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    packer = zlib.compressobj(9)
    row = b"\0" * (side // 8 + 1)
    packed = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


def text_bomb() -> bytes:
    """A PNG whose compressed comment is 200 MB."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(b"\0" * (1 << 20)) for _ in range(200)) + packer.flush()
    body = b"zTXt" + b"a\0\0" + packed
    small = io.BytesIO()
    Image.new("RGB", (8, 8)).save(small, "PNG")
    data = small.getvalue()
    bomb = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return data[:33] + bomb + data[33:]


def animation(form: str, *, frames: int, **options: Any) -> bytes:
    """Frames of 2,000 × 2,000 pixels, each of another colour."""
    pictures = [Image.new("RGB", (2000, 2000), (8 * i, 255 - 8 * i, 0)) for i in range(frames)]
    file = io.BytesIO()
    pictures[0].save(file, form, save_all=True, append_images=pictures[1:], **options)
    return file.getvalue()


def wide_gif() -> bytes:
    """A GIF that says it is 65,535 × 65,535."""
    small = io.BytesIO()
    Image.new("P", (8, 8)).save(small, "GIF")
    data = small.getvalue()
    return data[:6] + b"\xff\xff\xff\xff" + data[10:]


BOMBS = {
    "png 400 MP": lambda: png_bomb(20_000),
    "png 64 MP": lambda: png_bomb(8000),
    "png text": text_bomb,
    "gif wide": wide_gif,
    "gif": lambda: animation("GIF", frames=4),
    "webp": lambda: animation("WEBP", frames=5),
    "tiff": lambda: animation("TIFF", frames=5, compression="tiff_lzw"),
}
