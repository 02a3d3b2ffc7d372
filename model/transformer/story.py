"""A generator for long interleaved contexts: earlier scenes, and requests that refer to one of them.

Each earlier scene (a caption, then its sketch) is encoded by itself, so the context costs what its scenes cost, its keys
and values can be kept, and positions are those inside a scene. A request's blank sketch, all cells in one parallel pass,
looks at all earlier blocks from the second layer on: before that its cells know nothing of the request. The gate decides
which captions and which images each head's query block looks at; without one (`gated` false) it looks at all.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.transformer.embeddings import FactoredHead, FactoredTable
from model.transformer.gate import (
    GatedInput,
    GateKeys,
    ModalityGate,
    block_means,
    dense_attention,
    gated_attention,
    gated_attention_masked,
    open_blocks,
)
from model.transformer.layers import Block, RMSNorm, initialise
from model.transformer.story_config import StoryConfig

FIRST_LOOKING_LAYER = 1
"""Blank cells have not read their request before this layer."""
_POSITION_STD = 0.1
"""Of cells' places, beside 0.02 of what is in them: a cell finds the same cell of another sketch by its place."""
_SHARPNESS = 2.0
"""Initial weight of the looking queries' norm. With 1, normed queries and keys score sqrt(head_dim) at most, which cannot
single out one of 2,080 tokens."""


class LayerContext(NamedTuple):
    """What one layer keeps of the earlier scenes: m tokens in k blocks, a caption and an image for each scene."""

    keys: Tensor
    """[stories, heads, m, head_dim]."""
    values: Tensor
    blocks: int
    """k."""
    gate: GateKeys | None
    """What the layer's gate knows of them; None without one."""


Attend = Callable[[int, GatedInput, LayerContext], Tensor]
"""Attention of a looking layer, by its number among them: [s, heads, r * c, head_dim]."""


class StoryGenerator(nn.Module):
    """Shapes below use s = stories, n = scenes of a story, r = requests of a story, t = text_length, c = cells."""

    def __init__(self, config: StoryConfig):
        super().__init__()
        self.config = config
        hidden, (rows, columns) = config.hidden_size, config.coarse_grid
        self.text_embedding = nn.Embedding(config.text_vocabulary, hidden)
        self.text_position = nn.Parameter(torch.randn(config.text_length, hidden) * 0.02)
        self.row_position = nn.Parameter(torch.randn(rows, hidden) * _POSITION_STD)
        self.column_position = nn.Parameter(torch.randn(columns, hidden) * _POSITION_STD)
        self.blank = nn.Parameter(torch.randn(hidden) * 0.02)
        self.code_embedding = FactoredTable(config.visual_levels, hidden)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        looking = range(FIRST_LOOKING_LAYER, config.num_hidden_layers) if config.gated else ()
        self.gates = nn.ModuleList(ModalityGate(config.num_attention_heads, config.head_dim) for _ in looking)
        self.norm = RMSNorm(hidden, config.rms_norm_eps)
        self.head = FactoredHead(config.visual_levels, hidden)
        initialise(self, self.decoder_blocks(), config.num_hidden_layers)
        for block in self.decoder_blocks()[FIRST_LOOKING_LAYER:]:
            nn.init.constant_(block.attention.q_norm.weight, _SHARPNESS)

    def decoder_blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def key_sizes(self, scenes: int) -> tuple[int, ...]:
        """Tokens of each earlier block."""
        return (self.config.text_length, self.config.cells) * scenes

    def context(self, captions: Tensor, sketches: Tensor) -> list[LayerContext]:
        """Encode earlier scenes, int64 [s, n, t] and [s, n, c]; an item for each layer that looks."""
        stories, scenes = captions.shape[:2]
        past = self._read(captions.flatten(0, 1))
        x = self.code_embedding(sketches.flatten(0, 1)) + self._cell_position()
        kept = []
        last = self.config.num_hidden_layers - 1
        for layer, (block, text) in enumerate(zip(self.decoder_blocks(), past, strict=True)):
            if layer < last:
                x, present = block(x, None, text)
            else:  # nothing reads a scene's last hidden states
                present = torch.stack(block.attention.project(block.attention_norm(x))[1:])
            if layer < FIRST_LOOKING_LAYER:
                continue
            both = torch.cat([text, present], -2).unflatten(1, (stories, scenes))  # [2, s, n, heads, t + c, head_dim]
            keys, values = both.transpose(2, 3).flatten(3, 4)
            means = torch.stack([part[0].mean(-2) for part in (text, present)], -2)  # [s * n, heads, 2, head_dim]
            means = means.unflatten(0, (stories, scenes)).transpose(1, 2).flatten(2, 3)
            kept.append(LayerContext(keys, values, 2 * scenes, self._gate(layer - FIRST_LOOKING_LAYER, means)))
        return kept

    def ask(
        self, context: list[LayerContext], requests: Tensor, gates: list[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Answer requests, int64 [s, r, t]: logits [s, r, c, codes], and the gates of each looking layer,
        [s, heads, r * query_blocks, k]. `gates` are used instead of the model's own, where given."""
        used = []

        def attend(layer: int, own: GatedInput, earlier: LayerContext) -> Tensor:
            opened = gates[layer] if gates is not None else self.open_gates(own.query, earlier)
            used.append(opened)
            look = gated_attention if self.config.gated or gates is not None else dense_attention
            return look(own._replace(gates=opened))

        return self._answer(context, requests, attend), used

    def gates_above(self, context: list[LayerContext], requests: Tensor, logit: float) -> list[Tensor]:
        """The gates that `ask` would use with another threshold: open above `logit`, in every looking layer."""
        used = []

        def attend(_: int, own: GatedInput, earlier: LayerContext) -> Tensor:
            logits = self.gate_logits(own.query, earlier)
            assert logits is not None, "there is no gate"
            used.append((logits > logit).to(own.query.dtype))
            return gated_attention(own._replace(gates=used[-1]))

        self._answer(context, requests, attend)
        return used

    def attention_inputs(self, context: list[LayerContext], requests: Tensor) -> list[GatedInput]:
        """What the attention of each looking layer gets in `ask`, for those who measure it."""
        inputs = []

        def attend(_: int, own: GatedInput, earlier: LayerContext) -> Tensor:
            inputs.append(own._replace(gates=self.open_gates(own.query, earlier)))
            return (gated_attention if self.config.gated else dense_attention)(inputs[-1])

        self._answer(context, requests, attend)
        return inputs

    def train_ask(self, context: list[LayerContext], requests: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The logits of `ask` through all scores, and each looking layer's alpha, [s, heads, r * query_blocks, k]; no
        alpha without a gate."""
        alphas = []

        def attend(_: int, own: GatedInput, earlier: LayerContext) -> Tensor:
            logits = self.gate_logits(own.query, earlier)
            if logits is None:
                return gated_attention_masked(own._replace(gates=self._all_open(own.query, earlier)))
            alphas.append(torch.sigmoid(logits.float()))
            return gated_attention_masked(own._replace(gates=open_blocks(alphas[-1])))

        return self._answer(context, requests, attend), alphas

    def _answer(self, context: list[LayerContext], requests: Tensor, attend: Attend) -> Tensor:
        stories, count = requests.shape[:2]
        past = self._read(requests.flatten(0, 1))
        x = (self.blank + self._cell_position()).expand(stories * count, -1, -1)
        for layer, (block, text) in enumerate(zip(self.decoder_blocks(), past, strict=True)):
            if layer < FIRST_LOOKING_LAYER:
                x, _ = block(x, None, text)
                continue
            earlier = context[layer - FIRST_LOOKING_LAYER]
            own = self._own_input(block, x, text, stories, earlier)
            mixed = attend(layer - FIRST_LOOKING_LAYER, own, earlier)
            mixed = mixed.unflatten(2, (count, -1)).permute(0, 2, 3, 1, 4).reshape(x.shape)
            x = x + block.attention.o_proj(mixed)
            x = x + block.mlp(block.mlp_norm(x))
        return self.head(self.norm(x)).unflatten(0, (stories, count))

    def _own_input(self, block: Block, x: Tensor, text: Tensor, stories: int, earlier: LayerContext) -> GatedInput:
        """The attention of [s * r, c, hidden] to its own text and cells, all gates still open."""
        query, key, value = block.attention.project(block.attention_norm(x))
        requests = len(x) // stories

        def by_story(part: Tensor) -> Tensor:
            return part if requests == 1 else part.unflatten(0, (stories, requests)).transpose(1, 2).flatten(2, 3)

        return GatedInput(
            query=by_story(query * self.config.head_dim**-0.5),
            earlier_keys=earlier.keys,
            earlier_values=earlier.values,
            own_keys=by_story(torch.cat([text[0], key], -2)),
            own_values=by_story(torch.cat([text[1], value], -2)),
            own_bias=None,
            gates=query.new_empty(0),
            key_sizes=self.key_sizes(earlier.blocks // 2),
            requests=requests,
        )

    def gate_logits(self, query: Tensor, earlier: LayerContext) -> Tensor | None:
        """Of scaled queries [s, heads, r * c, head_dim]: [s, heads, r * query_blocks, k]; None without a gate."""
        if earlier.gate is None:
            return None
        size = self.config.cells // self.config.query_blocks
        return earlier.gate.logits(block_means(query, (size,) * self._blocks_of(query)))

    def _gate(self, layer: int, key_means: Tensor) -> GateKeys | None:
        if not self.config.gated:
            return None
        gate = self.gates[layer]
        assert isinstance(gate, ModalityGate)
        return gate.prepare(key_means)

    def open_gates(self, query: Tensor, earlier: LayerContext) -> Tensor:
        """What the gate opens for scaled queries [s, heads, r * c, head_dim]: zeros and ones
        [s, heads, r * query_blocks, k]."""
        logits = self.gate_logits(query, earlier)
        return self._all_open(query, earlier) if logits is None else (logits > 0).to(query.dtype)

    def _all_open(self, query: Tensor, earlier: LayerContext) -> Tensor:
        shape = (*query.shape[:2], self._blocks_of(query), earlier.blocks)
        return query.new_ones(shape)

    def _blocks_of(self, query: Tensor) -> int:
        return query.shape[-2] // self.config.cells * self.config.query_blocks

    def _read(self, text_ids: Tensor) -> list[Tensor]:
        """Keys and values of a text, int64 [b, t], in every layer: [2, b, heads, t, head_dim]."""
        x, past = self.text_embedding(text_ids) + self.text_position, []
        for block in self.decoder_blocks():
            x, present = block(x, None)
            past.append(present)
        return past

    def _cell_position(self) -> Tensor:
        return (self.row_position[:, None] + self.column_position[None]).flatten(0, 1)
