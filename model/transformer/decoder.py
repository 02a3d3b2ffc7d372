"""The plain decoder: one causal stream of tokens, whatever they stand for. The shape of Qwen3 and Emu3.5."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.transformer.config import DecoderConfig
from model.transformer.layers import Block, RMSNorm
from model.transformer.patterns import causal_bias
from model.transformer.rope import rotation


class Decoder(nn.Module):
    """Token embedding, pre-norm blocks with rotary positions, and a head over the same vocabulary."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = None if config.tie_word_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, ids: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits of each token's successor, and the keys and values for the next call.

        `ids` int64 [batch, tokens]; `past` [layers, 2, batch, kv_heads, past, head_dim] of the tokens before them.
        Returns [batch, tokens, vocab_size] and the keys and values of all tokens so far, shaped as `past`. Raises
        `ValueError` beyond `max_position_embeddings`.
        """
        known, tokens = 0 if past is None else past.shape[-2], ids.shape[1]
        if known + tokens > self.config.max_position_embeddings:
            raise ValueError(
                f"{known + tokens} tokens, more than max_position_embeddings {self.config.max_position_embeddings}"
            )
        turn = rotation(
            torch.arange(known, known + tokens, device=ids.device), self.config.head_dim, self.config.rope_theta
        )
        bias = None if tokens == 1 else causal_bias(tokens, known, ids.device)
        x, presents = self.embedding(ids), []
        for index, block in enumerate(self.blocks):
            x, present = block(x, bias, None if past is None else past[index], turn)
            presents.append(present)
        weight = self.embedding.weight if self.head is None else self.head.weight
        logits = F.linear(self.norm(x), weight)
        present = torch.stack(presents)
        return logits, present if past is None else torch.cat([past, present], -2)
