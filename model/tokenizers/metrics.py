"""How close a reconstruction is to its image. Images are float [batch, 3, height, width] in -1..1."""

import torch
import torch.nn.functional as F
from torch import Tensor

_WINDOW = 7
_LUMINANCE = 0.01**2
_CONTRAST = 0.03**2


def psnr(reconstruction: Tensor, image: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in decibels: [batch]."""
    error = ((reconstruction - image) / 2).pow(2).mean((1, 2, 3))
    return -10 * error.clamp(min=1e-10).log10()


def ssim(reconstruction: Tensor, image: Tensor) -> Tensor:
    """Structural similarity of each image (Wang et al. 2004), 7x7 uniform windows, mean over channels: [batch]."""
    a, b = (reconstruction + 1) / 2, (image + 1) / 2
    mean_a, mean_b = _window_mean(a), _window_mean(b)
    var_a = _window_mean(a * a) - mean_a**2
    var_b = _window_mean(b * b) - mean_b**2
    covariance = _window_mean(a * b) - mean_a * mean_b
    similarity = (2 * mean_a * mean_b + _LUMINANCE) * (2 * covariance + _CONTRAST)
    similarity = similarity / ((mean_a**2 + mean_b**2 + _LUMINANCE) * (var_a + var_b + _CONTRAST))
    return torch.mean(similarity, (1, 2, 3))


def _window_mean(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, _WINDOW, stride=1)
