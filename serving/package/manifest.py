"""What a package says of itself: every file's sha256 and where it came from.

The manifest's own sha256 is the package's digest, which is the model's identity everywhere. The same content gives
the same digest: there is no time and no path in it.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.errors import SignatureError
from common.files import files_under, sha256_bytes, sha256_file

MANIFEST_NAME = "manifest.json"
SIGNATURE_NAME = "manifest.sig"
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """From what, and by which code, a package was made. Digests are sha256 in hexadecimal."""

    run_id: str
    preset: str
    git_commit: str
    image_digest: str | None
    """Digest of the container image of the steps; `None` outside containers."""
    data_digest: str
    """The curated table's."""
    evaluation_digest: str
    tokenizers_digest: str
    settings_digest: str
    parent_package: str | None
    """Digest of the champion that the run started from; `None` for the first of a lineage."""
    server_image_digest: str | None = None
    """Digest of the image that exported and measured it; `None` outside containers."""


@dataclass(frozen=True)
class Manifest:
    """A parsed manifest with the digest of its bytes."""

    digest: str
    precision: str
    """`int8` or `fp32`."""
    provenance: Provenance
    files: dict[str, str]
    """Relative POSIX path to sha256, of every file but the manifest and its signature."""


def write_manifest(package: Path, provenance: Provenance, precision: str) -> bytes:
    """Write `package/manifest.json` over the files that are there; returns its bytes."""
    content = {
        "format": _FORMAT,
        "precision": precision,
        "provenance": asdict(provenance),
        "files": {path.relative_to(package).as_posix(): sha256_file(path) for path in files_under(package)},
    }
    encoded = (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
    (package / MANIFEST_NAME).write_bytes(encoded)
    return encoded


def parse_manifest(encoded: bytes) -> Manifest:
    """Parse a manifest's bytes. Raises `SignatureError` where they are not a manifest of this format."""
    try:
        content: dict[str, Any] = json.loads(encoded)
        if content["format"] != _FORMAT:
            raise SignatureError(f"manifest format {content['format']!r} is not {_FORMAT}", where=MANIFEST_NAME)
        return Manifest(
            digest=sha256_bytes(encoded),
            precision=content["precision"],
            provenance=Provenance(**content["provenance"]),
            files=dict(content["files"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise SignatureError(f"not a package manifest ({type(error).__name__})", where=MANIFEST_NAME) from error


def read_manifest(package: Path) -> Manifest:
    """The manifest of a package folder, unverified: for showing, never for loading."""
    path = package / MANIFEST_NAME
    if not path.is_file():
        raise SignatureError("the package has no manifest", where=str(path), fix="export it again")
    return parse_manifest(path.read_bytes())
