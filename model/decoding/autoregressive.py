"""One token after another: the baseline, and how text is written. With the cache of keys and values, or without."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .errors import OptionsError
from .samplers import draw, guide, gumbel_noise, streams

_NOISE_AT_ONCE = 2**16
"""Numbers of an image's noise that are drawn in one call; token by token, the calls cost more than the numbers."""


class NextTokenSession(Protocol):
    """A causal model that can be asked for the next token."""

    @property
    def positions(self) -> int | None:
        """Tokens of a sequence that it can read; None: it does not say."""
        ...

    def next_logits(self, ids: np.ndarray, past: Any | None) -> tuple[np.ndarray, Any]:
        """Logits after the last of the new tokens, and what a call with the following ones needs.

        `ids` int64 [batch, tokens] follow those that `past` stands for (None: nothing comes before). Returns float32
        [batch, vocabulary] and the new `past`, which only this session reads.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class NextTokenOptions:
    """How the next token is drawn."""

    temperature: float = 1.0
    """0 takes the most likely token."""
    top_k: int = 0
    """Only the k most likely tokens are drawn; 0 is all."""
    top_p: float = 1.0
    """Only the nucleus of this probability is drawn; 1 is all."""
    guidance: float = 1.0
    """Classifier-free guidance; anything but 1 needs an unconditional prompt."""


def continue_tokens(
    session: NextTokenSession,
    prompt: np.ndarray,
    count: int,
    options: NextTokenOptions,
    seeds: list[int],
    *,
    unconditional: np.ndarray | None = None,
    allowed: Callable[[int], np.ndarray | None] = lambda position: None,
    cache: bool = True,
) -> np.ndarray:
    """Draw `count` tokens after each prompt: int64 [batch, tokens] -> int64 [batch, count].

    `seeds` are one for each prompt: a row depends on its prompt, its seed and the options alone. `unconditional` int64
    [batch, other tokens] is the prompt without what guidance is to strengthen. `allowed(position)` says which tokens may
    stand at a place (bool [vocabulary]; None: all): visual codes inside an image, a line's end at its end. Without `cache`
    every token is computed from all tokens before it; the drawn tokens are the same.

    Raises `OptionsError`, before anything is drawn, for guidance without `unconditional`, prompts without tokens or of more
    than the session can read, and seeds that are not one for each; and for a place at which no token is allowed.
    """
    if options.guidance != 1 and unconditional is None:
        raise OptionsError(
            f"guidance {options.guidance} needs an unconditional prompt: give unconditional, or ask for guidance 1"
        )
    _check(session, prompt, unconditional, count, seeds)
    generators = streams(seeds)
    guided = _Stream(session, unconditional, cache) if unconditional is not None and options.guidance != 1 else None
    plain = _Stream(session, prompt, cache)
    drawn = np.empty((len(prompt), count), dtype=np.int64)
    noise = _TokenNoise(generators, count)
    for position in range(count):
        logits = plain.logits()
        if guided is not None:
            logits = guide(logits, guided.logits(), options.guidance)
        logits = _only(logits, allowed(position), position)[:, None]
        of_token = noise.next(logits.shape[-1]) if options.temperature > 0 else None
        token = draw(logits, options.temperature, generators, options.top_k, options.top_p, of_token)
        drawn[:, position] = token[:, 0]
        for stream in (plain, guided):
            if stream is not None:
                stream.add(token)
    return drawn


def _check(
    session: NextTokenSession, prompt: np.ndarray, unconditional: np.ndarray | None, count: int, seeds: list[int]
) -> None:
    if len(seeds) != len(prompt):
        raise OptionsError(f"{len(seeds)} seeds for {len(prompt)} prompts: give one for each")
    for name, ids in (("prompt", prompt), ("unconditional", unconditional)):
        if ids is None:
            continue
        if len(ids) != len(prompt):
            raise OptionsError(f"{name} is {list(ids.shape)} for {len(prompt)} prompts: give a row for each")
        if not ids.size:
            raise OptionsError(f"{name} is {list(ids.shape)}: give each prompt one token at least")
        read = ids.shape[1] + count - 1  # the last one that is drawn is not
        if session.positions is not None and read > session.positions:
            raise OptionsError(
                f"{name} is {list(ids.shape)} and {count} tokens are to be drawn, but this model reads"
                f" {session.positions}: shorten it, or ask for {max(session.positions + 1 - ids.shape[1], 0)} at most"
            )


class _TokenNoise:
    """Gumbel noise of one token after another, taken from the streams for many tokens at once: the same numbers."""

    def __init__(self, generators: list[np.random.Generator], tokens: int):
        self._generators, self._left = generators, tokens
        self._ready = np.empty((len(generators), 0, 0), dtype=np.float32)
        self._used = 0

    def next(self, vocabulary: int) -> np.ndarray:
        """float32 [batch, 1, vocabulary]."""
        if self._used == self._ready.shape[1]:
            tokens = min(self._left, max(1, _NOISE_AT_ONCE // vocabulary))
            self._ready, self._used = gumbel_noise(self._generators, (tokens, vocabulary)), 0
        self._used, self._left = self._used + 1, self._left - 1
        return self._ready[:, self._used - 1 : self._used]


class _Stream:
    """A prompt that grows, and what of it the model has seen."""

    def __init__(self, session: NextTokenSession, prompt: np.ndarray, cache: bool):
        self._session, self._cache = session, cache
        self._new, self._past = prompt, None

    def logits(self) -> np.ndarray:
        logits, past = self._session.next_logits(self._new, self._past)
        if self._cache:
            self._past = past
        return logits

    def add(self, token: np.ndarray) -> None:
        """int64 [batch, 1] comes next."""
        self._new = token if self._cache else np.concatenate([self._new, token], 1)


def _only(logits: np.ndarray, allowed: np.ndarray | None, position: int) -> np.ndarray:
    if allowed is None:
        return logits
    if not allowed.any():
        raise OptionsError(f"no token is allowed at position {position}: allow one there, or draw fewer")
    return np.where(allowed, logits, -np.inf)
