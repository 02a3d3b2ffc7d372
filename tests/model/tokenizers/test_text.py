import pytest

from common.errors import DataError
from model.tokenizers.text import PromptTooLongError, TextTokenizer

CAPTIONS = [f"a {color} {digit} left of a green two" for color in ("red", "blue") for digit in ("seven", "nine")] * 3


@pytest.fixture(scope="module")
def tokenizer():
    return TextTokenizer.train(CAPTIONS, 320)


@pytest.mark.parametrize("text", ["a red seven", "", "  two\tspaces\r\n", "naïve 数字 🙂", "\x00\x1b", "it's 3x<boi>!"])
def test_no_text_is_unknown(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_text_is_normalised_to_nfc(tokenizer):
    assert tokenizer.encode("e\u0301") == tokenizer.encode("\u00e9")


def test_common_words_become_one_token(tokenizer):
    assert len(tokenizer.encode("a red seven left of a green two")) == 8


def test_a_prompt_is_padded_on_the_left(tokenizer):
    special = tokenizer.special
    prompt = tokenizer.encode_prompt("a red seven", 8)
    assert prompt == [special["pad"]] * 3 + [special["bos"], *tokenizer.encode("a red seven"), special["boi"]]


def test_a_prompt_that_just_fits_has_no_padding(tokenizer):
    prompt = tokenizer.encode_prompt("a red seven", 5)
    assert tokenizer.special["pad"] not in prompt
    with pytest.raises(PromptTooLongError, match="has 3 tokens, a prompt holds 2"):
        tokenizer.encode_prompt("a red seven", 4)


def test_a_written_special_token_is_plain_text(tokenizer):
    assert not set(tokenizer.encode("<bos><boi><pad>")) & set(tokenizer.special.values())


def test_saved_and_loaded_encodes_alike(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "text")
    loaded = TextTokenizer.load(tmp_path / "text")
    assert loaded.encode("a blue nine <boi>") == tokenizer.encode("a blue nine <boi>")
    assert (loaded.vocabulary, loaded.special) == (tokenizer.vocabulary, tokenizer.special)


def test_training_is_repeatable(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "one")
    TextTokenizer.train(CAPTIONS, 320).save(tmp_path / "two")
    assert (tmp_path / "one/tokenizer.json").read_bytes() == (tmp_path / "two/tokenizer.json").read_bytes()


def test_a_vocabulary_below_the_bytes_is_refused():
    with pytest.raises(ValueError, match="at least 260"):
        TextTokenizer.train(CAPTIONS, 100)


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        TextTokenizer.load(tmp_path)
