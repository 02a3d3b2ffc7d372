"""Names and digests of release rows: what the audit log holds each row against."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from common.files import sha256_bytes

EMPTY_LOG_HASH = "0" * 64
"""What the first entry of the audit log follows."""


def fingerprint(row: Mapping[str, Any]) -> str:
    """sha256 over every column of a release row. One that somebody filled with what is no text has another, too."""
    text = json.dumps(dict(row), sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=repr)
    return sha256_bytes(text.encode(errors="surrogatepass"))


def name_of(stage: str, sequence: int) -> str:
    """How a release row is named in messages: `champion #3`."""
    return f"{stage} #{sequence}"


def older_than_the_log(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Fingerprints, by name, of the rows that can be: `action` came with the log."""
    return {name_of(row["stage"], row["sequence"]): fingerprint(row) for row in rows if row["action"] is None}


def origin(rows: Iterable[Mapping[str, Any]]) -> str:
    """What the head of a log names that has no entry yet: the rows that were taken over from before the log. It is not
    signed, since who only reads takes a database over, too; the first entry is."""
    prints = sorted(f"{name_of(row['stage'], row['sequence'])} {fingerprint(row)}" for row in rows)
    return sha256_bytes("\n".join(prints).encode(errors="surrogatepass")) if prints else EMPTY_LOG_HASH
