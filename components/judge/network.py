"""The judge of the digit world: a small CNN that reads which digit of which colour stands in each of the four slots.

It is trained on judge digits only (`training`), so it has seen neither the digits that the generator learned from nor
the ones that it is tested on. One network reads all slots: it looks at a crop around each slot's centre. The digit is
read from the brightest channel, so a colour cannot hint at a digit; the colour is read from the mean colour of the
bright pixels, so a shape cannot hint at a colour.
"""

import torch
from torch import Tensor, nn

from components.ingest.digit_world.scenes import COLOURS, EMPTY, SLOTS

CROP_SIZE = 32
_CROP_CORNERS = {"left": (16, 1), "right": (16, 31), "top": (1, 16), "bottom": (31, 16)}
_DIGITS = 10
_INK_THRESHOLD = 0.35


class Judge(nn.Module):
    """Reads crops, float32 [n, 3, 32, 32] in 0..1, as (digit logits [n, 11], colour logits [n, 6]).

    Digit class 0 is an empty slot, class d + 1 the digit d.
    """

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.digit = nn.Sequential(
            *_convolution(1, width, stride=2),
            *_convolution(width, 2 * width),
            *_convolution(2 * width, 2 * width, stride=2),
            *_convolution(2 * width, 3 * width),
            *_convolution(3 * width, 4 * width, stride=2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(4 * width * 16, 1 + _DIGITS),
        )
        self.colour = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, len(COLOURS)))

    def features(self, crops: Tensor) -> Tensor:
        """The last convolution's channels, averaged over the crop, and the crop's mean colour: [n, 4 * width + 3]."""
        maps = self.digit[:-3](crops.amax(1, keepdim=True) * 2 - 1)
        return torch.cat([maps.mean((2, 3)), crops.mean((2, 3))], dim=1)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        brightness = crops.amax(1, keepdim=True)
        ink = (brightness - _INK_THRESHOLD).clamp_min(0)
        ink_colour = (crops * ink).sum((2, 3)) / (ink.sum((2, 3)) + 1e-3)
        features = torch.cat([ink_colour, crops.mean((2, 3))], dim=1)
        return self.digit(brightness * 2 - 1), self.colour(features)


def _convolution(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def slot_crops(images: Tensor) -> Tensor:
    """Crops around every slot's centre: uint8 [n, 64, 64, 3] to float32 [n * 4, 3, 32, 32] in 0..1, slots innermost."""
    pixels = images.permute(0, 3, 1, 2)
    corners = [_CROP_CORNERS[slot] for slot in SLOTS]
    crops = [pixels[:, :, top : top + CROP_SIZE, left : left + CROP_SIZE] for top, left in corners]
    return torch.stack(crops, dim=1).flatten(0, 1).float() / 255


class Reader(nn.Module):
    """What is exported: uint8 images [n, 64, 64, 3] to int64 [n, 4, 2], digit and colour index, -1 where empty, and to
    features, float32 [n, 4 * feature_size], in which images can be compared (a Fréchet distance)."""

    def __init__(self, judge: Judge):
        super().__init__()
        self.judge = judge

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        crops = slot_crops(images)
        digit_logits, colour_logits = self.judge(crops)
        digit = digit_logits.argmax(1) - 1
        colour = torch.where(digit == EMPTY, EMPTY, colour_logits.argmax(1))
        read = torch.stack([digit, colour], dim=1).view(-1, len(SLOTS), 2)
        return read, self.judge.features(crops).view(len(images), -1)
