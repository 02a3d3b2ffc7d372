"""The generator: one decoder over a causal prompt and a bidirectional image block, coarse to fine.

The prompt's keys and values are computed once (`prefill`). The sketch's tokens see the prompt and each other;
the details see the prompt and their neighbourhood, through the first `fine_layers` blocks only.
"""

import torch
from torch import Tensor, nn

from model.transformer.config import GeneratorConfig
from model.transformer.embeddings import FactoredHead, FactoredTable
from model.transformer.layers import MASKED_SCORE, Block, RMSNorm

FINE_PER_CELL = 4
"""Fine tokens in a cell of the sketch: a 2x2 block, row by row."""


class Generator(nn.Module):
    """A coarse-to-fine text-to-image transformer; shapes below use b = batch, t = text_length, n = coarse_tokens."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        hidden, levels = config.hidden_size, config.visual_levels
        rows, columns = config.coarse_grid
        self.text_embedding = nn.Embedding(config.text_vocabulary, hidden)
        self.text_position = nn.Parameter(torch.randn(config.text_length, hidden) * 0.02)
        self.row_position = nn.Parameter(torch.randn(rows, hidden) * 0.02)
        self.column_position = nn.Parameter(torch.randn(columns, hidden) * 0.02)
        self.stage_embedding = nn.Parameter(torch.randn(2, hidden) * 0.02)
        self.code_embedding = FactoredTable(levels, hidden, extra=1)
        self.sketch_embedding = FactoredTable(levels, hidden)
        self.cell_scale = nn.Parameter(1 + torch.randn(FINE_PER_CELL, hidden) * 0.02)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(hidden, config.rms_norm_eps)
        self.coarse_head = FactoredHead(levels, hidden)
        self.fine_head = FactoredHead(levels, hidden, outputs=FINE_PER_CELL)
        self.register_buffer("text_bias", _causal_bias(config.text_length), persistent=False)
        self.register_buffer("fine_bias", _local_bias(config), persistent=False)
        self._initialise()

    text_bias: Tensor
    fine_bias: Tensor

    def _initialise(self) -> None:
        """Variance-preserving linears; the residual branches shrunk by sqrt(2 * layers), as in GPT-2."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        with torch.no_grad():
            for block in self.decoder_blocks():
                for branch in (block.attention.o_proj, block.mlp.down_proj):
                    branch.weight.mul_((2 * self.config.num_hidden_layers) ** -0.5)

    def decoder_blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def prefill(self, text_ids: Tensor) -> Tensor:
        """Keys and values of a prompt: int64 [b, t] -> [layers, 2, b, kv_heads, t, head_dim]."""
        x, past = self._embed_text(text_ids), []
        for block in self.decoder_blocks():
            x, present = block(x, self.text_bias)
            past.append(present)
        return torch.stack(past)

    def coarse_logits(self, past: Tensor, coarse_ids: Tensor) -> Tensor:
        """One pass over the sketch: int64 [b, n], the mask id where unknown -> [b, n, codes]."""
        x = self._embed_coarse(coarse_ids)
        for block, block_past in zip(self.decoder_blocks(), past, strict=True):
            x, _ = block(x, None, block_past)
        return self.coarse_head(self.norm(x))

    def fine_logits(self, past: Tensor, coarse_ids: Tensor, fine_ids: Tensor) -> Tensor:
        """One pass over the details: int64 [b, n] and [b, n, 4] -> [b, n, 4, codes]."""
        x = self._embed_fine(coarse_ids, fine_ids)
        bias = self.fine_bias[self.config.text_length :]
        for index, block in enumerate(self.decoder_blocks()[: self.config.fine_layers]):
            x, _ = block(x, bias, past[index])
        return self._split_cells(self.fine_head(self.norm(x)))

    def train_coarse(self, text_ids: Tensor, coarse_ids: Tensor) -> Tensor:
        """`prefill` and `coarse_logits` in one pass, for training; the same numbers."""
        x = torch.cat([self._embed_text(text_ids), self._embed_coarse(coarse_ids)], 1)
        bias = self._joint_bias(self.fine_bias.new_zeros(coarse_ids.shape[1], coarse_ids.shape[1]))
        for block in self.blocks:
            x, _ = block(x, bias)
        return self.coarse_head(self.norm(x[:, self.config.text_length :]))

    def train_fine(self, text_ids: Tensor, coarse_ids: Tensor, fine_ids: Tensor) -> Tensor:
        """`prefill` and `fine_logits` in one pass, for training; the same numbers."""
        text = self.config.text_length
        x = torch.cat([self._embed_text(text_ids), self._embed_fine(coarse_ids, fine_ids)], 1)
        bias = self._joint_bias(self.fine_bias[text:, text:])
        for block in self.decoder_blocks()[: self.config.fine_layers]:
            x, _ = block(x, bias)
        return self._split_cells(self.fine_head(self.norm(x[:, text:])))

    def _joint_bias(self, image: Tensor) -> Tensor:
        """The prompt is causal and sees no image; the image sees the prompt, and itself through `image` [n, n]."""
        text, cells = self.config.text_length, image.shape[0]
        above = torch.cat([self.text_bias, image.new_full((text, cells), MASKED_SCORE)], 1)
        return torch.cat([above, torch.cat([image.new_zeros(cells, text), image], 1)])

    def _embed_text(self, text_ids: Tensor) -> Tensor:
        return self.text_embedding(text_ids) + self.text_position

    def _cell_position(self) -> Tensor:
        return (self.row_position[:, None] + self.column_position[None]).flatten(0, 1)

    def _embed_coarse(self, coarse_ids: Tensor) -> Tensor:
        return self.code_embedding(coarse_ids) + self._cell_position() + self.stage_embedding[0]

    def _embed_fine(self, coarse_ids: Tensor, fine_ids: Tensor) -> Tensor:
        cell = (self.code_embedding(fine_ids) * self.cell_scale).sum(2) * FINE_PER_CELL**-0.5
        return cell + self.sketch_embedding(coarse_ids) + self._cell_position() + self.stage_embedding[1]

    def _split_cells(self, logits: Tensor) -> Tensor:
        return logits.unflatten(-1, (FINE_PER_CELL, self.config.visual_vocabulary))


def _causal_bias(tokens: int) -> Tensor:
    return torch.full((tokens, tokens), MASKED_SCORE).triu(1)


def _local_bias(config: GeneratorConfig) -> Tensor:
    """Scores' bias of the fine pass, [t + n, t + n]: a cell sees the prompt and the cells within `fine_window`."""
    rows, columns = config.coarse_grid
    cell = torch.arange(rows * columns)
    row, column = cell // columns, cell % columns
    near = (row[:, None] - row).abs().le(config.fine_window) & (column[:, None] - column).abs().le(config.fine_window)
    text, cells = config.text_length, rows * columns
    bias = torch.zeros(text + cells, text + cells)
    bias[text:, text:] = torch.where(near, 0.0, MASKED_SCORE)
    return bias
