"""Byte-level BPE in plain Python: the tokens of a prompt as the training's tokenizer gives them.

It reads the `tokenizer.json` of the `tokenizers` library and agrees with it on every text of Unicode's characters
that this Python knows (`unicodedata.unidata_version`). Text is only ever text: a prompt that spells `<boi>` gets
the tokens of these letters, never the special token (`encode_special_tokens=True` in `tokenizers`).
"""

import heapq
import json
import re
import unicodedata
from functools import lru_cache
from pathlib import Path

_REFUSED_OPTIONS = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")


def byte_alphabet() -> list[str]:
    """The printable character that stands for each of the 256 bytes (the table of GPT-2)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


class TextTokenizer:
    """Encodes text to token ids. Immutable after loading, and cheap: a few hundred kilobytes."""

    def __init__(self, content: dict):
        """`content` is the parsed `tokenizer.json`; `ValueError` where it holds more than this reader knows."""
        model = content["model"]
        odd = [name for name in _REFUSED_OPTIONS if model.get(name)]
        if model.get("type") != "BPE" or odd:
            raise ValueError(f"only plain byte-level BPE is read, not type {model.get('type')!r} with {odd}")
        self._normalize = _is_nfc(content.get("normalizer"))
        self._pieces = _split_pattern(content["pre_tokenizer"])
        self._alphabet = byte_alphabet()
        self._vocabulary: dict[str, int] = model["vocab"]
        missing = [character for character in self._alphabet if character not in self._vocabulary]
        if missing:
            raise ValueError(f"the vocabulary lacks {len(missing)} of the 256 bytes")
        self._merges = {(left, right): rank for rank, (left, right) in enumerate(model["merges"])}
        self._encode_piece = lru_cache(maxsize=4096)(self._merge)

    @classmethod
    def load(cls, path: Path) -> "TextTokenizer":
        return cls(json.loads(path.read_text(encoding="utf-8")))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without any special token."""
        if self._normalize:
            text = unicodedata.normalize("NFC", text)
        return [token for piece in self._split(text) for token in self._encode_piece(piece)]

    def _split(self, text: str) -> list[str]:
        """Cut `text` at the matches of the pre-tokenizer's pattern; what lies between two matches is a piece too."""
        pieces, end = [], 0
        for match in self._pieces.finditer(text):
            pieces += [text[end : match.start()], match.group()]
            end = match.end()
        return [piece for piece in (*pieces, text[end:]) if piece]

    def _merge(self, piece: str) -> tuple[int, ...]:
        """Merge the pair of lowest rank, leftmost first, until none is left; O(n log n) in the piece's bytes."""
        symbols: list[str | None] = [self._alphabet[byte] for byte in piece.encode()]
        count = len(symbols)
        following = list(range(1, count + 1))
        previous = list(range(-1, count - 1))
        queue: list[tuple[int, int, str, str]] = []

        def propose(left: int) -> None:
            right = following[left] if left >= 0 else count
            if right < count:
                first, second = symbols[left], symbols[right]
                assert first is not None and second is not None, "links only lead to living symbols"
                rank = self._merges.get((first, second))
                if rank is not None:
                    heapq.heappush(queue, (rank, left, first, second))

        for position in range(count - 1):
            propose(position)
        while queue:
            _, left, first, second = heapq.heappop(queue)
            right = following[left]
            if symbols[left] != first or right >= count or symbols[right] != second:
                continue  # one of the two was merged away since this pair was proposed
            symbols[left], symbols[right] = first + second, None
            following[left] = following[right]
            if following[left] < count:
                previous[following[left]] = left
            propose(previous[left])
            propose(left)
        return tuple(self._vocabulary[symbol] for symbol in symbols if symbol is not None)


def _is_nfc(normalizer: dict | None) -> bool:
    if normalizer is None:
        return False
    if normalizer.get("type") != "NFC":
        raise ValueError(f"only the NFC normalizer is read, not {normalizer.get('type')!r}")
    return True


def _split_pattern(pre_tokenizer: dict) -> re.Pattern[str]:
    """The pattern of `Sequence[Split(isolated), ByteLevel(no prefix space, no regex)]`."""
    steps = pre_tokenizer.get("pretokenizers", [])
    if [step["type"] for step in steps] != ["Split", "ByteLevel"]:
        raise ValueError("only the pre-tokenizer Sequence[Split, ByteLevel] is read")
    split, byte_level = steps
    plain = split["behavior"] == "Isolated" and not split["invert"]
    if not plain or byte_level["add_prefix_space"] or byte_level["use_regex"]:
        raise ValueError("only an isolating Split and a ByteLevel without prefix space and regex are read")
    return re.compile(split["pattern"]["Regex"])
