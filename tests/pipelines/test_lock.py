"""One run at a time, and what is seen of one that was killed."""

import subprocess
import sys

import pytest

from common.errors import UsageError
from common.files import write_json
from common.home import Home
from pipelines.lock import only_run, run_is_alive
from pipelines.status import read_status

_HEIR = """
import subprocess, sys
from pathlib import Path
from common.home import Home
from pipelines.lock import only_run
with only_run(Home(Path(sys.argv[1]))) as lock:
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], pass_fds=(lock,))
    print("ready", flush=True)
    child.wait()
"""


def test_a_second_run_in_one_home_is_refused(tmp_path):
    home = Home(tmp_path)
    with only_run(home):
        assert run_is_alive(home)
        with pytest.raises(UsageError, match="another run works"), only_run(home):
            pass
    assert not run_is_alive(home)
    with only_run(home):
        pass


def test_what_is_left_of_a_killed_run_still_holds_the_home(tmp_path):
    home = Home(tmp_path)
    owner = subprocess.Popen(
        [sys.executable, "-c", _HEIR, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with owner:
        assert owner.stdin and owner.stdout and owner.stdout.readline() == "ready\n"
        owner.kill()
        owner.wait()
        assert run_is_alive(home)
    while run_is_alive(home):  # the child ends when its standard input does
        pass


def test_a_run_that_was_killed_is_not_shown_as_running(tmp_path, monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "EMUFLOW_RELEASE_URL"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    home = Home(tmp_path)
    platform = {"tracking_uri": None, "release_url": None}
    write_json(home.last_run_file, {"status": "running", "settings": {"platform": platform}})
    with only_run(home):
        found = read_status(home)["last_run"]
        assert found is not None and found["status"] == "running"
    found = read_status(home)["last_run"]
    assert found is not None and found["status"] == "interrupted"
