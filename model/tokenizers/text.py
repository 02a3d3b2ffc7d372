"""The text tokenizer: byte-level BPE, so that no text is unknown.

The layout of a prompt is `PAD… BOS text BOI`. The runtime of a model package reads the same `tokenizer.json`
with its own few lines of Python; the pre-tokenizer is therefore one that both regular expression dialects share.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Self

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer

from common.errors import DataError
from common.files import atomic_path, write_text

PAD, BOS, BOI, UNCONDITIONAL = "<pad>", "<bos>", "<boi>", "<uncond>"
SPECIAL_TOKENS = (PAD, BOS, BOI, UNCONDITIONAL)
SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + 256
_FILE = "tokenizer.json"
_WORDS = " ?[^ \t\r\n]+|[ \t\r\n]+"


class PromptTooLongError(DataError):
    """A text has more tokens than a prompt may hold."""


class TextTokenizer:
    """Texts to ids and back."""

    def __init__(self, tokenizer: Tokenizer):
        found = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
        self.special = {token.strip("<>"): number for token, number in found.items() if number is not None}
        """Ids of `pad`, `bos`, `boi` and `uncond`."""
        if len(self.special) < len(SPECIAL_TOKENS):
            raise DataError(f"the text tokenizer lacks some of {', '.join(SPECIAL_TOKENS)}")
        # Somebody who writes "<boi>" in a prompt means those five characters.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int) -> Self:
        """Learn merges until there are `vocabulary` tokens, or no pair occurs twice.

        Raises `ValueError` where `vocabulary` cannot hold the bytes and the special tokens.
        """
        if vocabulary < SMALLEST_VOCABULARY:
            raise ValueError(f"a byte-level vocabulary has at least {SMALLEST_VOCABULARY} tokens, not {vocabulary}")
        tokenizer = Tokenizer(BPE())
        tokenizer.normalizer = NFC()
        tokenizer.pre_tokenizer = Sequence(
            [Split(Regex(_WORDS), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        tokenizer.decoder = ByteLevelDecoder()
        trainer = BpeTrainer(
            vocab_size=vocabulary,
            min_frequency=2,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=sorted(ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @property
    def vocabulary(self) -> int:
        """Number of ids, special tokens included."""
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`, in NFC; special tokens are left out."""
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def encode_prompt(self, text: str, text_length: int) -> list[int]:
        """`PAD… BOS text BOI`, padded on the left to `text_length` ids. Raises `PromptTooLongError`."""
        ids, special = self.encode(text), self.special
        room = text_length - 2
        if len(ids) > room:
            raise PromptTooLongError(
                f"the text has {len(ids)} tokens, a prompt holds {room}",
                fix="shorten it, or raise tokenizer.text_length",
            )
        return [special["pad"]] * (room - len(ids)) + [special["bos"], *ids, special["boi"]]

    def unconditional_prompt(self, text_length: int) -> list[int]:
        """The prompt that says nothing, for classifier-free guidance: `PAD… BOS UNCOND BOI`."""
        special = self.special
        return [special["pad"]] * (text_length - 3) + [special["bos"], special["uncond"], special["boi"]]

    def save(self, folder: Path) -> None:
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            write_text(temporary / _FILE, self._tokenizer.to_str(pretty=True) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Raises `DataError` where `tokenizer.json` is missing or cannot be read."""
        path = folder / _FILE
        if not path.is_file():
            raise DataError("the text tokenizer is missing", where=str(path))
        try:
            tokenizer = Tokenizer.from_str(path.read_text())
        except Exception as error:  # noqa: BLE001 - the library raises bare Exception for any bad file
            raise DataError(f"not a tokenizer: {error}", where=str(path)) from None
        return cls(tokenizer)
