"""Where the tokenizer sees images, as an ONNX graph: for a distance between images that no judge can read."""

import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from common.files import atomic_path
from model.tokenizers.training import to_float
from model.tokenizers.visual import VisualTokenizer


class Features(nn.Module):
    """uint8 images [n, height, width, 3] to float32 [n, 2 * width]: mean and spread over the image of the channels that the
    encoder's last layer turns into codes."""

    def __init__(self, tokenizer: VisualTokenizer):
        super().__init__()
        self.trunk = tokenizer.encoder[:-1]

    def forward(self, images: Tensor) -> Tensor:
        maps = self.trunk(to_float(images.permute(0, 3, 1, 2)))
        return torch.cat([maps.mean((2, 3)), maps.std((2, 3))], dim=1)


def write_features(tokenizer: VisualTokenizer, side: int, file: Path) -> None:
    """Write the graph for images of `side` pixels."""
    import onnx

    images = torch.zeros((2, side, side, 3), dtype=torch.uint8)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of every optional package that is absent
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Features(tokenizer).eval(), (images,), dynamo=True, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            verbose=False,
        )  # fmt: skip
    assert program is not None
    with atomic_path(file) as temporary:
        onnx.save(program.model_proto, temporary)
