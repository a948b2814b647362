"""Images as data URIs: small PNGs of pixels, or the user's encoded files as they are."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preceptor_service.reference.errors import JobError

_SIDE = 96
_MAX_ENCODED_BYTES = 256 * 1024
_KINDS = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)


def data_uri(value: Any, shape: tuple[int, ...] | None, where: str) -> str | None:
    """Returns an image as `data:` URI; None for a null.

    Args:
        value: nested lists `[H, W]`, `[C, H, W]` or `[H, W, C]` of 1 or 3 channels, or a flat list of `shape`; whole
            numbers from 0 to 255, or real numbers, which are stretched from their least to their largest. Or the bytes
            of a PNG, JPEG, GIF or WebP file, also as `{"bytes": …}`; up to 256 KiB, others are left out.
        shape: of flat lists.
        where: for errors.

    Raises:
        JobError: it is nothing of that.
    """
    if isinstance(value, dict):
        value = value.get("bytes")
    if value is None:
        return None
    if isinstance(value, bytes):
        return _encoded(value, where)
    try:
        pixels = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise JobError(f"{where} is no image: its lists are of unequal lengths or hold no numbers") from error
    if pixels.ndim == 1 and shape is not None and pixels.size == int(np.prod(shape)):
        pixels = pixels.reshape(shape)
    return _uri("image/png", png(_small(_as_bytes(_channels_last(pixels, where)))))


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Returns a PNG file of uint8 `[H, W, 1]` or `[H, W, 3]`."""
    height, width, channels = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", header),
            _chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)),
            _chunk(b"IEND", b""),
        ]
    )


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _encoded(content: bytes, where: str) -> str | None:
    kind = next((kind for magic, kind in _KINDS if content.startswith(magic)), None)
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        kind = "image/webp"
    if kind is None:
        raise JobError(f"{where} begins with {content[:4].hex()}; give PNG, JPEG, GIF or WebP files, or pixels")
    return _uri(kind, content) if len(content) <= _MAX_ENCODED_BYTES else None


def _channels_last(pixels: NDArray[np.float64], where: str) -> NDArray[np.float64]:
    if pixels.ndim == 2:
        return pixels[:, :, np.newaxis]
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3) and pixels.shape[2] not in (1, 3):
        return pixels.transpose(1, 2, 0)
    if pixels.ndim == 3 and pixels.shape[2] in (1, 3):
        return pixels
    raise JobError(
        f"{where} has shape {list(pixels.shape)}; give [H, W], [C, H, W] or [H, W, C] with 1 or 3 channels, and "
        "--image-shape for flat lists"
    )


def _as_bytes(pixels: NDArray[np.float64]) -> NDArray[np.uint8]:
    finite = np.nan_to_num(pixels)
    if np.array_equal(finite, np.rint(finite)) and finite.min() >= 0 and finite.max() <= 255 and finite.max() > 1:
        return finite.astype(np.uint8)
    low, high = finite.min(), finite.max()
    stretched = (finite - low) / (high - low) * 255 if high > low else np.zeros_like(finite)
    return np.rint(stretched).astype(np.uint8)


def _small(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns at most `_SIDE` pixels a side, by leaving rows and columns out evenly."""
    rows, columns = (np.linspace(0, size - 1, min(size, _SIDE)).astype(int) for size in pixels.shape[:2])
    small: NDArray[np.uint8] = pixels[rows][:, columns]
    return small


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
