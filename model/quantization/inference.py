"""The modules that become the graphs, with everything precomputed that does not depend on the input."""

import copy

import torch
from torch import Tensor, nn

from model.tokenizers.visual import VisualTokenizer
from model.transformer.embeddings import FactoredHead, FactoredTable
from model.transformer.model import Generator


def without_plan(generator: Generator) -> Generator:
    """A copy that knows of no plan: what draws one cell after another needs none."""
    bare = copy.deepcopy(generator)
    bare.config, bare.plan = generator.config.model_copy(update={"plan_tokens": 0}), None
    return bare


@torch.no_grad()
def with_plain_tables(generator: Generator) -> Generator:
    """A copy in which each factored table and head is the plain one that it adds up to."""
    plain = copy.deepcopy(generator).eval()
    for name, module in list(plain.named_children()):
        if isinstance(module, FactoredTable):
            setattr(plain, name, nn.Embedding.from_pretrained(module.weight().clone()))
        elif isinstance(module, FactoredHead):
            setattr(plain, name, _linear(module))
    return plain


def _linear(head: FactoredHead) -> nn.Linear:
    weight = torch.cat([table.weight() for table in head.tables if isinstance(table, FactoredTable)])
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight.copy_(weight)
    linear.bias.copy_(head.bias)
    return linear


class PrefillGraph(nn.Module):
    """Reads a prompt and, for a model with plans, draws one: what is drawn is asked for by noise alone."""

    def __init__(self, generator: Generator):
        super().__init__()
        self.generator = generator

    def forward(self, text_ids: Tensor, plan_noise: Tensor | None = None) -> tuple[Tensor, ...]:
        past, last = self.generator.prefill(text_ids)
        if self.generator.plan is None or plan_noise is None:
            return (past,)
        return past, *self.generator.plan.prior.draw(last, plan_noise)


class CoarseGraph(nn.Module):
    def __init__(self, generator: Generator):
        super().__init__()
        self.generator = generator

    def forward(self, past: Tensor, coarse_ids: Tensor, plan_ids: Tensor | None = None) -> Tensor:
        return self.generator.coarse_logits(past, coarse_ids, plan_ids)


class NextGraph(nn.Module):
    """The next cell with the cache, for the autoregressive baselines."""

    def __init__(self, generator: Generator):
        super().__init__()
        self.generator = generator

    def forward(self, past: Tensor, previous_ids: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        return self.generator.next_logits(past, previous_ids, first)


class SequenceGraph(nn.Module):
    """The next cell without a cache, for the naive baseline."""

    def __init__(self, generator: Generator):
        super().__init__()
        self.generator = generator

    def forward(self, text_ids: Tensor, previous_ids: Tensor) -> Tensor:
        return self.generator.sequence_logits(text_ids, previous_ids)[:, -1]


class FineGraph(nn.Module):
    """One stage of details; `coarse_ids` is the grid before it."""

    def __init__(self, generator: Generator, stage: int):
        super().__init__()
        self.generator, self.stage = generator, stage

    def forward(self, past: Tensor, coarse_ids: Tensor, fine_ids: Tensor, plan_ids: Tensor | None = None) -> Tensor:
        return self.generator.fine_logits(past, coarse_ids, fine_ids, plan_ids, self.stage)


class _WholeNorm(nn.Module):
    """A `GroupNorm` of one group in nine operators; exported by itself it becomes two dozen, most of them about shapes."""

    def __init__(self, norm: nn.GroupNorm):
        super().__init__()
        assert norm.num_groups == 1
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, rows, columns] -> the same."""
        centred = x - x.mean((1, 2, 3), keepdim=True)
        deviation = torch.sqrt((centred * centred).mean((1, 2, 3), keepdim=True) + self.eps)
        return centred * (self.weight[:, None, None] / deviation) + self.bias[:, None, None]


def _replace_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.GroupNorm):
            setattr(module, name, _WholeNorm(child))
        else:
            _replace_norms(child)


class ImageDecoderGraph(nn.Module):
    """Codes int64 [batch, rows, columns] to pixels uint8 [batch, height, width, 3]."""

    values: Tensor

    def __init__(self, visual: VisualTokenizer):
        super().__init__()
        self.decoder = copy.deepcopy(visual.decoder)
        _replace_norms(self.decoder)
        # A lookup in a table of all codes is one operator; taking codes apart is a dozen on integers.
        self.register_buffer("values", visual.quantizer.to_values(torch.arange(visual.config.vocabulary)))

    def forward(self, codes: Tensor) -> Tensor:
        latents = nn.functional.embedding(codes, self.values).movedim(-1, 1)
        pixels = (self.decoder(latents).clamp(-1, 1) + 1) * 127.5
        return pixels.round().to(torch.uint8).permute(0, 2, 3, 1)
