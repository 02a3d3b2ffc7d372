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

_PRIVATE_NAME = "signing.key"
_PUBLIC_NAME = "signing.pub"


def sign(content: bytes, key_folder: Path) -> bytes:
    """The 64-byte signature of `content` by the folder's private key. A pair is made where the folder has neither key.

    Raises `SignatureError` where it has the public key alone.
    """
    return _private_key(key_folder).sign(content)


def check_can_sign(key_folder: Path) -> None:
    """Raise `SignatureError` where `sign` would: for whoever must know before anything is written."""
    # In this order: a pair that another process makes has its private key before its public one.
    if (key_folder / _PUBLIC_NAME).exists() and not (key_folder / _PRIVATE_NAME).exists():
        raise SignatureError(
            f"nothing can be signed here: of the key pair only {_PUBLIC_NAME}, the public key, is there",
            where=str(key_folder / _PRIVATE_NAME),
            fix="do this on the machine that has the private key, or put that key back. To sign with a key of this "
            f"machine's own, rename {_PUBLIC_NAME} (pipeline.pub, say: what it signed stays trusted), and give the new "
            f"{_PUBLIC_NAME} to whoever is to trust it",
        )


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
    """Made with its public key where there is neither; a public key that is missing is derived from it."""
    check_can_sign(folder)
    private, public = folder / _PRIVATE_NAME, folder / _PUBLIC_NAME
    if not private.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = Ed25519PrivateKey.generate()
        _create(private, new.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=0o600)
    key = _load_private_key(private)
    if not public.exists():
        _create(public, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), mode=0o644)
    return key


def _load_private_key(path: Path) -> Ed25519PrivateKey:
    key = load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError("not an Ed25519 private key", where=str(path))
    return key


def _create(path: Path, content: bytes, *, mode: int) -> None:
    """Whole or absent, and never in the place of a file that is there: of two processes at once the first one's stays.

    It is on the disk when this returns, so that no end of the machine leaves a public key without its private one.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        os.write(handle, content)
        os.fsync(handle)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        os.close(handle)
        temporary.unlink()
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
