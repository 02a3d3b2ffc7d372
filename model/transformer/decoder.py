"""The plain decoder: one causal stream of tokens, whatever they stand for. The shape of Qwen3 and Emu3.5."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UsageError
from model.transformer.config import DecoderConfig
from model.transformer.embeddings import CodeLoss
from model.transformer.layers import Block, RMSNorm
from model.transformer.part import WHOLE, Part
from model.transformer.patterns import causal_bias
from model.transformer.rope import Rotation, rotation


class Decoder(nn.Module):
    """Token embedding, pre-norm blocks with rotary positions, and a head over the same vocabulary."""

    def __init__(self, config: DecoderConfig, part: Part = WHOLE):
        """With a `part` it holds these layers alone, under the names that they have in the whole. A head that is tied has
        its weights in the stem."""
        super().__init__()
        self.config = config
        if part.stem:
            self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        numbers = part.layers(config.num_hidden_layers)
        self.blocks = nn.ModuleDict({str(number): Block(config) for number in numbers})
        if part.head:
            self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
            self.token_loss = CodeLoss()
        untied = part.head and not config.tie_word_embeddings
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False) if untied else None

    def decoder_blocks(self) -> list[Block]:
        return [block for block in self.blocks.values() if isinstance(block, Block)]

    def forward(self, ids: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits of each token's successor, and the keys and values for the next call.

        `ids` int64 [batch, tokens]; `past` [layers, 2, batch, kv_heads, past, head_dim] of the tokens before them.
        Returns [batch, tokens, vocab_size] and the keys and values of all tokens so far, shaped as `past`. Raises
        `UsageError` for no tokens, and beyond `max_position_embeddings`.
        """
        known, tokens = 0 if past is None else past.shape[-2], ids.shape[1]
        positions = self.config.max_position_embeddings
        if not ids.numel():
            raise UsageError(f"ids are {list(ids.shape)}: no token", fix="give each prompt one token at least")
        if known + tokens > positions:
            raise UsageError(
                f"{known + tokens} tokens, more than max_position_embeddings {positions}", fix="ask for fewer"
            )
        turn = self._turn(known, tokens, ids.device)
        bias = None if tokens == 1 else causal_bias(tokens, known, ids.device)
        x, presents = self.embedding(ids), []
        for index, block in enumerate(self.decoder_blocks()):
            x, present = block(x, bias, None if past is None else past[index], turn)
            presents.append(present)
        present = torch.stack(presents)
        return self.read(x), present if past is None else torch.cat([past, present], -2)

    def sequence_logits(self, ids: Tensor) -> Tensor:
        """Logits of each token's successor, for training: int64 [batch, tokens] -> [batch, tokens, vocab_size]; those of
        `forward`, with nothing kept."""
        return self.read(self.pass_blocks(ids))

    def pass_blocks(self, ids: Tensor) -> Tensor:
        """int64 [batch, tokens] -> [batch, tokens, hidden] of the last block."""
        x, turn = self.embedding(ids), self._turn(0, ids.shape[1], ids.device)
        for block in self.decoder_blocks():
            x = block.transform_causally(x, turn)
        return x

    def pass_block(self, number: int, x: Tensor) -> Tensor:
        """[batch, tokens, hidden] -> the same, through the block of that number."""
        block = self.blocks[str(number)]
        assert isinstance(block, Block)
        return block.transform_causally(x, self._turn(0, x.shape[1], x.device))

    def read(self, x: Tensor) -> Tensor:
        """[batch, tokens, hidden] of the last block -> logits."""
        x = self.norm(x)
        return F.linear(x, self.embedding.weight) if self.head is None else self.head(x)

    def _turn(self, first: int, tokens: int, device: torch.device) -> Rotation:
        positions = torch.arange(first, first + tokens, device=device)
        return rotation(positions, self.config.head_dim, self.config.rope_theta)
