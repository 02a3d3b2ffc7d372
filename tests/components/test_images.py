import numpy as np
import pytest
from PIL import Image

from components.images import UnreadableImageError, load, square
from tests.components.data import encoded, picture


@pytest.mark.parametrize(("form", "mime"), [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("WEBP", "image/webp")])
def test_the_three_forms_decode_to_rgb(form, mime):
    decoded = load(encoded(picture(1), form), 10_000)
    assert decoded.mime == mime
    assert (decoded.pixels.mode, decoded.pixels.size) == ("RGB", (32, 32))


def test_transparent_pixels_are_laid_on_white():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert (np.asarray(load(encoded(image), 100).pixels) == 255).all()


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    grey = Image.fromarray(np.full((2, 2), 32_896, dtype=np.uint16))
    assert np.unique(np.asarray(load(encoded(grey), 100).pixels)).tolist() == [128]


def test_a_rotated_photograph_is_turned_upright():
    image = Image.new("RGB", (8, 4))
    exif = image.getexif()
    exif[0x0112] = 6
    assert load(encoded(image, "JPEG", exif=exif), 100).pixels.size == (4, 8)


def test_a_square_is_the_middle_of_the_image_at_the_wanted_size():
    image = Image.new("RGB", (90, 30), "black")
    image.paste((10, 20, 30), (30, 0, 60, 30))
    pixels = square(image, 15)
    assert (pixels.shape, pixels.dtype) == ((3, 15, 15), np.uint8)
    assert (pixels[:, :, 2:-2] == np.array([10, 20, 30], dtype=np.uint8)[:, None, None]).all()


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "zero_bytes"),
        (b"GIF89a", "not_an_image"),
        (encoded(picture(1), "BMP"), "not_an_image"),
        (encoded(picture(1))[:-40], "undecodable"),
        (encoded(picture(1, 200)), "too_many_pixels"),
        (encoded(picture(1), "PNG", save_all=True, append_images=[picture(2)]), "animated"),
    ],
)
def test_anything_else_is_refused_with_its_reason(payload, reason):
    with pytest.raises(UnreadableImageError) as caught:
        load(payload, 100 * 100)
    assert caught.value.reason == reason
