"""The plain decoder, predicting the next token, in any layout."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from deepspeed.pipe import LayerSpec
from deepspeed.runtime.pipe.topology import ProcessTopology
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from common.errors import UsageError
from model.parallel.engine import Engine, EngineOptions, MakeOptimizer, PlainEngine, to_rank
from model.parallel.layout import Divisible, choose_layout
from model.parallel.pipeline import StagedEngine, Stages
from model.parallel.place import take_place
from model.parallel.tensor import SplitLoss, TensorRanks, split_decoder
from model.parallel.whole import load_whole
from model.transformer.config import DecoderConfig
from model.transformer.decoder import Decoder
from model.transformer.embeddings import CodeLoss
from model.transformer.layers import initialise
from model.transformer.part import HEAD, STEM, WHOLE, Part, one_block


@dataclass(frozen=True)
class Tokens:
    """Streams of tokens: int64 [batch, tokens + 1], of which each but the last is asked for its successor."""

    ids: Tensor

    def to(self, device: torch.device) -> "Tokens":
        return Tokens(self.ids.to(device))

    @property
    def shown(self) -> Tensor:
        return self.ids[:, :-1]

    @property
    def asked(self) -> Tensor:
        return self.ids[:, 1:]


def decoder_engine(
    options: EngineOptions, config: DecoderConfig, make: MakeOptimizer, start: Mapping[str, Tensor] | None = None
) -> Engine[Tokens]:
    """`start` is the state dict of a whole decoder to start from; None: from the seed. All ranks call it.

    Raises `UsageError` for a layout that the shape does not divide into, and for stages of a decoder whose head is tied to its
    embedding: they would lie on two of them.
    """
    layout = options.layout
    sizes = Divisible.of(config, options.micro_batch * options.accumulation * layout.data)
    choose_layout(layout.tensor, layout.pipeline, layout.ranks, sizes, where="the decoder's layout")
    place = take_place(options.layout)
    if options.layout.pipeline > 1:
        if config.tie_word_embeddings:
            raise UsageError(
                "a head that is tied to the embedding does not go with pipeline parallel",
                where=str(options.layout),
                fix="use pipeline 1, or a shape with tie_word_embeddings=false",
            )
        stages = DecoderStages(config, options, place.topology, place.tensor)
        if start is not None:
            load_whole(stages.own_parts(), start, place.tensor)
        return StagedEngine(replace(place, grid=stages.grid), stages, options, make, feed=_feed, names=_names)
    decoder = _part(config, options.seed, WHOLE, place.tensor)
    if start is not None:
        load_whole([decoder], start, place.tensor)
    to_rank(decoder, options)
    model = _Model(decoder, checkpointing=options.checkpointing, compiled=options.compiled)
    return PlainEngine(place, [decoder], model, options, make(model))


def next_token_loss(logits: Tensor, asked: Tensor, loss: CodeLoss) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean cross-entropy (nats a token): [batch, tokens, entries] and int64 [batch, tokens]."""
    value = loss(logits.flatten(0, 1), asked.flatten())
    return value, {"token_loss": value}


def _part(config: DecoderConfig, seed: int, part: Part, ranks: TensorRanks | None) -> Decoder:
    """Some layers, from a seed of their own."""
    number = part.first if part.blocks else config.num_hidden_layers + part.head
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed * 1_000_003 + number)
        decoder = Decoder(config, part)
        initialise(decoder, decoder.decoder_blocks(), config.num_hidden_layers)
    if ranks is not None:
        split_decoder(decoder, ranks)
    return decoder.train()


class _Model(nn.Module):
    """A micro-batch's loss."""

    def __init__(self, decoder: Decoder, *, checkpointing: bool, compiled: bool):
        super().__init__()
        self.decoder, self._checkpointing = decoder, checkpointing
        # Logits are the largest tensor of a step: compiled, the loss passes over them fewer times.
        self._ask = torch.compile(self._read, dynamic=False) if compiled else self._read

    def forward(self, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
        decoder = self.decoder
        if not self._checkpointing:
            return self._ask(decoder.pass_blocks(tokens.shown), tokens.asked)
        x = decoder.embedding(tokens.shown)
        for number in range(decoder.config.num_hidden_layers):
            x = checkpoint(decoder.pass_block, number, x, use_reentrant=False)
        return self._ask(x, tokens.asked)

    def _read(self, x: Tensor, asked: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return next_token_loss(self.decoder.read(x), asked, self.decoder.token_loss)


class StemLayer(nn.Module):
    """Embeds tokens."""

    def __init__(self, config: DecoderConfig, seed: int, ranks: TensorRanks | None):
        super().__init__()
        self.part = _part(config, seed, STEM, ranks)

    def forward(self, ids: Tensor) -> Tensor:
        return self.part.embedding(ids)


class BlockLayer(nn.Module):
    """One block."""

    def __init__(self, config: DecoderConfig, seed: int, ranks: TensorRanks | None, number: int):
        super().__init__()
        self.number, self.part = number, _part(config, seed, one_block(number), ranks)

    def forward(self, x: Tensor) -> Tensor:
        return self.part.pass_block(self.number, x)


class HeadLayer(nn.Module):
    """Logits."""

    def __init__(self, config: DecoderConfig, seed: int, ranks: TensorRanks | None):
        super().__init__()
        self.part = _part(config, seed, HEAD, ranks)

    def forward(self, x: Tensor) -> Tensor:
        return self.part.read(x)


class DecoderStages(Stages):
    """The stages of this process."""

    def __init__(
        self, config: DecoderConfig, options: EngineOptions, topology: ProcessTopology, ranks: TensorRanks | None
    ):
        common = (config, options.seed, ranks)
        blocks = [LayerSpec(BlockLayer, *common, number) for number in range(config.num_hidden_layers)]
        layers = [LayerSpec(StemLayer, *common), *blocks, LayerSpec(HeadLayer, *common)]
        super().__init__(layers, topology, checkpointing=options.checkpointing)
        self.token_loss = CodeLoss() if ranks is None else SplitLoss(config.vocab_size, ranks)

    def losses(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return next_token_loss(outputs, labels, self.token_loss)


def _feed(tokens: Tokens) -> tuple[Any, Any]:
    return tokens.shown, tokens.asked


def _names(tokens: Tokens) -> list[str]:
    return ["token_loss"]
