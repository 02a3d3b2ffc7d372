"""The plan: a few codes for what a whole image is to look like, settled before any of its cells.

Cells that are drawn in one parallel pass do not know of each other's choices: of ten ways to write a seven, each cell
draws its own. A plan makes the choice once, for the sketch and for the details. Training learns it as the code of a small
autoencoder (FSQ) that sees the true image and tells the model what the prompt leaves open; decoding draws it from what the
prompt's last token says (`plan_prior.py`), before the first pass over the image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.tokenizers.fsq import FSQ
from model.transformer.config import GeneratorConfig
from model.transformer.part import WHOLE, Part
from model.transformer.plan_prior import PlanPrior

FINE_PER_CELL = 4
"""Fine tokens in a cell of the sketch: a 2x2 block, row by row."""
_CELL_WIDTH, _WIDTH = 24, 256
_SPREAD_WIDTH, _SPREAD = 16, 1024
"""Values of a plan that a cell is told, at least, and all cells together: few cells are told more each."""


class Finer(nn.Module):
    """Which cells of a grid that was doubled `times` lie in which cell of the sketch (n of them, f = 4**times in each)."""

    parents: Tensor
    """The sketch's cell of each cell of the finer grid, int64 [f * n]."""
    members: Tensor
    """The other way, int64 [n, f], row by row."""

    def __init__(self, sketch: tuple[int, int], times: int):
        super().__init__()
        self.times, number = times, torch.arange(sketch[0] * sketch[1]).view(sketch)
        parents = number.repeat_interleave(1 << times, 0).repeat_interleave(1 << times, 1).flatten()
        self.register_buffer("parents", parents, persistent=False)
        self.register_buffer("members", parents.argsort(stable=True).view(number.numel(), -1), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        """Give each finer cell what the sketch's cell has: [b, n, ...] -> [b, f * n, ...]."""
        return values[:, self.parents] if self.times else values

    def collect(self, values: Tensor) -> Tensor:
        """[b, f * n, ...] -> [b, n, f, ...]."""
        return values[:, self.members]


class Plan(nn.Module):
    """Encoder, embedding and prior of the plan; shapes use b = batch, n = coarse_tokens, p = plan_tokens."""

    def __init__(self, config: GeneratorConfig, part: Part = WHOLE):
        """A part's stem has the encoder and what spreads its values over the cells, its head the prior."""
        super().__init__()
        self.tokens, self.quantizer, self.cells = config.plan_tokens, FSQ(config.visual_levels), config.coarse_tokens
        self.frozen = False
        if part.stem:
            self._make_encoder(config)
        if part.head:
            self.prior = PlanPrior(config.hidden_size, self.tokens, config.visual_levels)
        if part.stem:
            with torch.no_grad():  # at first smaller than the cells' own embeddings
                self.to_sketch.weight.mul_(0.3)

    def _make_encoder(self, config: GeneratorConfig) -> None:
        channels, hidden = self.tokens * len(config.visual_levels), config.hidden_size
        parts = sum(FINE_PER_CELL**stage for stage in range(len(config.grids)))
        self.encoder = nn.ModuleDict(
            {
                "codes": nn.ModuleList(nn.Embedding(config.visual_vocabulary, _CELL_WIDTH) for _ in range(parts)),
                "latents": nn.Sequential(
                    nn.Linear(_CELL_WIDTH * self.cells, _WIDTH),
                    nn.SiLU(),
                    nn.Linear(_WIDTH, channels),
                    # Normalised over the batch: otherwise all images get one code before the model learns to use it.
                    nn.BatchNorm1d(channels, affine=False),
                ),
            }
        )
        width = max(_SPREAD_WIDTH, _SPREAD // self.cells)
        self.spread = nn.Sequential(nn.Linear(channels, _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, self.cells * width))
        self.to_sketch = nn.Linear(width, hidden, bias=False)
        self.to_details = nn.Linear(width, hidden, bias=False) if config.fine_layers else None
        self.finer = nn.ModuleList(Finer(config.coarse_grid, stage) for stage in range(len(config.grids) - 1))

    def encode(self, coarse_ids: Tensor, details: Sequence[Tensor]) -> Tensor:
        """What the true image would have had for a plan: values in -1..1, [b, p, channels].

        The image is its sketch, int64 [b, n], and the details of each stage, [b, n, 4], [b, 4n, 4], ... No gradient
        reaches an encoder that is `frozen`.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            blocks = [finer.collect(ids).flatten(2) for finer, ids in zip(self._finer(), details, strict=True)]
            ids = torch.cat([coarse_ids[..., None], *blocks], -1)
            cells = torch.stack([table(ids[..., part]) for part, table in enumerate(self._tables())]).sum(0)
            latents = self.encoder["latents"](cells.flatten(1))
            return self.quantizer.quantize(latents.unflatten(-1, (self.tokens, -1)))

    @property
    def has_encoder(self) -> bool:
        """A part of a model may have the prior alone."""
        return "encoder" in self._modules

    def freeze(self) -> None:
        """Keep the codes as they are from here on, so that the prior has something to converge to."""
        self.frozen = True
        if self.has_encoder:
            self.encoder.eval()

    def train(self, mode: bool = True) -> "Plan":
        super().train(mode)
        if self.frozen and self.has_encoder:
            self.encoder.eval()
        return self

    def sketch(self, values: Tensor) -> Tensor:
        """What a plan adds to the cells of the sketch: [b, p, channels] -> [b, n, hidden]."""
        return self.to_sketch(self._spread(values))

    def details(self, values: Tensor, stage: int = 1) -> Tensor:
        """The same for the cells that a stage of details starts from: [b, p, channels] -> [b, c, hidden]."""
        assert self.to_details is not None, "this shape has no details"
        return self.finer[stage - 1](self.to_details(self._spread(values)))

    def values(self, codes: Tensor) -> Tensor:
        """int64 [b, p] -> [b, p, channels]."""
        return self.quantizer.to_values(codes)

    def codes(self, values: Tensor) -> Tensor:
        """[b, p, channels] -> int64 [b, p]."""
        return self.quantizer.to_codes(values.detach())

    def _spread(self, values: Tensor) -> Tensor:
        return self.spread(values.flatten(1)).unflatten(-1, (self.cells, -1))

    def _finer(self) -> list["Finer"]:
        return [finer for finer in self.finer if isinstance(finer, Finer)]

    def _tables(self) -> nn.ModuleList:
        tables = self.encoder["codes"]
        assert isinstance(tables, nn.ModuleList)
        return tables
