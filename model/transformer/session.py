"""The decode loop's `Session` on torch, for training and benchmarks."""

import copy
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from model.decoding.session import DrawImage, Prefix
from model.tokenizers.visual import VisualTokenizer
from model.transformer.decoder import Decoder
from model.transformer.model import Generator


class ImageDecoder(Protocol):
    """A visual tokenizer's decoding half."""

    def decode(self, codes: Tensor) -> Tensor:
        """int64 [batch, rows, columns] -> float [batch, 3, height, width] in -1..1."""
        ...


class TorchSession:
    """Runs a `Generator` and a visual tokenizer in eager torch; see `model.decoding.session.Session`.

    Both must lie on one device, in one type; whichever it is, numpy is given float32. Without a tokenizer it draws tokens
    alone.
    """

    def __init__(self, generator: Generator, image_decoder: ImageDecoder | None = None):
        self.generator, self.image_decoder = generator.eval(), image_decoder
        self.visual_vocabulary = generator.config.visual_vocabulary
        self.coarse_grid = generator.config.coarse_grid
        self.detail_stages = len(generator.config.grids) - 1
        self.draw_image: DrawImage | None = None
        self.plan_noise_shape = None if generator.plan is None else generator.plan.prior.noise_shape
        weight = next(generator.parameters())
        self._device, self._type = weight.device, weight.dtype

    def _tensor(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array).to(self._device)
        return tensor.to(self._type) if tensor.is_floating_point() else tensor

    @torch.inference_mode()
    def prefill(self, text_ids: np.ndarray, plan_noise: np.ndarray | None = None) -> Prefix:
        past, last = self.generator.prefill(self._tensor(text_ids))
        known = past.float().cpu().numpy()
        if self.generator.plan is None or plan_noise is None:
            return known, None, None
        # Both are copies by now: what a CUDA graph gives is overwritten when the next one runs.
        plan_ids, plan_logits = self.generator.plan.prior.draw(last.clone(), self._tensor(plan_noise))
        return known, plan_ids.cpu().numpy(), plan_logits.float().cpu().numpy()

    @torch.inference_mode()
    def coarse(self, past: np.ndarray, coarse_ids: np.ndarray, plan_ids: np.ndarray | None) -> np.ndarray:
        plan = None if plan_ids is None else self._tensor(plan_ids)
        return self.generator.coarse_logits(self._tensor(past), self._tensor(coarse_ids), plan).float().cpu().numpy()

    @torch.inference_mode()
    def fine(
        self,
        past: np.ndarray,
        coarse_ids: np.ndarray,
        fine_ids: np.ndarray,
        plan_ids: np.ndarray | None,
        stage: int = 1,
    ) -> np.ndarray:
        plan = None if plan_ids is None else self._tensor(plan_ids)
        known, ids, blocks = (self._tensor(array) for array in (past, coarse_ids, fine_ids))
        return self.generator.fine_logits(known, ids, blocks, plan, stage).float().cpu().numpy()

    @torch.inference_mode()
    def decode_image(self, codes: np.ndarray) -> np.ndarray:
        assert self.image_decoder is not None, "this session has no tokenizer"
        pixels = self.image_decoder.decode(self._tensor(codes))
        return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def compiled(generator: Generator, visual: VisualTokenizer) -> TorchSession:
    """A session of copies of both in which each part of an image is one compiled graph; on a GPU its kernels are launched
    together, as one CUDA graph. Every batch size is compiled anew, when it first comes."""
    generator, visual = copy.deepcopy(generator).eval(), copy.deepcopy(visual).eval()
    parts = [(generator, "prefill"), (generator, "coarse_logits"), (generator, "fine_logits"), (visual, "decode")]
    if generator.plan is not None:
        parts.append((generator.plan.prior, "draw"))
    on_gpu = next(generator.parameters()).is_cuda
    for owner, name in parts:
        mode = "reduce-overhead" if on_gpu else None
        setattr(owner, name, torch.compile(getattr(owner, name), dynamic=False, mode=mode))
    return TorchSession(generator, visual)


class TorchNextTokenSession:
    """Asks a plain `Decoder` for the next token; see `model.decoding.autoregressive.NextTokenSession`."""

    def __init__(self, decoder: Decoder):
        self.decoder = decoder.eval()
        self.positions = decoder.config.max_position_embeddings
        self._device = next(decoder.parameters()).device

    @torch.inference_mode()
    def next_logits(self, ids: np.ndarray, past: Tensor | None) -> tuple[np.ndarray, Tensor]:
        logits, present = self.decoder(torch.from_numpy(ids).to(self._device), past)
        return logits[:, -1].float().cpu().numpy(), present
