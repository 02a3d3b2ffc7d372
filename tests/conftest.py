"""How tests run: one thread each, what shares a fixture in the same process."""

import os
import time

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# OpenMP's spinning threads slow each other down twelvefold on a busy 2-core machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_END_VARIABLE = "EMUFLOW_SLOW_TESTS_UNTIL"
"""Seconds of the epoch; CI sets it, whose whole time is bounded. A slow test that would begin later is skipped."""

_WHOLE = "tests/pipelines"
"""Its subfolders share a fixture that runs the pipeline."""


class FolderScheduling(LoadScopeScheduling):
    """A folder's tests go to one process: fixtures of a module or a folder cost up to minutes, and are made once.

    `--dist loadgroup` is for this, and with pytest 9.2 it spreads the tests as if it had not been asked.
    """

    def _split_scope(self, nodeid: str) -> str:
        folder = nodeid.split("::", 1)[0].rsplit("/", 1)[0]
        return _WHOLE if folder.startswith(f"{_WHOLE}/") else folder


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FolderScheduling:
    return FolderScheduling(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    end = os.environ.get(_END_VARIABLE)
    if end and item.get_closest_marker("slow") and time.time() > float(end):
        pytest.skip("the time of CI is over")
