"""Paint scenes: each handwritten digit is enlarged, turned, shifted and coloured a little differently every time."""

from collections.abc import Sequence

import numpy as np

from components.ingest.digit_world.scenes import SLOTS, Scene
from components.ingest.digit_world.settings import SCENE_SIDE

_RGB = {
    "red": (1.0, 0.15, 0.15),
    "green": (0.15, 0.9, 0.2),
    "blue": (0.25, 0.4, 1.0),
    "yellow": (1.0, 0.9, 0.1),
    "magenta": (0.95, 0.2, 0.9),
    "white": (0.95, 0.95, 0.95),
}
_CENTRES = {"left": (-0.48, 0.0), "right": (0.48, 0.0), "top": (0.0, -0.48), "bottom": (0.0, 0.48)}
_SCALE = 2.2  # the canvas spans 2.2 digits
_SCALE_JITTER, _ANGLE_JITTER, _SHIFT_JITTER = 0.08, 0.12, 0.05
_PADDING = 2  # digit pixels of empty border, as wide as the cubic kernel reaches
_OVERSAMPLING = 8
_BATCH = 64


def render_scenes(
    digit_images: np.ndarray, digit_labels: np.ndarray, specs: Sequence[Scene], seed: int, jitter: float = 1.0
) -> np.ndarray:
    """Render scenes with digits drawn at random among those of the right label.

    `digit_images` float32 [m, 8, 8] in 0..1 and `digit_labels` [m] hold every digit that the scenes name; `jitter`
    scales the random size (8%), angle (0.12 rad) and shift (0.05 of half the canvas). Returns uint8 [n, 64, 64, 3].
    """
    random = np.random.Generator(np.random.PCG64([seed, 2]))
    enlarged = _enlarge(digit_images)
    of_label = [np.flatnonzero(digit_labels == digit) for digit in range(10)]
    canvas = np.zeros((len(specs), SCENE_SIDE, SCENE_SIDE, 3), dtype=np.uint8)
    for slot in SLOTS:
        rows = np.array([row for row, scene in enumerate(specs) if slot in scene.slots], dtype=np.int64)
        if not len(rows):
            continue
        glyphs = [specs[row].slots[slot] for row in rows]
        picks = random.random(len(rows))
        digits = np.array(
            [of_label[g.digit][int(p * len(of_label[g.digit]))] for g, p in zip(glyphs, picks, strict=True)]
        )
        colours = np.array([_RGB[g.colour] for g in glyphs]) * 255
        noise = random.uniform(-jitter, jitter, size=(len(rows), 4))
        window = _window(slot, jitter)
        for start in range(0, len(rows), _BATCH):
            part = slice(start, start + _BATCH)
            ink = _place(enlarged, digits[part], noise[part], slot, window)
            painted = np.rint(ink[..., None] * colours[part, None, None, :]).astype(np.uint8)
            target = (rows[part, None, None], *np.ix_(np.arange(*window[0]), np.arange(*window[1])))
            canvas[target] = np.maximum(canvas[target], painted)
    return canvas


def _place(
    enlarged: np.ndarray,
    digits: np.ndarray,
    noise: np.ndarray,
    slot: str,
    window: tuple[tuple[int, int], tuple[int, int]],
) -> np.ndarray:
    """Sample the enlarged digits bilinearly at the window's pixels: float64 [n, height, width] in 0..1."""
    scale = _SCALE * (1 + _SCALE_JITTER * noise[:, 0])
    angle = _ANGLE_JITTER * noise[:, 1]
    centre = np.asarray(_CENTRES[slot]) + _SHIFT_JITTER * noise[:, 2:]
    pixels = (np.arange(SCENE_SIDE) + 0.5) * (2 / SCENE_SIDE) - 1
    y = pixels[slice(*window[0])][None, :, None] - centre[:, 1, None, None]
    x = pixels[slice(*window[1])][None, None, :] - centre[:, 0, None, None]
    side = enlarged.shape[-1]
    to_source = scale * (8 * _OVERSAMPLING / 2)
    cosine, sine = (np.cos(angle) * to_source)[:, None, None], (np.sin(angle) * to_source)[:, None, None]
    middle, last = (side - 1) / 2, side - 1.001  # the outermost samples are zero, so clipping means "no ink"
    u = np.clip(cosine * x - sine * y + middle, 0, last)
    v = np.clip(sine * x + cosine * y + middle, 0, last)
    u0, v0 = u.astype(np.int32), v.astype(np.int32)
    u -= u0
    v -= v0
    flat = enlarged.reshape(-1)
    corner = digits.astype(np.int32)[:, None, None] * (side * side) + v0 * side + u0
    top = flat[corner] * (1 - u) + flat[corner + 1] * u
    bottom = flat[corner + side] * (1 - u) + flat[corner + side + 1] * u
    return top * (1 - v) + bottom * v


def _window(slot: str, jitter: float) -> tuple[tuple[int, int], tuple[int, int]]:
    """The (first, past-last) rows and columns that a digit in this slot can reach."""
    reach = (8 + 2 * _PADDING) / 8 / (_SCALE * (1 - _SCALE_JITTER * jitter)) * (1 + _ANGLE_JITTER * jitter)
    reach += _SHIFT_JITTER * jitter
    column, row = ((centre - reach, centre + reach) for centre in _CENTRES[slot])
    return _pixels(row), _pixels(column)


def _pixels(span: tuple[float, float]) -> tuple[int, int]:
    first, last = ((edge + 1) * SCENE_SIDE / 2 for edge in span)
    return max(0, int(first)), min(SCENE_SIDE, int(last) + 1)


def _enlarge(images: np.ndarray) -> np.ndarray:
    """Cubic interpolation to eight times the size, with an empty border: [m, 8, 8] to float64 [m, 96, 96] in 0..1."""
    padded = np.pad(images.astype(np.float64), ((0, 0), (_PADDING, _PADDING), (_PADDING, _PADDING)))
    weights = _cubic_weights(padded.shape[-1], _OVERSAMPLING)
    return np.clip(weights @ padded @ weights.T, 0, 1)


def _cubic_weights(samples: int, factor: int, a: float = -0.75) -> np.ndarray:
    """The cubic convolution kernel (Keys 1981, `a` as image libraries set it) as a matrix [samples * factor, samples]."""
    positions = (np.arange(samples * factor) + 0.5) / factor - 0.5
    distance = np.abs(positions[:, None] - np.arange(samples)[None, :])
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))
