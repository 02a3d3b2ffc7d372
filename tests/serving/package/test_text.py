"""The package's plain-Python tokenizer against the `tokenizers` library that trained it."""

import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from serving.package.runtime.text import TextTokenizer, byte_alphabet
from tests.engines import CAPTIONS, train_tokenizer

# A character that this Python does not know yet has no normal form here, while the library may know one.
KNOWN_CHARACTERS = st.characters(exclude_categories=["Cs", "Cn"])
WORDS = st.sampled_from([*" ".join(CAPTIONS).split(), " ", "  ", "\t", "\n", "<boi>", "<pad>", "é", "e\u0301", "가"])


@pytest.fixture(scope="module")
def library() -> Tokenizer:
    tokenizer = train_tokenizer()
    tokenizer.encode_special_tokens = True
    return tokenizer


@pytest.fixture(scope="module")
def plain(library: Tokenizer) -> TextTokenizer:
    return TextTokenizer(json.loads(library.to_str()))


@settings(max_examples=400, deadline=None)
@given(text=st.text(KNOWN_CHARACTERS))
def test_any_unicode_gets_the_library_s_tokens(library: Tokenizer, plain: TextTokenizer, text: str) -> None:
    assert plain.encode(text) == library.encode(text).ids


@settings(max_examples=400, deadline=None)
@given(text=st.lists(WORDS, max_size=12).map("".join))
def test_captions_and_near_captions_get_the_library_s_tokens(
    library: Tokenizer, plain: TextTokenizer, text: str
) -> None:
    assert plain.encode(text) == library.encode(text).ids


@given(text=st.text(KNOWN_CHARACTERS))
def test_no_byte_is_lost(library: Tokenizer, plain: TextTokenizer, text: str) -> None:
    names = {index: name for name, index in library.get_vocab().items()}
    byte_of = {character: byte for byte, character in enumerate(byte_alphabet())}
    spelled = bytes(byte_of[character] for token in plain.encode(text) for character in names[token])
    assert spelled.decode() == unicodedata.normalize("NFC", text)


def test_a_prompt_cannot_spell_a_special_token(library: Tokenizer, plain: TextTokenizer) -> None:
    assert library.token_to_id("<boi>") not in plain.encode("a <boi> b")


def test_a_long_word_is_cut_in_time(plain: TextTokenizer) -> None:
    assert len(plain.encode("seven" * 20_000)) >= 20_000


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("model", "dropout"), 0.1),
        (("model", "byte_fallback"), True),
        (("model", "type"), "Unigram"),
        (("normalizer", "type"), "NFKC"),
        (("pre_tokenizer", "type"), None),
    ],
)
def test_an_unknown_form_of_tokenizer_is_refused(library: Tokenizer, path: tuple[str, str], value: object) -> None:
    content = json.loads(library.to_str())
    content[path[0]][path[1]] = value
    if path == ("pre_tokenizer", "type"):
        content["pre_tokenizer"] = {"type": "Whitespace"}
    with pytest.raises(ValueError, match=r"read"):
        TextTokenizer(content)
