"""Filters: each looks at one sample and gives the reason to drop it, or None."""

from typing import Protocol

from PIL import Image

EXACT_DUPLICATE = "exact_duplicate"
TOO_SMALL = "too_small"
UNDECODABLE = "undecodable"


class Filter(Protocol):
    """`tier` groups filters by what they cost and what they look at; it stands in the dropped table."""

    tier: str

    def reason(self, content_sha256: str, pixels: Image.Image) -> str | None: ...


class ExactDuplicateFilter:
    """Drops every content but the first of its kind."""

    tier = "exact"

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def reason(self, content_sha256: str, pixels: Image.Image) -> str | None:
        if content_sha256 in self._seen:
            return EXACT_DUPLICATE
        self._seen.add(content_sha256)
        return None


class SizeFilter:
    """Drops images whose shorter side has fewer pixels than `minimum_side`."""

    tier = "quality"

    def __init__(self, minimum_side: int) -> None:
        self._minimum_side = minimum_side

    def reason(self, content_sha256: str, pixels: Image.Image) -> str | None:
        return TOO_SMALL if min(pixels.size) < self._minimum_side else None
