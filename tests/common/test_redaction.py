"""Secrets never reach a log, a report or the lineage."""

import pytest

from common.redaction import HIDDEN, redact, redact_text


def test_fault_25_values_under_secret_names_are_hidden():
    settings = {
        "platform": {"api_key": "abc", "password": "p", "registry_token": "t", "db_passwd": "x"},
        "accounts": [{"client_secret": "s"}],
    }
    assert redact(settings) == {
        "platform": {"api_key": HIDDEN, "password": HIDDEN, "registry_token": HIDDEN, "db_passwd": HIDDEN},
        "accounts": [{"client_secret": HIDDEN}],
    }


def test_fault_25_passwords_in_urls_are_hidden_wherever_they_stand():
    url = "postgresql+psycopg://emuflow:hunter2@db.example:5432/releases"
    assert redact({"release_url": url}) == {"release_url": "postgresql+psycopg://emuflow:***@db.example:5432/releases"}
    assert "hunter2" not in redact_text(f"cannot connect to {url}: timeout")


@pytest.mark.parametrize("password", ["p@ss:word", "a@b", "x%2Fy", "p/w"])
def test_fault_25_a_password_with_special_characters_is_hidden_whole(password):
    shown = redact_text(f"postgresql://user:{password}@host/db")
    assert shown == f"postgresql://user:{HIDDEN}@host/db"


def test_everything_else_stays_as_it_is():
    content = {"tokenizer": {"retrain": False, "text_vocabulary": 384}, "uri": "http://host:5000/", "a": [1, 2.5, None]}
    assert redact(content) == content


def test_an_absent_secret_is_shown_as_absent():
    assert redact({"password": None, "use_password": True}) == {"password": None, "use_password": True}
