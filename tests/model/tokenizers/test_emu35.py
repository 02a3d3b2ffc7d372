"""Emu3.5's token layout against the ids and the order of its public repository."""

import numpy as np
import pytest

from common.errors import DataError
from model.tokenizers import emu35
from model.tokenizers.emu35 import BOI, EOI, EOL, FIRST_VISUAL, IMG, Emu35Layout


def spell(text: str) -> list[int]:
    """A text tokenizer of one token a character, as Qwen's writes digits."""
    return [ord(character) for character in text]


LAYOUT = Emu35Layout(spell, lambda tokens: "".join(map(chr, tokens)))
CODES = np.array([[0, 5, 131_071], [7, 8, 9]])


def test_the_ids_are_the_documented_ones():
    assert (emu35.EOL, emu35.EOF, emu35.BOS, emu35.EOS) == (151_846, 151_847, 151_849, 151_850)
    assert (emu35.IMG, emu35.BOI, emu35.EOI) == (151_851, 151_852, 151_853)
    assert (FIRST_VISUAL, emu35.VISUAL_CODES, emu35.VOCABULARY) == (151_854, 131_072, 282_926)


def test_an_image_is_its_size_and_its_rows_with_line_ends_between_them():
    assert LAYOUT.encode_image(CODES) == [
        BOI, ord("2"), ord("*"), ord("3"), IMG,
        FIRST_VISUAL, FIRST_VISUAL + 5, 282_925, EOL,
        FIRST_VISUAL + 7, FIRST_VISUAL + 8, FIRST_VISUAL + 9, EOI,
    ]  # fmt: skip


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (4, 1), (64, 64)])
def test_what_was_written_is_read_again(shape):
    codes = np.random.default_rng(0).integers(0, 131_072, shape)
    tokens = LAYOUT.encode_image(codes)
    assert (LAYOUT.decode_image(tokens) == codes).all()
    assert len(tokens) == shape[0] * (shape[1] + 1) - 1 + 3 + len(f"{shape[0]}*{shape[1]}")


WRITTEN = LAYOUT.encode_image(CODES)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (WRITTEN[1:], "begins with BOI"),
        (WRITTEN[:-1], "ends with EOI"),
        ([BOI, *spell("2*3"), EOI], "holds IMG"),
        ([*WRITTEN[:-2], EOI], "has 7 tokens, not 6"),
        ([*WRITTEN[:5], *WRITTEN[5:8], 17, *WRITTEN[9:]], "row 0 does not end with EOL"),
        ([*WRITTEN[:5], EOI - 1, *WRITTEN[6:]], "no visual code"),
        ([BOI, *spell("2x3"), *WRITTEN[4:]], "reads like 64\\*64"),
        ([BOI, *spell("0*3"), *WRITTEN[4:]], "holds nothing"),
        ([BOI, *spell("²*3"), *WRITTEN[4:]], "reads like 64\\*64"),
    ],
)
def test_tokens_that_are_no_image_are_refused_with_what_does_not_fit(tokens, words):
    with pytest.raises(DataError, match=words):
        LAYOUT.decode_image(tokens)


@pytest.mark.parametrize("codes", [np.zeros((0, 3), int), np.zeros(3, int), np.array([[131_072]]), np.array([[-1]])])
def test_codes_that_are_no_image_are_refused(codes):
    with pytest.raises(DataError):
        LAYOUT.encode_image(codes)
