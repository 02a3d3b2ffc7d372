"""Tensor parallel: the ranks of a group each hold a part of every large matrix of a model.

`split_layers` changes a whole model, or some layers of one, in place; the model's own code goes on as before. What a head
or a feed-forward channel needs lies on one rank (`ColumnLinear`), the ranks' outputs are added up (`RowLinear`), and a
vocabulary is cut by its entries. What is small stays whole on every rank, and sees the same numbers there.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.parallel.collectives import Group, add, all_reduce, share
from model.parallel.cuts import Cut, cut_parameter, own_range
from model.transformer.decoder import Decoder
from model.transformer.embeddings import CodeLoss, FactoredHead, FactoredTable
from model.transformer.layers import Attention, RMSNorm, SwiGLU
from model.transformer.plan import Plan


@dataclass(frozen=True)
class TensorRanks:
    """The ranks that share each layer."""

    group: Group
    rank: int
    """This one's place in the group."""
    ranks: int

    def cut(self, whole: Tensor, axis: int, *sections: int) -> nn.Parameter:
        """This rank's piece."""
        return cut_parameter(whole, Cut(axis, sections or (whole.shape[axis],)), self.rank, self.ranks)

    def entries(self, size: int) -> range:
        """Those of `size` entries that are this rank's."""
        return own_range(size, self.rank, self.ranks)


class ColumnLinear(nn.Module):
    """A linear layer of which each rank has some outputs: [..., inputs] -> [..., outputs of this rank]."""

    def __init__(self, weight: nn.Parameter, ranks: TensorRanks, place: str):
        super().__init__()
        self.weight, self._ranks, self._place = weight, ranks, place

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(share(x, self._ranks.group, self._place), self.weight)


class RowLinear(nn.Module):
    """A linear layer of which each rank has some inputs: [..., inputs of this rank] -> [..., outputs]."""

    def __init__(self, weight: nn.Parameter, ranks: TensorRanks, place: str):
        super().__init__()
        self.weight, self._ranks, self._place = weight, ranks, place

    def forward(self, x: Tensor) -> Tensor:
        return add(F.linear(x, self.weight), self._ranks.group, self._place)


class HeadNorm(RMSNorm):
    """The norm of heads of which each rank has some: one weight for all, so that its gradients add up."""

    def __init__(self, norm: RMSNorm, ranks: TensorRanks, place: str):
        super().__init__(len(norm.weight), norm.eps)
        self.weight, self._ranks, self._place = norm.weight, ranks, place

    def gain(self) -> Tensor:
        return share(self.weight, self._ranks.group, self._place)


class SharedNorm(RMSNorm):
    """A norm of whose outputs each rank computes with all, but a part."""

    def __init__(self, norm: RMSNorm, ranks: TensorRanks, place: str):
        super().__init__(len(norm.weight), norm.eps)
        self.weight, self._ranks, self._place = norm.weight, ranks, place

    def forward(self, x: Tensor) -> Tensor:
        return share(super().forward(x), self._ranks.group, self._place)


class SplitEmbedding(nn.Module):
    """An embedding of which each rank has some entries: int64 [...] -> [..., hidden]."""

    def __init__(self, embedding: nn.Embedding, ranks: TensorRanks):
        super().__init__()
        self._ranks, self._entries = ranks, ranks.entries(embedding.num_embeddings)
        self.weight = ranks.cut(embedding.weight, 0)

    def forward(self, ids: Tensor) -> Tensor:
        return look_up(ids, self.weight, self._entries, self._ranks, "embedding")


class SplitTable(FactoredTable):
    """A factored table of which each rank has some codes, and the levels whole."""

    def __init__(self, table: FactoredTable, ranks: TensorRanks):
        nn.Module.__init__(self)
        codes = len(table.own) - table.extra
        self._ranks, self._entries = ranks, ranks.entries(codes + table.extra)
        # Codes beyond the last one have no levels: a row of zeros stands in for theirs.
        none = torch.full((table.extra, table.rows_of_levels.shape[1]), len(table.levels))
        rows = torch.cat([table.rows_of_levels.cpu(), none])[self._entries.start : self._entries.stop]
        self.register_buffer("rows_of_levels", rows.to(table.own.device), persistent=False)
        self.own, self.levels = ranks.cut(table.own, 0), table.levels

    def weight(self) -> Tensor:
        """This rank's rows of the table."""
        levels = F.pad(share(self.levels, self._ranks.group, "table levels"), (0, 0, 0, 1))
        return self.own + levels[self.rows_of_levels].sum(1)

    def forward(self, ids: Tensor) -> Tensor:
        return look_up(ids, self.weight(), self._entries, self._ranks, "table")


class SplitHead(nn.Module):
    """A factored head of which each rank has the logits of some codes: [b, n, hidden] -> [b, n, outputs * codes here]."""

    def __init__(self, head: FactoredHead, ranks: TensorRanks):
        super().__init__()
        tables = [table for table in head.tables if isinstance(table, FactoredTable)]
        self._ranks = ranks
        self.tables = nn.ModuleList(SplitTable(table, ranks) for table in tables)
        self.bias = ranks.cut(head.bias, 0, *(len(table.own) for table in tables))

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.cat([table.weight() for table in self.tables])  # pyright: ignore[reportCallIssue]
        return F.linear(share(x, self._ranks.group, "head"), weight, self.bias)


class SplitLoss(CodeLoss):
    """Cross-entropy of logits of which each rank has some entries; see `CodeLoss`. `vocabulary` counts them all."""

    def __init__(self, vocabulary: int, ranks: TensorRanks):
        super().__init__()
        self._vocabulary, self._ranks, self._entries = vocabulary, ranks, ranks.entries(vocabulary)

    def forward(self, logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Mean in nats, in fp32: [tokens, entries of this rank] and int64 [tokens]."""
        logits, group = logits.float(), self._ranks.group
        highest = all_reduce(logits.amax(-1), group, "loss maximum", largest=True)
        normaliser = add((logits - highest[:, None]).exp().sum(-1), group, "loss normaliser").log() + highest
        local, here = _local(targets, self._entries)
        known = logits.gather(-1, local[:, None])[:, 0] * here
        losses = normaliser - add(known, group, "loss target")
        if label_smoothing:
            mean = add(logits.sum(-1), group, "loss smoothing") / self._vocabulary
            losses = (1 - label_smoothing) * losses + label_smoothing * (normaliser - mean)
        return losses.mean()


def look_up(ids: Tensor, weight: Tensor, entries: range, ranks: TensorRanks, place: str) -> Tensor:
    """The rows of a table whose `entries` this rank has as `weight`, the others' from where they are."""
    local, here = _local(ids, entries)
    return add(F.embedding(local, weight) * here[..., None].to(weight.dtype), ranks.group, place)


def _local(ids: Tensor, entries: range) -> tuple[Tensor, Tensor]:
    """Each id's place among this rank's entries (any, where it has none), and whether it is one of them."""
    here = (ids >= entries.start) & (ids < entries.stop)
    return (ids - entries.start).clamp(0, max(len(entries) - 1, 0)), here


def split_layers(model: nn.Module, ranks: TensorRanks, codes: int) -> None:
    """Leave of every layer of `model` what this rank has. `codes` is the size of the vocabulary that it predicts.

    The number of heads, of key and value heads and of feed-forward channels must be multiples of the ranks (`layout.py`
    refuses what is not).
    """
    for name, module in list(model.named_children()):
        match module:
            case Attention():
                _split_attention(module, ranks)
            case SwiGLU():
                _split_feed_forward(module, ranks)
            case FactoredHead():
                setattr(model, name, SplitHead(module, ranks))
            case FactoredTable():
                setattr(model, name, SplitTable(module, ranks))
            case nn.Embedding():
                setattr(model, name, SplitEmbedding(module, ranks))
            case CodeLoss():
                setattr(model, name, SplitLoss(codes, ranks))
            case Plan():
                pass  # a few small matrices: what they cost is less than what telling each other would
            case _:
                split_layers(module, ranks, codes)


def split_decoder(decoder: Decoder, ranks: TensorRanks) -> None:
    """`split_layers` of a plain decoder, with its head."""
    split_layers(decoder, ranks, decoder.config.vocab_size)
    if decoder.head is not None:
        _replace(decoder, "head", ColumnLinear(ranks.cut(decoder.head.weight, 0), ranks, "head"))
    elif decoder.config.tie_word_embeddings and hasattr(decoder, "norm"):
        decoder.norm = SharedNorm(decoder.norm, ranks, "head")


def _split_attention(attention: Attention, ranks: TensorRanks) -> None:
    queries, keys = attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim
    weight = ranks.cut(attention.qkv_proj.weight, 0, queries, keys, keys)
    _replace(attention, "qkv_proj", ColumnLinear(weight, ranks, "attention input"))
    _replace(attention, "o_proj", RowLinear(ranks.cut(attention.o_proj.weight, 1), ranks, "attention output"))
    attention.q_norm = HeadNorm(attention.q_norm, ranks, "query norm")
    attention.k_norm = HeadNorm(attention.k_norm, ranks, "key norm")
    attention.heads //= ranks.ranks
    attention.kv_heads //= ranks.ranks


def _split_feed_forward(layer: SwiGLU, ranks: TensorRanks) -> None:
    inner = len(layer.gate_up_proj.weight) // 2
    weight = ranks.cut(layer.gate_up_proj.weight, 0, inner, inner)
    _replace(layer, "gate_up_proj", ColumnLinear(weight, ranks, "feed-forward input"))
    _replace(layer, "down_proj", RowLinear(ranks.cut(layer.down_proj.weight, 1), ranks, "feed-forward output"))


def _replace(module: nn.Module, name: str, layer: nn.Module) -> None:
    """Another class in the place of a layer, which the module's own type does not know."""
    setattr(module, name, layer)
