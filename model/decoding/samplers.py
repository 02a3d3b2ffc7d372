"""Drawing tokens from logits. Each image has its own random stream, so a batch never changes an image."""

import numpy as np


def streams(seeds: list[int], stage: int = 0) -> list[np.random.Generator]:
    """One independent, reproducible random stream per image, and another one for every `stage` of it."""
    return [np.random.Generator(np.random.Philox(key=np.array([seed, stage], dtype=np.uint64))) for seed in seeds]


def gumbel_noise(generators: list[np.random.Generator], shape: tuple[int, ...]) -> np.ndarray:
    """Standard Gumbel noise, float32 [batch, *shape]; row i is drawn from `generators[i]`."""
    uniform = np.stack([generator.random(shape, dtype=np.float32) for generator in generators])
    tiny = np.float32(1e-9)
    return -np.log(-np.log(np.clip(uniform, tiny, 1 - np.float32(6e-8))))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithm of the softmax over the last axis, same shape."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def keep_top_k(logits: np.ndarray, top_k: int) -> np.ndarray:
    """Logits with all but the `top_k` largest of the last axis set to -inf; 0 keeps all.

    Of equal logits at the edge those of lower ids are kept, as in the nucleus, so that never more than `top_k` are left.
    """
    if top_k <= 0 or top_k >= logits.shape[-1]:
        return logits
    threshold = np.partition(logits, -top_k, axis=-1)[..., -top_k, None]
    kept = logits >= threshold
    if np.count_nonzero(kept) > threshold.size * top_k:  # seldom, so that the others pay for one count alone
        crowded = (kept.sum(axis=-1) > top_k) & (threshold[..., 0] > -np.inf)
        rows, edge = logits[crowded], threshold[crowded]
        room = top_k - (rows > edge).sum(axis=-1, keepdims=True)
        ties = rows == edge
        kept[crowded] &= ~ties | (ties.cumsum(axis=-1) <= room)
    return np.where(kept, logits, -np.inf)


def keep_top_p(logits: np.ndarray, top_p: float) -> np.ndarray:
    """Logits with everything outside the nucleus set to -inf (Holtzman et al. 2020); 1 keeps all.

    The nucleus is the smallest set of most likely tokens whose probabilities sum to `top_p` or more, so the most likely
    token is always in it.
    """
    if top_p >= 1:
        return logits
    order = np.argsort(-logits, axis=-1, kind="stable")
    probabilities = np.exp(log_softmax(np.take_along_axis(logits, order, axis=-1)))
    before = probabilities.cumsum(axis=-1) - probabilities
    kept = np.zeros(logits.shape, dtype=bool)
    np.put_along_axis(kept, order, before < top_p, axis=-1)
    np.put_along_axis(kept, order[..., :1], True, axis=-1)
    return np.where(kept, logits, -np.inf)


def guide(conditional: np.ndarray, unconditional: np.ndarray, scale: float) -> np.ndarray:
    """Classifier-free guidance on log-probabilities, as Emu3.5 does it: u + scale * (c - u), the same shape.

    `scale` 1 is the conditional distribution, 0 the unconditional one; larger values follow the prompt more closely.
    """
    given, free = log_softmax(conditional), log_softmax(unconditional)
    return free + np.float32(scale) * (given - free)


def draw(
    logits: np.ndarray,
    temperature: float,
    generators: list[np.random.Generator],
    top_k: int = 0,
    top_p: float = 1.0,
    noise: np.ndarray | None = None,
) -> np.ndarray:
    """Draw one token per position: float [batch, ..., vocabulary] -> ids [batch, ...].

    `temperature` 0 takes the most likely token. Otherwise the draw is exact by the Gumbel-max identity:
    argmax(logits / temperature + Gumbel noise) is distributed as softmax(logits / temperature), after `top_k` and then
    `top_p` of that distribution were kept. `noise`, shaped as `logits`, is Gumbel noise that the generators gave before.
    """
    kept = _kept(logits, temperature, top_k, top_p)
    if temperature <= 0:
        return kept.argmax(axis=-1)
    return (kept + (gumbel_noise(generators, logits.shape[1:]) if noise is None else noise)).argmax(axis=-1)


def sample(
    logits: np.ndarray,
    temperature: float,
    generators: list[np.random.Generator],
    top_k: int = 0,
    top_p: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """`draw`, and the log-probability of each token under the distribution that it was drawn from: twice [batch, ...]."""
    ids = draw(logits, temperature, generators, top_k, top_p)
    log_probabilities = log_softmax(_kept(logits, temperature, top_k, top_p))
    return ids, np.take_along_axis(log_probabilities, ids[..., None], axis=-1)[..., 0]


def _kept(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    if temperature <= 0:
        return logits
    return keep_top_p(keep_top_k(logits, top_k) / np.float32(temperature), top_p)
