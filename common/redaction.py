"""Settings and messages without the secrets in them.

Whatever is logged, written into a report or shown passes through here: a value under a name that says "secret" and
the password in a URL become `***`.
"""

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
_SECRET_NAME = re.compile(r"passw(or)?d|passphrase|secret|credential|token$|api_?key|access_?key|private_?key", re.I)
_URL_PASSWORD = re.compile(r"""(?P<before>[a-z][a-z0-9+.-]*://[^/\s:@]*:)(?P<password>[^\s'"<>]+)@""", re.I)


def redact(content: Any) -> Any:
    """A copy of JSON-like `content` in which every secret is `***`. Shapes and all other values stay."""
    if isinstance(content, Mapping):
        return {key: _redact_named(str(key), value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [redact(item) for item in content]
    if isinstance(content, str):
        return redact_text(content)
    return content


def redact_text(text: str) -> str:
    """`text` with the password of each URL hidden."""
    return _URL_PASSWORD.sub(rf"\g<before>{HIDDEN}@", text)


def _redact_named(name: str, value: Any) -> Any:
    if _SECRET_NAME.search(name) and value is not None and not isinstance(value, Mapping | bool):
        return HIDDEN
    return redact(value)
