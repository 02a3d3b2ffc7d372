"""The key to a server's model control: whoever has it may load and unload models, whoever has not may ask for images.

Triton takes it as a header of a request. Its load call also takes files (`file:` parameters) in place of those of the
repository, which nobody has verified: only programs that verify first may make it.
"""

import os
import secrets
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from common.errors import ServerError, UsageError

KEY_NAME = "control.key"
_HEADER = "emuflow-control"
_GRPC_PREFIX = "triton-grpc-protocol-"
"""Triton puts it before the header's name where a request comes over gRPC."""
_RESTRICTED = ("model-repository", "model-config", "shared-memory", "trace", "logging")
"""What a client of images has no use for; inference, health, metadata and statistics stay open."""


@dataclass(frozen=True)
class ControlKey:
    """A header and its value."""

    header: str
    value: str = field(repr=False)

    @classmethod
    def new(cls) -> Self:
        return cls(_HEADER, secrets.token_hex(32))

    @classmethod
    def read(cls, file: Path) -> Self:
        """The key in `file`, one line HEADER=VALUE. Raises `UsageError` where the file cannot be read or holds none."""
        try:
            header, _, value = file.read_text().strip().partition("=")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the server's control key cannot be read: {error}", where=str(file)) from error
        if not (header and value and (header + value).isascii() and (header + value).isprintable()):
            raise UsageError(
                "there is no control key in this file",
                where=str(file),
                fix="it holds HEADER=VALUE, as the server's --grpc-restricted-protocol has it after the colon",
            )
        return cls(header, value)

    def write(self, file: Path) -> None:
        """Replace `file`; nobody but its owner can ever read it."""
        temporary = file.parent / f".{file.name}.{uuid.uuid4().hex[:8]}"
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "w") as written:
                written.write(f"{self.header}={self.value}\n")
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)

    @property
    def grpc_headers(self) -> dict[str, str]:
        return {f"{_GRPC_PREFIX}{self.header.lower()}": self.value}

    @property
    def server_flags(self) -> list[str]:
        """What `tritonserver` is started with. It takes them from its command line alone, which others on this machine
        may see."""
        restricted = f"{','.join(_RESTRICTED)}:{self.header}={self.value}"
        return [f"--http-restricted-api={restricted}", f"--grpc-restricted-protocol={restricted}"]


def key_of(folder: Path) -> ControlKey:
    """The key of the server that runs in `folder`. Raises `ServerError` where this process may not have it."""
    try:
        return ControlKey.read(folder / KEY_NAME)
    except UsageError as error:
        raise ServerError(
            "the running server's control key cannot be read",
            where=str(folder / KEY_NAME),
            fix="only the user who started the server can change what it serves",
        ) from error
