"""Which tracking server and release store a command talks to."""

import os

import pytest

from common.errors import TrackingError, UsageError
from common.files import write_json
from common.home import Home
from components.step import RELEASE_URL_VARIABLE
from pipelines.connection import TRACKING_VARIABLE, connect, release_store, remembered
from pipelines.settings import PlatformSettings


@pytest.fixture(autouse=True)
def no_addresses(monkeypatch):
    """`connect` writes both variables; they are put back afterwards."""
    for name in (TRACKING_VARIABLE, RELEASE_URL_VARIABLE):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def remember(home: Home, **platform: str | None) -> None:
    content = {"tracking_uri": None, "release_url": None} | platform
    write_json(home.last_run_file, {"settings": {"platform": content}})


def test_without_anything_said_both_lie_in_the_home(tmp_path):
    home = Home(tmp_path)
    found = connect(home)
    assert found.local and found.tracking_uri == found.release_url == home.tracking_uri
    assert os.environ[TRACKING_VARIABLE] == home.tracking_uri


def test_settings_go_before_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv(TRACKING_VARIABLE, "http://environment:5000")
    monkeypatch.setenv(RELEASE_URL_VARIABLE, "sqlite:///environment.db")
    found = connect(Home(tmp_path), PlatformSettings(tracking_uri="http://settings:5000"))
    assert (found.tracking_uri, found.release_url) == ("http://settings:5000", "sqlite:///environment.db")
    assert not found.local


def test_later_commands_use_the_stores_of_the_last_run(tmp_path):
    home = Home(tmp_path)
    remember(home, release_url="sqlite:///team.db")
    assert connect(home).release_url == "sqlite:///team.db"


def test_fault_25_an_address_with_a_hidden_password_is_asked_for_again(tmp_path, monkeypatch):
    home = Home(tmp_path)
    remember(home, release_url="postgresql://u:***@db/emuflow")
    with pytest.raises(UsageError, match=RELEASE_URL_VARIABLE):
        connect(home)
    monkeypatch.setenv(RELEASE_URL_VARIABLE, "postgresql://u:new@db/emuflow")
    assert connect(home).release_url == "postgresql://u:new@db/emuflow"


def test_fault_21_a_release_store_that_does_not_answer_is_a_typed_error_without_its_password(tmp_path):
    damaged = tmp_path / "releases.db"
    damaged.write_bytes(b"no database" * 100)
    with pytest.raises(TrackingError, match="does not answer"), release_store(f"sqlite:///{damaged}"):
        pass
    address = "postgresql+nodriver://u:hunter2@127.0.0.1:1/emuflow"
    with pytest.raises(TrackingError, match="driver") as caught, release_store(address):
        pass
    assert "hunter2" not in str(caught.value)


def test_what_a_resumed_run_is_told_anew_goes_before_what_it_remembers(tmp_path):
    home = Home(tmp_path)
    remember(home, release_url="postgresql://u:***@db/emuflow")
    found = remembered(home, ["platform.release_url=sqlite:///team.db", "platform.containers.memory=2g"])
    assert (found.release_url, found.containers.memory) == ("sqlite:///team.db", "2g")
