"""What the decode loop asks of a model."""

from collections.abc import Callable
from typing import Protocol

import numpy as np

Prefix = tuple[np.ndarray, np.ndarray | None, np.ndarray | None]
"""A prompt that was read: its keys and values, float32 [layers, 2, batch, kv_heads, text_length, head_dim]; the plan that
was drawn for it, int64 [batch, plan_tokens]; and the logits of each of its codes given the prompt and the codes before it,
float32 [batch, plan_tokens, visual_vocabulary]. The last two are None without a plan, and the logits where a session does
not give them.

A plain tuple: a package's own copy of this module and this one must agree on it.
"""


DrawImage = Callable[[np.ndarray, np.ndarray | None, np.ndarray], np.ndarray]
"""From prompts, noise for their plans and noise for their sketches to pixels: `text_ids` int64 [batch, text_length],
`plan_noise` as in `prefill`, and Gumbel noise times the temperature, float32 [batch, coarse_tokens, visual_vocabulary]. The
sketch is drawn in one pass, the details are the most likely ones: uint8 [batch, height, width, 3]."""


class TokenSession(Protocol):
    """A model that draws the tokens of images."""

    visual_vocabulary: int
    """Number of visual codes; the id one past the last code stands for "not known yet"."""

    coarse_grid: tuple[int, int]
    """Rows and columns of the coarse sketch."""

    detail_stages: int
    """How many grids follow it, each of twice the rows and columns of the one before; without any, the sketch is the whole
    image."""

    plan_noise_shape: tuple[int, int] | None
    """What the draw of one plan takes: tokens, and levels of a token. None for a model without plans."""

    def prefill(self, text_ids: np.ndarray, plan_noise: np.ndarray | None = None) -> Prefix:
        """Read prompts, int64 [batch, text_length], and draw a plan for each.

        `plan_noise` float32 [batch, *plan_noise_shape] is Gumbel noise times the temperature; None draws no plan.
        """
        ...

    def coarse(self, past: np.ndarray, coarse_ids: np.ndarray, plan_ids: np.ndarray | None) -> np.ndarray:
        """Logits of the sketch: int64 [batch, coarse_tokens] -> float32 [batch, coarse_tokens, visual_vocabulary].

        `plan_ids` int64 [batch, plan_tokens], None without a plan.
        """
        ...

    def fine(
        self,
        past: np.ndarray,
        coarse_ids: np.ndarray,
        fine_ids: np.ndarray,
        plan_ids: np.ndarray | None,
        stage: int = 1,
    ) -> np.ndarray:
        """Logits of a stage's tokens, a 2x2 block for each cell of the grid before it: int64 [batch, cells] and
        [batch, cells, 4] -> float32 [batch, cells, 4, visual_vocabulary]. Stage 1 starts from the sketch."""
        ...


class Session(TokenSession, Protocol):
    """A model that can be decoded: torch while training, onnxruntime inside a package."""

    draw_image: DrawImage | None
    """The whole way in one call, for a model that can."""

    def decode_image(self, codes: np.ndarray) -> np.ndarray:
        """Pixels of a grid of codes: int64 [batch, rows, columns] -> uint8 [batch, 4 * rows, 4 * columns, 3]."""
        ...
