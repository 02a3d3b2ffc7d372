"""The audit log: what was released, refused, approved and taken back, each entry chained to the one before.

An entry's hash is the sha256 of the previous entry's hash and its own content, so that no entry can be altered, removed
or put between without breaking the chain. The last ones could still be cut off: the head, how many entries there are
and the last one's hash, is signed by the key of whoever wrote last (`serving/package/signing.py`), and each machine
keeps a copy of the newest head that it wrote beside its keys (`Witness`). `verification.py` checks all of it.
"""

import datetime
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import sqlalchemy as sa

from common.errors import DiskFullError, SignatureError
from common.files import read_json, sha256_bytes, write_json
from serving.package.signing import check_signature, sign
from serving.release.fingerprints import EMPTY_LOG_HASH, older_than_the_log, origin
from serving.release.tables import AUDIT, HEAD, HEAD_ID, RELEASES

_log = logging.getLogger(__name__)
Action = Literal["opened", "registration", "approval", "promotion", "refusal", "rollback", "rollback completed"]


@dataclass(frozen=True)
class Entry:
    """One row of the log. `content` is canonical JSON; it holds `sequence`, `time`, `action` and what that is about."""

    sequence: int
    previous_hash: str
    hash: str
    content: str

    def parsed(self) -> dict[str, Any]:
        """The content; empty where it is no JSON, which the hash tells, too."""
        try:
            found = json.loads(self.content)
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def part(self, name: str) -> dict[str, Any]:
        """What the content holds under a name; empty where nothing does, or not what belongs there."""
        found = self.parsed().get(name)
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Head:
    """How many entries there are, the last one's hash, and the signature of both in hexadecimal."""

    entries: int
    hash: str
    signature: str | None

    @classmethod
    def read(cls, fields: Any) -> Self:
        """From what a database or an entry holds. Raises `ValueError` where that is no head."""
        match fields:
            case {"entries": int() as entries, "hash": str() as digest, "signature": None | str() as signature}:
                return cls(entries, digest, signature)
        raise ValueError("not the head of an audit log")

    def statement(self) -> bytes:
        """What is signed."""
        return f"emuflow audit head\n{self.entries}\n{self.hash}\n".encode()

    def trouble(self, key_folder: Path) -> str | None:
        """Why this head cannot be trusted, or `None`."""
        if not self.entries:
            return None  # what it names then is held against the rows: see `origin`
        if self.signature is None:
            return "the head is not signed"
        try:
            check_signature(self.statement(), bytes.fromhex(self.signature), key_folder)
        except (SignatureError, ValueError):
            return "the head is not signed by a trusted key"
        return None


class Writer:
    """Appends to the log within one transaction, of which there is only one at a time; `seal` ends it.

    A log that was tampered with is no reason not to release or to roll back: the entry then says what was found, and
    verifying shows it for ever.
    """

    def __init__(self, connection: sa.Connection, key_folder: Path, witness: "Witness"):
        self._connection, self._key_folder = connection, key_folder
        signed = _read_head(connection, lock=True)
        last = next(read_log(connection, newest_first=True, limit=1), None)
        # What this machine wrote and is gone is said before newer heads take the witness's place.
        gone = witness.missing(connection)
        older = _releases(connection) if last is None else []
        self._found = {"found": gone} if gone else _what_was_found(signed, last, older, key_folder)
        self.head = Head(max(signed.entries, last.sequence if last else 0), last.hash if last else EMPTY_LOG_HASH, None)
        if self.head.entries == 0:
            taken_over = signed.hash == origin(older)
            self.write("opened", releases_before=older_than_the_log(older) if taken_over else {})

    def write(self, action: Action, **content: Any) -> None:
        """Append an entry about `content`, which must have a JSON form."""
        sequence = self.head.entries + 1
        described = {"sequence": sequence, "time": now(), "action": action, **content}
        described |= self._found
        self._found = {}
        text = json.dumps(described, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        entry = Entry(sequence, self.head.hash, entry_hash(self.head.hash, text), text)
        self._connection.execute(AUDIT.insert().values(**vars(entry)))
        self.head = Head(sequence, entry.hash, None)

    def seal(self) -> Head:
        """Sign the new head. To be called once, before the transaction is committed."""
        signature = sign(self.head.statement(), self._key_folder).hex()
        self.head = Head(self.head.entries, self.head.hash, signature)
        self._connection.execute(HEAD.update().where(HEAD.c.id == HEAD_ID).values(**vars(self.head)))
        return self.head


class Witness:
    """The newest head of one database that was written from this machine, in a file beside its keys.

    A database that was put back to an earlier state, with a head that was rightly signed then, is found by it.
    """

    def __init__(self, key_folder: Path, url: sa.URL):
        name = sha256_bytes(url.set(password=None).render_as_string().encode())[:16]
        self.file = key_folder / "audit" / f"{name}.json"

    def keep(self, head: Head) -> None:
        """Remember `head`. What was written stands already, so a folder that cannot be written to is only logged."""
        try:
            seen = self.read()
            if seen is None or seen.entries < head.entries:
                write_json(self.file, vars(head))
        except (OSError, DiskFullError) as error:
            _log.warning("the newest head of the audit log is not kept on this machine: %s", error)

    def read(self) -> Head | None:
        try:
            return Head(**read_json(self.file))
        except FileNotFoundError:
            return None

    def missing(self, connection: sa.Connection) -> str | None:
        """What the log has no longer of what this machine wrote, or `None`."""
        seen = self.read()
        if seen is None or not seen.entries:
            return None
        hashes = connection.execute(sa.select(AUDIT.c.hash).where(AUDIT.c.sequence == seen.entries)).scalars().all()
        return None if seen.hash in hashes else f"entry {seen.entries}, which this machine had written, was gone"


def entry_hash(previous_hash: str, content: str) -> str:
    return sha256_bytes(f"{previous_hash}\n{content}".encode())


def read_log(connection: sa.Connection, *, newest_first: bool = False, limit: int | None = None) -> Iterator[Entry]:
    order = AUDIT.c.sequence.desc() if newest_first else AUDIT.c.sequence
    for row in connection.execute(sa.select(AUDIT).order_by(order).limit(limit)).mappings():
        yield Entry(**row)


def read_head(connection: sa.Connection) -> Head:
    return _read_head(connection, lock=False)


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def _read_head(connection: sa.Connection, *, lock: bool) -> Head:
    query = sa.select(HEAD.c.entries, HEAD.c.hash, HEAD.c.signature).where(HEAD.c.id == HEAD_ID)
    row = connection.execute(query.with_for_update() if lock else query).mappings().one_or_none()
    try:
        return Head.read(row)
    except ValueError:
        return Head(-1, "", None)


def _what_was_found(
    head: Head, last: Entry | None, releases: Sequence[Mapping[str, Any]], key_folder: Path
) -> dict[str, Any]:
    """What the next entry says of the log that it is added to; nothing where that is whole. `releases` are all rows, where
    there is no entry.

    A head that is only not trusted here is kept as it is: whoever has its signer's key can tell.
    """
    found = (last.sequence, last.hash) if last else (0, origin(releases))
    if found == (head.entries, head.hash):
        return {"found_head": vars(head)} if head.trouble(key_folder) else {}
    if last is None and head.entries <= 0:
        return {"found": f"it had no entry, and did not begin with the {len(releases)} releases that were there"}
    return {"found": f"the head named {head.entries} entries, but the last one was {found[0]}"}


def _releases(connection: sa.Connection) -> list[Mapping[str, Any]]:
    return [dict(row) for row in connection.execute(sa.select(RELEASES)).mappings()]
