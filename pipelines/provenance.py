"""What made a run: the commit, the code's digest, the image."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.files import digest_json
from common.redaction import redact
from pipelines.settings import Settings

CHECKOUT = Path(__file__).resolve().parent.parent
_CODE_FOLDERS = ("common", "components", "model", "pipelines", "serving")
_CODE_SUFFIXES = {".py", ".yaml", ".j2", ".html", ".pbtxt"}


def describe_run(settings: Settings, preset: str, parent_package: str | None) -> dict[str, Any]:
    """What a package's `Provenance` holds and no step knows: code, settings, and the champion that the run started
    from."""
    return {
        "preset": preset,
        "git_commit": git_commit(),
        **image_digests(),
        "settings_digest": settings_digest(redact(settings.model_dump(mode="json"))),
        "parent_package": parent_package,
    }


def settings_digest(settings: Mapping[str, Any]) -> str:
    """Of resolved settings without secrets, as a run keeps them. Where a run works (`platform`) is no part of what it
    makes, and a resumed run may have moved."""
    return digest_json({name: section for name, section in settings.items() if name != "platform"})


def settings_are(settings: Mapping[str, Any], digest: str) -> bool:
    """Whether a package names these settings. Those from before `platform` was left out name the whole."""
    return digest in (settings_digest(settings), digest_json(settings))


def git_commit() -> str:
    """The checkout's commit, `-dirty` where files differ from it; in an image, what it was built from."""
    if built_from := os.environ.get("EMUFLOW_GIT_COMMIT"):
        return built_from
    if not shutil.which("git") or not (CHECKOUT / ".git").exists():
        return "unknown"
    commit = _git("rev-parse", "HEAD")
    return f"{commit}-dirty" if commit and _git("status", "--porcelain") else commit or "unknown"


def code_digest() -> str:
    """sha256 over the application's source: a run that is resumed repeats its steps when this has changed."""
    digest = hashlib.sha256()
    for folder in _CODE_FOLDERS:
        for path in sorted((CHECKOUT / folder).rglob("*")):
            if path.suffix in _CODE_SUFFIXES and path.is_file():
                digest.update(f"{path.relative_to(CHECKOUT).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def image_digests() -> dict[str, str | None]:
    """Digests of the steps' image and of the server's, as `Provenance` names them; `None` outside containers."""
    variables = {"image_digest": "EMUFLOW_IMAGE", "server_image_digest": "EMUFLOW_TRITON_IMAGE"}
    return {name: os.environ.get(variable, "").partition("@")[2] or None for name, variable in variables.items()}


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(CHECKOUT), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
