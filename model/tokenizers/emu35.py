"""Emu3.5's token layout: `BOI H*W IMG row EOL row … row EOI`, a visual code a token, 16 pixels a side.

The ids and the order are those of BAAI's public repository (baaivision/Emu3.5, `input_utils.py` and its tokenizer):
Qwen's text tokens, then the specials, then 131,072 visual codes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import DataError

EOL, EOF, TMS, BOS, EOS, IMG, BOI, EOI = range(151_846, 151_854)
FIRST_VISUAL = 151_854
VISUAL_CODES = 131_072
VOCABULARY = FIRST_VISUAL + VISUAL_CODES
DOWNSAMPLE = 16
"""Pixels of an image to a side of one visual code."""

EncodeText = Callable[[str], Sequence[int]]
DecodeText = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Emu35Layout:
    """Writes and reads one image among text tokens; the text tokenizer writes the size, `64*64`, as text."""

    encode_text: EncodeText
    decode_text: DecodeText

    def encode_image(self, codes: np.ndarray) -> list[int]:
        """Visual codes [rows, columns], each in 0..131071, as tokens. Raises `DataError` for any other array."""
        if codes.ndim != 2 or not codes.size:
            raise DataError(f"visual codes are [rows, columns], not {list(codes.shape)}")
        if codes.min() < 0 or codes.max() >= VISUAL_CODES:
            raise DataError(f"a visual code is in 0..{VISUAL_CODES - 1}, not {codes.min()} or {codes.max()}")
        rows, columns = codes.shape
        tokens = [BOI, *self.encode_text(f"{rows}*{columns}"), IMG]
        for index, row in enumerate(codes.tolist()):
            tokens += [] if index == 0 else [EOL]
            tokens += [FIRST_VISUAL + code for code in row]
        return [*tokens, EOI]

    def decode_image(self, tokens: Sequence[int]) -> np.ndarray:
        """The codes of one whole image, int64 [rows, columns]. Raises `DataError` that says what does not fit."""
        tokens = list(tokens)
        if len(tokens) < 4 or tokens[0] != BOI or tokens[-1] != EOI or IMG not in tokens:
            raise DataError("not an image: it begins with BOI, holds IMG and ends with EOI")
        start = tokens.index(IMG)
        rows, columns = self._size(tokens[1:start])
        body = np.array([*tokens[start + 1 : -1], EOL], dtype=np.int64)
        if len(body) != rows * (columns + 1):
            raise DataError(f"an image of {rows}*{columns} has {rows * (columns + 1) - 1} tokens, not {len(body) - 1}")
        grid = body.reshape(rows, columns + 1)
        if (grid[:, -1] != EOL).any():
            raise DataError(f"row {int((grid[:, -1] != EOL).argmax())} does not end with EOL")
        codes = grid[:, :-1] - FIRST_VISUAL
        if codes.min() < 0 or codes.max() >= VISUAL_CODES:
            raise DataError("a token between IMG and EOI is no visual code")
        return codes

    def _size(self, tokens: Sequence[int]) -> tuple[int, int]:
        text = self.decode_text(tokens)
        rows, star, columns = text.partition("*")
        if not (star and rows.isascii() and rows.isdigit() and columns.isascii() and columns.isdigit()):
            raise DataError(f"the size of an image reads like 64*64, not {text!r}")
        if not (int(rows) and int(columns)):
            raise DataError(f"an image of {text} holds nothing")
        return int(rows), int(columns)
