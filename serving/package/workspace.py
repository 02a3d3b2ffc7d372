"""Where a package is built: a folder inside the package store, so that a rename puts the package in its place."""

import re
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from os import getpid
from pathlib import Path

import psutil

from common.files import remove

_PREFIX = ".building."
_NAME = re.compile(r"\.building\.(?P<host>.+)\.(?P<pid>\d+)\.[0-9a-f]{8}")
_LONGEST_BUILD_S = 24 * 3600.0


@contextmanager
def building_folder(package_store: Path) -> Iterator[Path]:
    """An empty folder in `package_store`, removed at the end; what dead processes left there goes first."""
    package_store.mkdir(parents=True, exist_ok=True)
    for path in package_store.glob(f"{_PREFIX}*"):
        if _is_stale(path):
            remove(path)
    folder = package_store / f"{_PREFIX}{socket.gethostname()}.{getpid()}.{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    try:
        yield folder
    finally:
        remove(folder)


def _is_stale(path: Path) -> bool:
    """Its process is gone; of another machine's process, which cannot be asked, only the folder's age tells."""
    name = _NAME.fullmatch(path.name)
    if name and name["host"] == socket.gethostname() and not psutil.pid_exists(int(name["pid"])):
        return True
    try:
        return time.time() - path.stat().st_mtime > _LONGEST_BUILD_S
    except FileNotFoundError:  # its owner has just removed it
        return False
