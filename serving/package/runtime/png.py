"""PNG files with nothing but zlib: 8-bit RGB, every line as its difference from the one above."""

import struct
import zlib

import numpy as np

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EIGHT_BIT_RGB = bytes([8, 2, 0, 0, 0])
"""Bits, colour type, and the only compression, filter method and order of lines that are of use."""
_LEVEL = 1
"""A sixth of a scene's size more than with the best level, in a third of the time of the usual one."""
_UP = 2
"""The filter of a line: what it adds to the line above (PNG specification, 9.2)."""


def png(pixels: np.ndarray) -> bytes:
    """The file of an image, uint8 [height, width, 3]."""
    height, width, _ = pixels.shape
    lines = np.empty((height, 1 + 3 * width), dtype=np.uint8)
    lines[:, 0] = _UP
    flat = pixels.reshape(height, 3 * width)
    lines[0, 1:] = flat[0]
    np.subtract(flat[1:], flat[:-1], out=lines[1:, 1:])  # modulo 256, as the filter wants it
    header = struct.pack(">II", width, height) + _EIGHT_BIT_RGB
    content = zlib.compress(lines.tobytes(), _LEVEL)
    return _SIGNATURE + b"".join(_chunk(*part) for part in ((b"IHDR", header), (b"IDAT", content), (b"IEND", b"")))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
