"""How tests run: one thread each, what shares a fixture in the same process."""

import os
import time
from pathlib import Path

import pytest

# OpenMP's spinning threads slow each other down twelvefold on a busy 2-core machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_HERE = Path(__file__).parent
_END_VARIABLE = "EMUFLOW_SLOW_TESTS_UNTIL"
"""Seconds of the epoch; CI sets it, whose whole time is bounded. A slow test that would begin later is skipped."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fixtures of a session cost minutes: `--dist loadgroup` keeps the tests of a folder of `tests/` together."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(item.path.relative_to(_HERE).parts[0]))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    end = os.environ.get(_END_VARIABLE)
    if end and item.get_closest_marker("slow") and time.time() > float(end):
        pytest.skip("the time of CI is over")
