"""From encoded bytes to the square RGB pixels that are tokenized."""

import io

import numpy as np

from common.errors import DataError


def decode_square(payload: bytes, side: int) -> np.ndarray:
    """Decode an image, scale its shorter side to `side`, crop the middle: uint8 [3, side, side].

    Transparent pixels become black. Raises `DataError` where Pillow cannot read the bytes.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(payload)) as image:
            pixels = _without_transparency(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"not a readable image: {error}") from None
    if pixels.size != (side, side):
        pixels = ImageOps.fit(pixels, (side, side), Image.Resampling.BICUBIC)
    return np.asarray(pixels).transpose(2, 0, 1)


def _without_transparency(image):
    from PIL import Image

    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba).convert("RGB")
    return image.convert("RGB")
