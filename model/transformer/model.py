"""The generator: one decoder over a causal prompt and an image block, coarse to fine, with two ways to predict.

The prompt's keys and values are computed once (`prefill`). The sketch's tokens are predicted all at once, each seeing
the prompt and the other cells (`coarse_logits`), or one after another, each seeing what comes before it
(`next_logits`): the same weights. The details see the prompt and their neighbourhood, through the first `fine_layers`
blocks only; without such layers the sketch is the whole image. They come in one stage or several, each of which makes
four tokens of every token of the grid before it; all stages share their weights but for their positions.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.transformer.config import GeneratorConfig
from model.transformer.embeddings import CodeLoss, FactoredHead, FactoredTable
from model.transformer.layers import Block, RMSNorm, initialise
from model.transformer.part import WHOLE, Part
from model.transformer.patterns import LocalAttention, Window, causal_bias
from model.transformer.plan import FINE_PER_CELL, Plan
from model.transformer.rope import Rotation, rotation


class Prefix(NamedTuple):
    """A prompt that was read."""

    past: Tensor
    """Keys and values, [layers, 2, b, kv_heads, t, head_dim]."""
    last: Tensor
    """Its last hidden state, normalised, from which the plan is drawn: [b, hidden]."""


class Path(NamedTuple):
    """How one pass over a grid goes through every block."""

    bias: Tensor
    turn: Rotation | None
    local: LocalAttention | None


class Generator(nn.Module):
    """A coarse-to-fine text-to-image transformer; shapes below use b = batch, t = text_length, n = coarse_tokens."""

    text_bias: Tensor

    def __init__(self, config: GeneratorConfig, part: Part = WHOLE):
        """With a `part` it holds these layers alone, under the names that they have in the whole."""
        super().__init__()
        self.config = config
        if part.stem:
            self._make_stem(config)
        if config.fine_layers and part.head:
            self.fine_head = FactoredHead(config.visual_levels, config.hidden_size, outputs=FINE_PER_CELL)
        # A dictionary of numbers has the names of a list, also where the first layers are missing.
        numbers = part.layers(config.num_hidden_layers)
        self.blocks = nn.ModuleDict({str(number): Block(config) for number in numbers})
        if part.head:
            self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
            self.coarse_head = FactoredHead(config.visual_levels, config.hidden_size)
            self.code_loss = CodeLoss()
        self.register_buffer("text_bias", causal_bias(config.text_length), persistent=False)
        self.sketch_window = Window(config.coarse_grid, config.sketch_window, config.text_length)
        self.fine_windows = nn.ModuleList(
            Window(grid, config.fine_window, config.text_length) for grid in config.grids[:-1]
        )
        initialise(self, self.decoder_blocks(), config.num_hidden_layers)
        self.plan = Plan(config, part) if config.plan_tokens and (part.stem or part.head) else None

    def _make_stem(self, config: GeneratorConfig) -> None:
        hidden, (rows, columns) = config.hidden_size, config.coarse_grid
        self.text_embedding = nn.Embedding(config.text_vocabulary, hidden)
        self.text_position = nn.Parameter(torch.randn(config.text_length, hidden) * 0.02)
        self.row_position = nn.Parameter(torch.randn(rows, hidden) * 0.02)
        self.column_position = nn.Parameter(torch.randn(columns, hidden) * 0.02)
        self.stage_embedding = nn.Parameter(torch.randn(1 + config.detail_stages, hidden) * 0.02)
        larger = config.grids[1:-1]
        self.detail_rows = nn.ParameterList(torch.randn(rows, hidden) * 0.02 for rows, _ in larger)
        self.detail_columns = nn.ParameterList(torch.randn(columns, hidden) * 0.02 for _, columns in larger)
        self.code_embedding = FactoredTable(config.visual_levels, hidden, extra=1)
        if config.fine_layers:
            self.sketch_embedding = FactoredTable(config.visual_levels, hidden)
            self.cell_scale = nn.Parameter(1 + torch.randn(FINE_PER_CELL, hidden) * 0.02)

    def decoder_blocks(self) -> list[Block]:
        return [block for block in self.blocks.values() if isinstance(block, Block)]

    def prefill(self, text_ids: Tensor) -> Prefix:
        """Read a prompt, int64 [b, t]."""
        x, past = self._embed_text(text_ids), []
        turn, blocks = self._turn(0, text_ids.shape[1]), self.decoder_blocks()
        for block in blocks:
            x, present = block(x, self.text_bias, None, turn, last_alone=block is blocks[-1])
            past.append(present)
        return Prefix(torch.stack(past), self.norm(x[:, 0]))

    def coarse_logits(self, past: Tensor, coarse_ids: Tensor, plan_ids: Tensor | None = None) -> Tensor:
        """One parallel pass over the sketch: int64 [b, n], the mask id where unknown -> [b, n, codes].

        `plan_ids` int64 [b, plan_tokens], for a shape that has a plan.
        """
        x = self._embed_coarse(coarse_ids)
        if self.plan is not None:
            assert plan_ids is not None, "this shape decodes by a plan"
            x = x + self.plan.sketch(self.plan.values(plan_ids))
        turn = self._turn(self.config.text_length, coarse_ids.shape[1])
        for index, block in enumerate(self.decoder_blocks()):  # an exported loop over `past` has more operators
            x, _ = block(x, self.sketch_window.bias, past[index], turn, self.sketch_window.local)
        return self.coarse_head(self.norm(x))

    def next_logits(self, past: Tensor, previous_ids: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """The next cell, each cell given the ones before it, in raster order.

        `past` [layers, 2, b, kv_heads, t + first, head_dim] of the prompt and the cells so far; `previous_ids` int64
        [b, 1] is the cell before the asked one (the mask id before the first); `first` int64 [1] is the number of the
        asked cell. Returns [b, codes], and `past` with one more.
        """
        x = self.code_embedding(previous_ids) + F.embedding(first, self._coarse_place())
        turn = self._turn_at(first + self.config.text_length)
        presents = []
        for index, block in enumerate(self.decoder_blocks()):
            x, present = block(x, None, past[index], turn)
            presents.append(present)
        return self.coarse_head(self.norm(x))[:, 0], torch.cat([past, torch.stack(presents)], -2)

    def fine_logits(
        self, past: Tensor, cell_ids: Tensor, fine_ids: Tensor, plan_ids: Tensor | None = None, stage: int = 1
    ) -> Tensor:
        """One pass over the details of a `stage`: int64 [b, c] and [b, c, 4] -> [b, c, 4, codes].

        `cell_ids` is the grid before it, in raster order: the sketch at stage 1, then c = 4n, 16n, ... `plan_ids` int64
        [b, plan_tokens]; None for a sketch that no plan was drawn for.
        """
        x = self._embed_fine(cell_ids, fine_ids, stage)
        if self.plan is not None and plan_ids is not None:
            x = x + self.plan.details(self.plan.values(plan_ids), stage)
        turn, window = self._turn(self.config.text_length, cell_ids.shape[1]), self._fine_window(stage)
        for index, block in enumerate(self.decoder_blocks()[: self.config.fine_layers]):
            x, _ = block(x, window.bias, past[index], turn, window.local)
        return self._split_cells(self.fine_head(self.norm(x)))

    def train_coarse(
        self, text_ids: Tensor, coarse_ids: Tensor, plan_values: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`prefill` and `coarse_logits` in one pass, for training; the same numbers.

        `plan_values` [b, plan_tokens, channels] as `Plan.encode` gives them. Returns [b, n, codes], and the last hidden
        state of the prompt [b, hidden], from which the plan is predicted.
        """
        if self.plan is not None:
            assert plan_values is not None, "this shape is trained with a plan"
        x = self.embed_sketch(text_ids, coarse_ids, plan_values)
        return self.read_sketch(self._through(x, self.sketch_path(), self.config.num_hidden_layers))

    def train_next(self, text_ids: Tensor, coarse_ids: Tensor) -> Tensor:
        """Every cell's `next_logits` in one pass: int64 [b, n], the true cells -> [b, n, codes]."""
        start = torch.full_like(coarse_ids[:, :1], self.config.visual_vocabulary)
        return self.sequence_logits(text_ids, torch.cat([start, coarse_ids[:, :-1]], 1))

    def sequence_logits(self, text_ids: Tensor, previous_ids: Tensor) -> Tensor:
        """Next cells without a cache: int64 [b, t] and [b, k], the mask id and then the cells so far -> [b, k, codes]."""
        x = self.embed_sketch(text_ids, previous_ids)
        return self.read_sketch(self._through(x, self.causal_path(x.shape[1]), self.config.num_hidden_layers))[0]

    def train_fine(
        self,
        text_ids: Tensor,
        cell_ids: Tensor,
        fine_ids: Tensor,
        plan_values: Tensor | None = None,
        stage: int = 1,
    ) -> Tensor:
        """`prefill` and `fine_logits` in one pass, for training; the same numbers."""
        return self.read_details(
            self.through_details(self.embed_details(text_ids, cell_ids, fine_ids, plan_values, stage), stage)
        )

    def embed_sketch(self, text_ids: Tensor, coarse_ids: Tensor, plan_values: Tensor | None = None) -> Tensor:
        """What the first block is given of a prompt and its sketch: int64 [b, t] and [b, n] -> [b, t + n, hidden]."""
        cells = self._embed_coarse(coarse_ids)
        if self.plan is not None and plan_values is not None:
            cells = cells + self.plan.sketch(plan_values)
        return torch.cat([self._embed_text(text_ids), cells], 1)

    def embed_details(
        self, text_ids: Tensor, cell_ids: Tensor, fine_ids: Tensor, plan_values: Tensor | None, stage: int
    ) -> Tensor:
        """The same of a prompt and a stage of details: [b, t], [b, c] and [b, c, 4] -> [b, t + c, hidden]."""
        cells = self._embed_fine(cell_ids, fine_ids, stage)
        if self.plan is not None and plan_values is not None:
            cells = cells + self.plan.details(plan_values, stage)
        return torch.cat([self._embed_text(text_ids), cells], 1)

    def sketch_path(self) -> Path:
        """Of all cells of a sketch at once."""
        bias = self.sketch_window.joint_bias(self.text_bias, self.config.coarse_tokens)
        turn = self._turn(0, self.config.text_length + self.config.coarse_tokens)
        return Path(bias, turn, self.sketch_window.local)

    def causal_path(self, tokens: int) -> Path:
        """Of a prompt and cells that see only what comes before them, `tokens` in all."""
        return Path(causal_bias(tokens, device=self.text_bias.device), self._turn(0, tokens), None)

    def detail_path(self, stage: int) -> Path:
        """Of a stage of details."""
        window, (rows, columns) = self._fine_window(stage), self.config.grids[stage - 1]
        bias = window.joint_bias(self.text_bias, rows * columns)
        return Path(bias, self._turn(0, self.config.text_length + rows * columns), window.local)

    def pass_block(self, number: int, x: Tensor, path: Path) -> Tensor:
        """[b, tokens, hidden] -> the same, through the block of that number."""
        block = self.blocks[str(number)]
        assert isinstance(block, Block)
        return block.transform(x, path.bias, path.turn, path.local)

    def through_details(self, x: Tensor, stage: int) -> Tensor:
        """[b, t + c, hidden] -> the same, through all blocks that details pass."""
        return self._through(x, self.detail_path(stage), self.config.fine_layers)

    def read_sketch(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the cells [b, n, codes], and the prompt's last hidden state [b, hidden], from the last block's."""
        x, text = self.norm(x), self.config.text_length
        return self.coarse_head(x[:, text:]), x[:, text - 1]

    def read_details(self, x: Tensor) -> Tensor:
        """[b, t + c, hidden] of the last block that details pass -> [b, c, 4, codes]."""
        return self._split_cells(self.fine_head(self.norm(x[:, self.config.text_length :])))

    def _through(self, x: Tensor, path: Path, blocks: int) -> Tensor:
        for number in range(blocks):
            x = self.pass_block(number, x, path)
        return x

    def _turn(self, first: int, tokens: int) -> Rotation | None:
        return self._turn_at(torch.arange(first, first + tokens, device=self.text_bias.device))

    def _turn_at(self, positions: Tensor) -> Rotation | None:
        theta = self.config.rope_theta
        return rotation(positions, self.config.head_dim, theta) if theta else None

    def _embed_text(self, text_ids: Tensor) -> Tensor:
        return self.text_embedding(text_ids) + self.text_position

    def _fine_window(self, stage: int) -> Window:
        window = self.fine_windows[stage - 1]
        assert isinstance(window, Window)
        return window

    def _cell_position(self, stage: int) -> Tensor:
        """Of the cells that a stage starts from, [c, hidden]; the sketch, stage 0, starts from its own."""
        rows = self.row_position if stage < 2 else self.detail_rows[stage - 2]
        columns = self.column_position if stage < 2 else self.detail_columns[stage - 2]
        return (rows[:, None] + columns[None]).flatten(0, 1)

    def _coarse_place(self) -> Tensor:
        return self._cell_position(0) + self.stage_embedding[0]

    def _embed_coarse(self, coarse_ids: Tensor) -> Tensor:
        return self.code_embedding(coarse_ids) + self._coarse_place()[: coarse_ids.shape[1]]

    def _embed_fine(self, cell_ids: Tensor, fine_ids: Tensor, stage: int) -> Tensor:
        cell = (self.code_embedding(fine_ids) * self.cell_scale).sum(2) * FINE_PER_CELL**-0.5
        return cell + self.sketch_embedding(cell_ids) + self._cell_position(stage) + self.stage_embedding[stage]

    def _split_cells(self, logits: Tensor) -> Tensor:
        return logits.unflatten(-1, (FINE_PER_CELL, -1))
