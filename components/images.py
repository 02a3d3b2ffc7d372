"""Encoded images from untrusted hands: what they are, whether they decode, and their pixels."""

import io
import pickletools
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

MIMES = {"PNG": "image/png", "JPEG": "image/jpeg", "MPO": "image/jpeg", "WEBP": "image/webp"}
_FORMATS = ("PNG", "JPEG", "WEBP")
_ANIMATED_FORMATS = {"PNG", "WEBP"}
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    MemoryError,
    OverflowError,
    struct.error,
    zlib.error,
)

MOST_PIXELS = 178_000_000
"""Pillow refuses anything larger by itself."""


class UnreadableImageError(Exception):
    """The bytes are no usable image. `reason` is one short word for counting, `detail` says more."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class DecodedImage:
    """`pixels` is an RGB image, turned upright."""

    pixels: Image.Image
    mime: str


def load(payload: bytes, max_pixels: int) -> DecodedImage:
    """Decode a PNG, JPEG or WebP completely. Transparent pixels are laid on white, 16-bit grey is scaled.

    Raises `UnreadableImageError` for anything else; an image of more than `max_pixels` is refused before it is decoded.
    """
    if not payload:
        raise UnreadableImageError("zero_bytes", "the member is empty")
    try:
        with Image.open(io.BytesIO(payload), formats=_FORMATS) as image:
            _check_size(image.size, max_pixels)
            if image.format in _ANIMATED_FORMATS and getattr(image, "is_animated", False):
                raise UnreadableImageError("animated", "an animation is not an image")
            image.load()
            return DecodedImage(_upright_rgb(image), MIMES[str(image.format)])
    except Image.DecompressionBombError as error:
        raise UnreadableImageError("too_many_pixels", str(error)) from None
    except Image.UnidentifiedImageError:
        if _is_pickle(payload):
            raise UnreadableImageError("pickle", "a pickle can run code when loaded; it was not") from None
        raise UnreadableImageError("not_an_image", f"no PNG, JPEG or WebP: starts with {payload[:8]!r}") from None
    except _DECODER_ERRORS as error:
        raise UnreadableImageError("undecodable", str(error) or type(error).__name__) from None


def square(pixels: Image.Image, side: int) -> np.ndarray:
    """An RGB image with its shorter side scaled to `side` and the middle of the longer cut out: uint8 [3, side, side]."""
    if pixels.size != (side, side):
        pixels = ImageOps.fit(pixels, (side, side), Image.Resampling.BICUBIC)
    return np.asarray(pixels).transpose(2, 0, 1)


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        raise UnreadableImageError("too_many_pixels", f"{size[0]} x {size[1]}, more than {max_pixels} pixels")


def _upright_rgb(image: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I") or upright.mode == "F":
        grey = np.asarray(upright, dtype=np.float64) / 257
        return Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8)).convert("RGB")
    if upright.has_transparency_data:
        layered = upright.convert("RGBA")
        ground = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(ground, layered).convert("RGB")
    return upright if upright.mode == "RGB" else upright.convert("RGB")


def _is_pickle(payload: bytes) -> bool:
    """Whether the bytes parse as a pickle (its opcodes are read, never run)."""
    if payload[-1:] != b"." and payload[:1] != b"\x80":
        return False
    try:
        return any(opcode.name == "STOP" for opcode, _, _ in pickletools.genops(payload))
    except (ValueError, IndexError, EOFError, OverflowError, MemoryError, struct.error):
        return payload[:1] == b"\x80" and payload[1:2] in b"\x02\x03\x04\x05"
