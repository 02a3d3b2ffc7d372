"""Tokens one after another, on a real small decoder."""

import re

import numpy as np
import pytest
import torch

from model.decoding import autoregressive
from model.decoding.autoregressive import NextTokenOptions, continue_tokens
from model.decoding.errors import OptionsError
from model.transformer.config import DecoderConfig
from model.transformer.decoder import Decoder
from model.transformer.session import TorchNextTokenSession

VOCABULARY = 24
PROMPTS = np.random.default_rng(0).integers(0, VOCABULARY, (3, 5))
FREE = np.zeros((3, 2), dtype=np.int64)
HOT = NextTokenOptions(temperature=1.0)
POSITIONS = 32


@pytest.fixture(scope="module")
def session() -> TorchNextTokenSession:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return TorchNextTokenSession(
        Decoder(
            DecoderConfig(
                vocab_size=VOCABULARY, num_key_value_heads=2, head_dim=8, max_position_embeddings=POSITIONS, **shape
            )
        )
    )


def test_the_cache_changes_time_and_nothing_else(session):
    drawn = [continue_tokens(session, PROMPTS, 12, HOT, [1, 2, 3], cache=cache) for cache in (True, False)]
    assert (drawn[0] == drawn[1]).all()


def test_guidance_with_a_cache_is_guidance_without(session):
    options = NextTokenOptions(temperature=1.0, guidance=3.0)
    drawn = [
        continue_tokens(session, PROMPTS, 8, options, [1, 2, 3], unconditional=FREE, cache=cache)
        for cache in (True, False)
    ]
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[0] != continue_tokens(session, PROMPTS, 8, HOT, [1, 2, 3])).any()


def test_a_row_depends_on_its_prompt_and_seed_alone(session):
    together = continue_tokens(session, PROMPTS, 10, HOT, [7, 8, 9])
    for row, seed in enumerate((7, 8, 9)):
        assert (continue_tokens(session, PROMPTS[row : row + 1], 10, HOT, [seed]) == together[row]).all()
    assert (continue_tokens(session, PROMPTS, 10, HOT, [17, 18, 19]) != together).any()


def test_how_much_noise_is_taken_at_once_changes_nothing(session, monkeypatch):
    together = continue_tokens(session, PROMPTS, 10, HOT, [7, 8, 9])
    assert (continue_tokens(session, PROMPTS, 4, HOT, [7, 8, 9]) == together[:, :4]).all()
    for numbers in (1, 3 * VOCABULARY):
        monkeypatch.setattr(autoregressive, "_NOISE_AT_ONCE", numbers)
        assert (continue_tokens(session, PROMPTS, 10, HOT, [7, 8, 9]) == together).all()


def test_at_temperature_0_each_token_is_the_most_likely_one(session):
    drawn = continue_tokens(session, PROMPTS, 6, NextTokenOptions(temperature=0), [1, 2, 3])
    known = np.concatenate([PROMPTS, drawn], 1)
    for position in range(6):
        logits, _ = session.next_logits(known[:, : 5 + position], None)
        assert (logits.argmax(-1) == drawn[:, position]).all()


def test_first_tokens_are_distributed_as_the_model_says(session):
    prompt = np.repeat(PROMPTS[:1], 4000, 0)
    drawn = continue_tokens(session, prompt, 1, HOT, list(range(4000)))[:, 0]
    logits, _ = session.next_logits(PROMPTS[:1], None)
    expected = np.exp(logits[0]) / np.exp(logits[0]).sum()
    counts = np.bincount(drawn, minlength=VOCABULARY)
    chi_square = ((counts - 4000 * expected) ** 2 / (4000 * expected)).sum()
    assert chi_square < 49.7  # the .999 quantile at 23 degrees of freedom


def test_only_what_is_allowed_at_a_place_is_drawn_there(session):
    even = np.arange(VOCABULARY) % 2 == 0
    drawn = continue_tokens(
        session, PROMPTS, 10, HOT, [1, 2, 3], allowed=lambda position: even if position < 5 else ~even
    )
    assert (drawn[:, :5] % 2 == 0).all() and (drawn[:, 5:] % 2 == 1).all()


def test_what_cannot_be_drawn_is_an_error(session):
    with pytest.raises(ValueError, match="unconditional prompt"):
        continue_tokens(session, PROMPTS, 1, NextTokenOptions(guidance=2.0), [1, 2, 3])
    with pytest.raises(ValueError, match="no token is allowed at position 0"):
        continue_tokens(session, PROMPTS, 1, HOT, [1, 2, 3], allowed=lambda _: np.zeros(VOCABULARY, bool))


class Asked:
    """A session that notes whether it was asked for anything."""

    def __init__(self, session: TorchNextTokenSession):
        self._session, self.positions, self.calls = session, session.positions, 0

    def next_logits(self, ids: np.ndarray, past: torch.Tensor | None) -> tuple[np.ndarray, torch.Tensor]:
        self.calls += 1
        return self._session.next_logits(ids, past)


@pytest.mark.parametrize(
    ("prompt", "count", "seeds", "words"),
    [
        (
            PROMPTS[:1],
            POSITIONS - 3,
            [1],
            f"prompt is [1, 5] and 29 tokens are to be drawn, but this model reads {POSITIONS}",
        ),
        (PROMPTS[:1], POSITIONS - 3, [1], "ask for 28 at most"),
        (np.zeros((1, POSITIONS + 3), dtype=np.int64), 1, [1], "ask for 0 at most"),
        (np.zeros((1, 0), dtype=np.int64), 3, [1], "prompt is [1, 0]: give each prompt one token at least"),
        (np.zeros((0, 5), dtype=np.int64), 3, [], "prompt is [0, 5]"),
        (PROMPTS, 3, [1], "1 seeds for 3 prompts"),
        (PROMPTS[:1], 3, [1, 2, 3], "3 seeds for 1 prompts"),
    ],
)
@pytest.mark.parametrize("cache", [True, False])
def test_a_prompt_that_cannot_be_continued_is_named_before_anything_is_drawn(
    session, prompt, count, seeds, words, cache
):
    asked = Asked(session)
    with pytest.raises(OptionsError, match=re.escape(words)):
        continue_tokens(asked, prompt, count, HOT, seeds, cache=cache)
    assert asked.calls == 0


@pytest.mark.parametrize(
    ("unconditional", "words"),
    [
        (FREE[:, :0], "unconditional is [3, 0]: give each prompt one token at least"),
        (FREE[:1], "unconditional is [1, 2] for 3 prompts"),
        (np.zeros((3, POSITIONS - 1), dtype=np.int64), f"unconditional is [3, {POSITIONS - 1}] and 4 tokens"),
    ],
)
def test_an_unconditional_prompt_that_cannot_be_continued_likewise(session, unconditional, words):
    asked = Asked(session)
    with pytest.raises(OptionsError, match=re.escape(words)):
        continue_tokens(asked, PROMPTS, 4, NextTokenOptions(guidance=2.0), [1, 2, 3], unconditional=unconditional)
    assert asked.calls == 0


@pytest.mark.parametrize("cache", [True, False])
def test_as_many_tokens_are_drawn_as_can_be_read(session, cache):
    """The last one that is drawn is not read."""
    drawn = continue_tokens(session, PROMPTS, POSITIONS - 4, HOT, [1, 2, 3], cache=cache)
    assert drawn.shape == (3, POSITIONS - 4)


def test_prompts_of_equal_words_and_other_seeds_are_continued_otherwise(session):
    drawn = continue_tokens(session, np.repeat(PROMPTS[:1], 3, 0), 12, HOT, [1, 2, 3])
    assert len({row.tobytes() for row in drawn}) == 3
