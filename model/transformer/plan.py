"""The plan: a few codes for what a whole image is to look like, settled before any of its cells.

Cells that are drawn in one parallel pass do not know of each other's choices: of ten ways to write a seven, each cell
draws its own. A plan makes the choice once. Training learns it as the code of a small autoencoder (FSQ) that sees the
true sketch and tells the model what the prompt leaves open; decoding draws it from what the prompt's last token
predicts, at no pass of its own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.tokenizers.fsq import FSQ
from model.transformer.config import GeneratorConfig

_CELL_WIDTH, _WIDTH = 32, 256


class Plan(nn.Module):
    """Encoder, embedding and prediction of the plan; shapes use b = batch, n = coarse_tokens, p = plan_tokens."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.tokens, self.quantizer = config.plan_tokens, FSQ(config.visual_levels)
        channels = self.tokens * len(config.visual_levels)
        self.cells = nn.Embedding(config.visual_vocabulary, _CELL_WIDTH)
        # Normalised over the batch: otherwise all sketches get one code before the model learns to use it.
        self.encoder = nn.Sequential(
            nn.Linear(_CELL_WIDTH * config.coarse_tokens, _WIDTH),
            nn.SiLU(),
            nn.Linear(_WIDTH, channels),
            nn.BatchNorm1d(channels, affine=False),
        )
        self.embedding = nn.Sequential(
            nn.Linear(channels, _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, config.hidden_size, bias=False)
        )
        self.head = nn.Linear(config.hidden_size, self.tokens * self.quantizer.codes)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():  # at first about as large as the cells' own embeddings
            self.embedding[2].weight.mul_(0.1)  # pyright: ignore[reportCallIssue]

    def encode(self, coarse_ids: Tensor) -> Tensor:
        """What the true sketch, int64 [b, n], would have had for a plan: values in -1..1, [b, p, channels]."""
        latents = self.encoder(self.cells(coarse_ids).flatten(1))
        return self.quantizer.quantize(latents.unflatten(-1, (self.tokens, -1)))

    def embed(self, values: Tensor) -> Tensor:
        """[b, p, channels] -> [b, 1, hidden], to be added to every cell."""
        return self.embedding(values.flatten(1))[:, None]

    def embed_codes(self, codes: Tensor) -> Tensor:
        """int64 [b, p] -> [b, 1, hidden]."""
        return self.embed(self.quantizer.to_values(codes))

    def logits(self, last: Tensor) -> Tensor:
        """From the prompt's last hidden state: [b, hidden] -> [b, p, codes]."""
        return self.head(last).unflatten(-1, (self.tokens, self.quantizer.codes))

    def prediction_loss(self, last: Tensor, values: Tensor) -> Tensor:
        """Cross-entropy (nats a token) of predicting the plan of `values` from the prompt. No gradient reaches the encoder."""
        codes = self.quantizer.to_codes(values.detach())
        return F.cross_entropy(self.logits(last).flatten(0, 1).float(), codes.flatten())
