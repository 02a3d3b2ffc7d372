"""The visual tokenizer: a small convolutional autoencoder around FSQ, one for every image scale.

The encoder sees `patch_size` x `patch_size` pixels per code and three codes around it, so the same weights
tokenize a 64-pixel image and the 32-pixel sketch of it.
"""

from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import DataError
from common.files import atomic_path, read_json, write_json
from model.checkpoint import load_tensors, save_tensors
from model.tokenizers.fsq import FSQ
from model.tokenizers.settings import VisualTokenizerConfig

_CONFIG_FILE = "config.json"
_WEIGHTS_FILE = "model.safetensors"
_MICRO_BATCH_PIXELS = 256 * 64 * 64


class ResidualConv(nn.Module):
    """Pre-norm residual layer: 3x3 convolution, GELU, 1x1 convolution."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.spatial = nn.Conv2d(width, width, 3, padding=1)
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(F.gelu(self.spatial(self.norm(x))))


class VisualTokenizer(nn.Module):
    """Images to grids of codes and back."""

    def __init__(self, config: VisualTokenizerConfig):
        super().__init__()
        self.config = config
        pixels, channels = 3 * config.patch_size**2, len(config.levels)
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(config.patch_size),
            nn.Conv2d(pixels, config.width, 1),
            *(ResidualConv(config.width) for _ in range(config.depth)),
            nn.GroupNorm(1, config.width),
            nn.Conv2d(config.width, channels, 1),
        )
        self.quantizer = FSQ(config.levels)
        self.decoder = nn.Sequential(
            nn.Conv2d(channels, config.width, 1),
            *(ResidualConv(config.width) for _ in range(config.depth)),
            nn.GroupNorm(1, config.width),
            nn.Conv2d(config.width, pixels, 1),
            nn.PixelShuffle(config.patch_size),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Differentiable reconstruction: float [batch, 3, height, width] in -1..1 -> the same shape, not clamped."""
        return self.decoder(self._quantized(images).movedim(-1, 1))

    def encode(self, images: Tensor) -> Tensor:
        """float [batch, 3, height, width] in -1..1 -> int64 [batch, height / patch, width / patch].

        Raises `ValueError` where the sides are not multiples of `patch_size`.
        """
        if images.shape[-1] % self.config.patch_size or images.shape[-2] % self.config.patch_size:
            raise ValueError(f"image sides {tuple(images.shape[-2:])} are no multiples of {self.config.patch_size}")
        chunk = max(1, _MICRO_BATCH_PIXELS // (images.shape[-1] * images.shape[-2]))
        with torch.no_grad():
            return torch.cat([self.quantizer.to_codes(self._quantized(part)) for part in images.split(chunk)])

    def decode(self, codes: Tensor) -> Tensor:
        """int64 [batch, rows, columns] -> float [batch, 3, patch * rows, patch * columns] in -1..1."""
        return self.decoder(self.quantizer.to_values(codes).movedim(-1, 1)).clamp(-1, 1)

    def _quantized(self, images: Tensor) -> Tensor:
        """[batch, 3, height, width] -> quantized values [batch, rows, columns, channels]."""
        return self.quantizer.quantize(self.encoder(images).movedim(1, -1))

    def save(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors`; the folder appears whole or not at all."""
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            write_json(temporary / _CONFIG_FILE, self.config.model_dump(mode="json"))
            save_tensors(temporary / _WEIGHTS_FILE, self.state_dict())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a saved tokenizer, in evaluation mode.

        Raises `UntrustedFileError` for a pickle or any other file that is not safetensors, `DataError` where
        weights are missing or do not fit the configuration.
        """
        config = VisualTokenizerConfig.parse(read_json(folder / _CONFIG_FILE), where=str(folder / _CONFIG_FILE))
        tokenizer = cls(config)
        try:
            tokenizer.load_state_dict(load_tensors(folder / _WEIGHTS_FILE))
        except RuntimeError as error:
            raise DataError(f"the weights do not fit config.json: {error}", where=str(folder)) from None
        return tokenizer.eval()
