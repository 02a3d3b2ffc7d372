"""The check before every load: the manifest is signed, and the files are exactly the ones that it lists."""

from collections.abc import Set
from pathlib import Path

from common.errors import SignatureError
from common.files import sha256_file
from serving.package.manifest import MANIFEST_NAME, SIGNATURE_NAME, Manifest, parse_manifest
from serving.package.signing import check_signature

_FIX = "export the package again"


def verify(
    package: Path, key_folder: Path, *, expected_digest: str | None = None, besides: Set[str] = frozenset()
) -> Manifest:
    """Verify a package folder and return its manifest. `besides` are files that may stand there unsigned.

    Raises `SignatureError` where the signature is missing or by an untrusted key, a file is altered, missing or
    not listed, a link stands among the files, or the digest is not `expected_digest`.
    """
    manifest_file, signature_file = package / MANIFEST_NAME, package / SIGNATURE_NAME
    for path in (manifest_file, signature_file):
        if path.is_symlink() or not path.is_file():
            raise SignatureError("the package is not signed: this file is missing", where=str(path), fix=_FIX)
    encoded = manifest_file.read_bytes()
    check_signature(encoded, signature_file.read_bytes(), key_folder)
    manifest = parse_manifest(encoded)
    if expected_digest is not None and manifest.digest != expected_digest:
        raise SignatureError(f"this is package {manifest.digest}, not {expected_digest}", where=str(package), fix=_FIX)
    _check_files(package, manifest, besides)
    return manifest


def _check_files(package: Path, manifest: Manifest, besides: Set[str]) -> None:
    entries = [path for path in package.rglob("*") if path.is_symlink() or not path.is_dir()]
    odd = [path for path in entries if path.is_symlink() or not path.is_file()]
    if odd:
        raise SignatureError("only regular files may stand in a package", where=str(odd[0]), fix=_FIX)
    present = {path.relative_to(package).as_posix() for path in entries} - {MANIFEST_NAME, SIGNATURE_NAME}
    for name in sorted(manifest.files.keys() - present):
        raise SignatureError("a file of the manifest is missing", where=str(package / name), fix=_FIX)
    for name in sorted(present - manifest.files.keys() - besides):
        raise SignatureError("a file that the manifest does not list", where=str(package / name), fix=_FIX)
    for name, digest in sorted(manifest.files.items()):
        if sha256_file(package / name) != digest:
            raise SignatureError("the file was altered after it was signed", where=str(package / name), fix=_FIX)
