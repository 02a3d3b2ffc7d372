"""A base image without a registry: Debian with Python 3.11 out of the packages that this machine can install.

It stands in for `python:3.11-slim-bookworm` where no registry can be reached. Needs root and debootstrap.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from infra.images.engine import EngineError, call

NAME = "localhost/emuflow-base:bookworm"
_PACKAGES = "python3,python3-venv,ca-certificates"
_SUITE = "bookworm"
_MIRROR = "http://deb.debian.org/debian"
"""Unless `APT_MIRROR` names another."""
_NOT_NEEDED = ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale")


def make_base(engine: str, environment: Mapping[str, str]) -> str:
    """Make the image and return its name. Raises `EngineError` where that cannot be done here."""
    if os.getuid() != 0 or shutil.which("debootstrap") is None:
        raise EngineError("a base image without a registry needs root and debootstrap")
    with tempfile.TemporaryDirectory(prefix="emuflow-base-") as name:
        root = Path(name) / "root"
        command = ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", _SUITE, str(root)]
        mirror = os.environ.get("APT_MIRROR") or _MIRROR
        made = subprocess.run([*command, mirror], capture_output=True, text=True, check=False)
        if made.returncode != 0:
            raise EngineError(f"debootstrap: {made.stdout.strip()[-2000:]}")
        for folder in _NOT_NEEDED:
            shutil.rmtree(root / folder, ignore_errors=True)
            (root / folder).mkdir(parents=True, exist_ok=True)
        archive = Path(name) / "root.tar"
        packed = subprocess.run(["tar", "-C", str(root), "-cf", str(archive), "."], capture_output=True, check=False)
        if packed.returncode != 0:
            raise EngineError(f"tar: {packed.stderr.decode(errors='replace').strip()[-2000:]}")
        call(engine, environment, "import", str(archive), NAME)
    return NAME
