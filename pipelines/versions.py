"""How a model is named on a command line: by its version's number in the registry, or by its package's digest."""

import re

_NUMBER = re.compile(r"[0-9]{1,7}")
_DIGEST = re.compile(r"[0-9a-f]{8,64}")


def is_number(name: str) -> bool:
    return _NUMBER.fullmatch(name) is not None


def is_digest(name: str) -> bool:
    """A whole digest, or its first characters, 8 at least: fewer would soon mean more than one package."""
    return _DIGEST.fullmatch(name) is not None
