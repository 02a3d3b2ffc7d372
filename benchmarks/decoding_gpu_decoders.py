"""The ways to draw that `decoding_gpu` times. Tokens are drawn on the device that the logits lie on.

The parts are those of a `TorchSession`, eager or `compiled`. The loop of `model.decoding` draws in numpy: of an image of 4,096
codes it is handed 250 MB of logits, which on a GPU takes longer than to compute them; it is a row of its own.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.decoding.loop import DecodingOptions
from model.transformer.model import Generator
from model.transformer.patterns import MASKED_SCORE
from model.transformer.plan import FINE_PER_CELL
from model.transformer.rope import rotation
from model.transformer.session import TorchSession


class DeviceDecoder:
    """Progressive decoding, a pass over the sketch and one for each stage of details, and next-token decoding of the sketch.

    What a compiled part returns is copied or used up before the next part is called: with CUDA graphs it lies where the
    next one writes.
    """

    def __init__(self, session: TorchSession, options: DecodingOptions):
        """`options` give the temperatures, and whether there are previews; the details are the most likely ones."""
        self._session, self._generator, self._options = session, session.generator, options

    @torch.inference_mode()
    def progressive(self, text_ids: Tensor) -> Iterator[np.ndarray]:
        """int64 [batch, text_length] -> pixels uint8 [batch, height, width, 3] of each stage that is shown."""
        past, last = self._read(text_ids)
        plan, cells = self._plan(last), self._generator.config.coarse_tokens
        unknown = torch.full((len(text_ids), cells), self._session.visual_vocabulary, device=past.device)
        logits = self._generator.coarse_logits(past, unknown, plan)
        yield from self._grow(past, drawn(logits, self._options.temperature), plan, previews=self._options.previews)

    @torch.inference_mode()
    def next_token(self, cells: "NextCells", text_ids: Tensor) -> Iterator[np.ndarray]:
        """The same cell by cell, without previews. The details get a plan of zeros: the compiled pass is that of
        `progressive`, in which a plan is one small product."""
        past, _ = self._read(text_ids)
        sketch, plan = cells.continued(past, self._options.temperature), self._generator.plan
        nothing = None if plan is None else sketch.new_zeros(len(text_ids), plan.tokens)
        yield from self._grow(past, sketch, nothing, previews=False)

    def _read(self, text_ids: Tensor) -> tuple[Tensor, Tensor]:
        past, last = self._generator.prefill(text_ids)
        return past.clone(), last.clone()

    def _plan(self, last: Tensor) -> Tensor | None:
        if self._generator.plan is None:
            return None
        prior = self._generator.plan.prior
        noise = gumbel((len(last), *prior.noise_shape), last.device) * self._options.plan_temperature
        return prior.draw(last, noise.to(last.dtype))[0].clone()

    def _grow(self, past: Tensor, sketch: Tensor, plan: Tensor | None, *, previews: bool) -> Iterator[np.ndarray]:
        grids, grid = self._generator.config.grids, sketch.view(-1, *self._generator.config.coarse_grid)
        for stage in range(1, len(grids)):
            if previews:
                yield self._pixels(grid)
            cells = grid.flatten(1)
            unknown = cells.new_full((*cells.shape, FINE_PER_CELL), self._session.visual_vocabulary)
            blocks = self._generator.fine_logits(past, cells, unknown, plan, stage).argmax(-1)
            grid = blocks.view(-1, *grids[stage - 1], 2, 2).transpose(2, 3).reshape(-1, *grids[stage])
        yield self._pixels(grid)

    def _pixels(self, grid: Tensor) -> np.ndarray:
        assert self._session.image_decoder is not None, "what is timed ends with pixels"
        pixels = self._session.image_decoder.decode(grid)
        return ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


class NextCells(nn.Module):
    """`Generator.next_logits` with a cache of the whole sketch's size, which a CUDA graph can be made of: all of it is
    attended to, and what is not known yet is masked. Shapes as there."""

    cache: Tensor
    places: Tensor

    def __init__(self, generator: Generator, batch: int, *, compiled: bool):
        super().__init__()
        config, weight = generator.config, generator.text_position
        self.generator, tokens = generator, config.text_length + config.coarse_tokens
        shape = (config.num_hidden_layers, 2, batch, config.num_key_value_heads, tokens, config.head_dim)
        self.register_buffer("cache", torch.zeros(shape, device=weight.device, dtype=weight.dtype))
        self.register_buffer("places", torch.arange(tokens, device=weight.device))
        mode = "reduce-overhead" if weight.is_cuda else None
        self.next = torch.compile(self._next, dynamic=False, mode=mode) if compiled else self._next

    def continued(self, past: Tensor, temperature: float) -> Tensor:
        """A sketch after the prompts of `past`: int64 [batch, coarse_tokens]."""
        config = self.generator.config
        self.cache[..., : config.text_length, :] = past
        token = torch.full((past.shape[2], 1), config.visual_vocabulary, device=past.device)
        place, cells = torch.zeros(1, dtype=torch.int64, device=past.device), []
        for _ in range(config.coarse_tokens):
            token = drawn(self.next(token, place), temperature)[:, None]
            cells.append(token)
            place = place + 1
        return torch.cat(cells, 1)

    def _next(self, previous: Tensor, place: Tensor) -> Tensor:
        """Logits of the cell of that number, [batch, codes], given the one before it, int64 [batch, 1], and the cache."""
        generator, config = self.generator, self.generator.config
        positions = (generator.row_position[:, None] + generator.column_position).flatten(0, 1)
        x = generator.code_embedding(previous) + F.embedding(place, positions + generator.stage_embedding[0])
        at = place + config.text_length
        bias = F.pad(torch.where(self.places < at, 0.0, MASKED_SCORE)[None], (0, 1))  # a cell sees itself
        turn = rotation(at, config.head_dim, config.rope_theta) if config.rope_theta else None
        presents = []
        for number, block in enumerate(generator.decoder_blocks()):
            x, present = block(x, bias, self.cache[number], turn)
            presents.append(present)
        self.cache.index_copy_(-2, at, torch.stack(presents))
        return generator.coarse_head(generator.norm(x))[:, 0]


def drawn(logits: Tensor, temperature: float) -> Tensor:
    """One token for each position, as `model.decoding.samplers.draw`: [..., codes] -> int64 [...]."""
    if temperature <= 0:
        return logits.argmax(-1)
    return (logits.float() / temperature + gumbel(logits.shape, logits.device)).argmax(-1)


def gumbel(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Standard Gumbel noise in fp32: the logarithm of an exponential variable, negated."""
    return -torch.empty(shape, device=device).exponential_().log()
