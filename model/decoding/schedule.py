"""How many tokens are known after each parallel step."""

import math


def known_after_step(step: int, steps: int, tokens: int) -> int:
    """Tokens that are fixed once step `step` (from 0) of `steps` is done.

    The cosine schedule of MaskGIT (Chang et al. 2022, section 3.2): few tokens are fixed while little is known,
    many at the end. It is at least one, never falls, and is `tokens` after the last step.
    """
    if not 0 <= step < steps:
        raise ValueError(f"step {step} is outside 0..{steps - 1}")
    masked_share = math.cos(math.pi / 2 * (step + 1) / steps)
    return tokens if step == steps - 1 else max(1, tokens - int(tokens * masked_share))
