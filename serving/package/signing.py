"""Ed25519 signatures of manifests, by a local key pair that is made on first use.

A key folder holds `signing.key` (private, mode 0600) and public keys `*.pub`, all of which are trusted: to accept
another team's packages, put its public key there.
"""

import contextlib
import os
import uuid
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from common.errors import SignatureError
from common.files import write_bytes

_PRIVATE_NAME = "signing.key"
_PUBLIC_NAME = "signing.pub"


def sign(content: bytes, key_folder: Path) -> bytes:
    """The 64-byte signature of `content` by the folder's private key, which is made if there is none."""
    return _private_key(key_folder).sign(content)


def check_signature(content: bytes, signature: bytes, key_folder: Path) -> None:
    """Raise `SignatureError` unless one of the folder's public keys made `signature` of `content`."""
    for key in _trusted_keys(key_folder):
        with contextlib.suppress(InvalidSignature):
            key.verify(signature, content)
            return
    raise SignatureError(
        "the signature is not by a trusted key, or the manifest was altered",
        where=str(key_folder),
        fix="export the package again, or put the signer's public key (*.pub) into this folder",
    )


def _private_key(folder: Path) -> Ed25519PrivateKey:
    path = folder / _PRIVATE_NAME
    if not (path.exists() and (folder / _PUBLIC_NAME).exists()):
        _make_key_pair(folder)
    return _load_private_key(path)


def _load_private_key(path: Path) -> Ed25519PrivateKey:
    key = load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError("not an Ed25519 private key", where=str(path))
    return key


def _make_key_pair(folder: Path) -> None:
    """Make what is missing of the key pair; where two processes do this at once, the first one's key stays."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = Ed25519PrivateKey.generate()
    temporary = folder / f".{_PRIVATE_NAME}.{uuid.uuid4().hex[:8]}"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(handle, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        os.fsync(handle)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, folder / _PRIVATE_NAME)
    finally:
        os.close(handle)
        temporary.unlink()
    public = _load_private_key(folder / _PRIVATE_NAME).public_key()
    write_bytes(folder / _PUBLIC_NAME, public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def _trusted_keys(folder: Path) -> list[Ed25519PublicKey]:
    keys = []
    for path in sorted(folder.glob("*.pub")):
        try:
            key = load_pem_public_key(path.read_bytes())
        except ValueError as error:
            raise SignatureError("not a public key in PEM form", where=str(path)) from error
        if not isinstance(key, Ed25519PublicKey):
            raise SignatureError("not an Ed25519 public key", where=str(path))
        keys.append(key)
    return keys
