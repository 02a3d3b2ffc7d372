"""How a plan is drawn: code after code, each given the prompt and the codes before it.

A neural autoregressive distribution estimator (Larochelle and Murray 2011): the codes so far add up in one hidden
vector, which is all that a further code costs, so that a whole plan takes a fraction of one pass over the image. Its
tables are those of the codes' levels, as in `embeddings.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.transformer.embeddings import level_indicators

_WIDTH = 256
_CERTAIN = 1e4


class PlanPrior(nn.Module):
    """Shapes use b = batch, p = plan tokens, l = levels of all channels."""

    indicators: Tensor
    """[codes, l]: ones at the levels of a code."""

    def __init__(self, hidden_size: int, tokens: int, levels: tuple[int, ...]):
        super().__init__()
        self.tokens = tokens
        self.register_buffer("indicators", level_indicators(levels), persistent=False)
        self.prompt = nn.Linear(hidden_size, _WIDTH)
        self.place = nn.Parameter(torch.zeros(tokens, _WIDTH))
        self.settled = nn.Parameter(torch.randn(tokens, sum(levels), _WIDTH) * 0.1)
        self.heads = nn.Parameter(torch.randn(tokens, _WIDTH, sum(levels)) * 0.5 * _WIDTH**-0.5)
        self.bias = nn.Parameter(torch.zeros(tokens, sum(levels)))

    @property
    def noise_shape(self) -> tuple[int, int]:
        """What `draw` asks for, for one image: a number for each level of each token."""
        return self.tokens, self.indicators.shape[1]

    def logits(self, last: Tensor, codes: Tensor) -> Tensor:
        """Of every code given the true ones before it: [b, hidden] and int64 [b, p] -> [b, p, codes]."""
        added = torch.einsum("bpl,plw->bpw", F.embedding(codes, self.indicators), self.settled)
        before = F.pad(added.cumsum(1)[:, :-1], (0, 0, 1, 0))
        hidden = F.relu(self.prompt(last)[:, None] + before + self.place)
        return (torch.einsum("bpw,pwl->bpl", hidden, self.heads) + self.bias) @ self.indicators.T

    def draw(self, last: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Settle one code after another: [b, hidden] and [b, p, l] -> int64 [b, p], and `logits` of them [b, p, codes].

        `noise` is Gumbel noise times the temperature. A code's logit is the sum of its levels' logits, so noise on
        these draws the code exactly (the Gumbel-max identity); zeros take the most likely code.
        """
        # Few and plain operators: exported, each costs as much to start as it does to compute. The places' part of the
        # hidden state rides along with the levels that a code settles, of which every code has as many.
        noises = (noise + self.bias).flatten(1).split(self.indicators.shape[1], 1)
        steps = (self.place[1:] - self.place[:-1])[:, None] / self.indicators[0].sum()
        settled = self.settled[:-1] + steps
        state, drawn = self.prompt(last) + self.place[0], []
        for token in range(self.tokens):
            levels = torch.addmm(noises[token], F.relu(state), self.heads[token])
            drawn.append(F.embedding((levels @ self.indicators.T).argmax(-1), self.indicators))
            if token < self.tokens - 1:
                state = torch.addmm(state, drawn[-1], settled[token])
        codes = (torch.cat(drawn, 1).unflatten(1, noise.shape[1:]) @ self.indicators.T).argmax(-1)
        return codes, self.logits(last, codes)

    def certain(self, codes: Tensor) -> Tensor:
        """Noise under which `draw` settles int64 `codes` [b, p] whatever the logits are: [b, p, l]."""
        return _CERTAIN * F.embedding(codes, self.indicators)
