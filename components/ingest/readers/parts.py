"""What every reader gives: the parts of one sample, or why there is none."""

from dataclasses import dataclass

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp"})
TEXT_EXTENSIONS = frozenset({"txt", "json"})


@dataclass(frozen=True)
class Parts:
    """The raw parts of one sample, by extension. `source` is the file's path within the data, `member` its name there."""

    source: str
    member: str
    contents: dict[str, bytes]


@dataclass(frozen=True)
class Rejected:
    """A sample, or a whole file (`member` is empty), that could not be read."""

    source: str
    member: str
    reason: str
    detail: str
