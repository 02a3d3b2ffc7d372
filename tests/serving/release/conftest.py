"""Databases of the release store: SQLite always, PostgreSQL where this machine has its programs and a driver."""

import getpass
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

UNPRIVILEGED = "nobody"
"""PostgreSQL does not run as root."""


@pytest.fixture
def release_keys(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}"


@pytest.fixture
def postgresql_url() -> Iterator[str]:
    """An empty database of a private cluster on a Unix socket, or a skipped test that says what is missing."""
    initdb, postgres = _program("initdb"), _program("postgres")
    if initdb is None or postgres is None:
        pytest.skip("this machine has no PostgreSQL: neither initdb and postgres on PATH nor under /usr/lib/postgresql")
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("no driver of PostgreSQL is installed: pip install 'psycopg[binary]'")
    folder = Path(tempfile.mkdtemp(prefix="emuflow-pg-", dir="/tmp"))  # a socket's path may not be long
    user = UNPRIVILEGED if os.geteuid() == 0 else getpass.getuser()
    who = {"user": user, "group": pwd.getpwnam(user).pw_gid} if os.geteuid() == 0 else {}
    if who:
        shutil.chown(folder, user)
    try:
        data, log = folder / "data", folder / "log"
        subprocess.run(
            [initdb, "-D", data, "-A", "trust", "-U", "emuflow", "--no-sync"],
            check=True, capture_output=True, cwd=folder, **who,
        )  # fmt: skip
        with log.open("w") as output:
            server = subprocess.Popen(
                [postgres, "-D", data, "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off"],
                stdout=output, stderr=output, cwd=folder, **who,
            )  # fmt: skip
        try:
            _wait_for(folder / ".s.PGSQL.5432", server, log)
            yield f"postgresql+psycopg://emuflow@/postgres?host={folder}"
        finally:
            server.terminate()
            server.wait(timeout=30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _program(name: str) -> str | None:
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(installed[-1]) if installed else None)


def _wait_for(socket: Path, server: subprocess.Popen, log: Path, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not (socket.exists() and "ready to accept connections" in log.read_text()):
        assert server.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
