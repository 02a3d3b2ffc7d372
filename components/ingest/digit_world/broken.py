"""Samples damaged on purpose: what arrives in real data, so that every run shows how it is handled."""

import io

from PIL import Image

from components.ingest.digit_world.archive import Members

KINDS = ("truncated", "zero_byte", "too_small", "empty_caption", "missing_caption", "not_an_image")
_TOO_SMALL_PIXELS = 6


def damage(kind: str, png: bytes, caption: str, labels: bytes) -> Members:
    """The sample with one thing wrong. `too_small` decodes, and is for curate; ingest quarantines the others."""
    text = caption.encode()
    if kind == "truncated":
        return ("png", png[: len(png) // 2]), ("txt", text), ("json", labels)
    if kind == "zero_byte":
        return ("png", b""), ("txt", text), ("json", labels)
    if kind == "too_small":
        return ("png", _shrink(png)), ("txt", text), ("json", labels)
    if kind == "empty_caption":
        return ("png", png), ("txt", b" \n"), ("json", labels)
    if kind == "missing_caption":
        return ("png", png), ("json", labels)
    if kind == "not_an_image":
        return ("png", b"These bytes are no picture.\n"), ("txt", text), ("json", labels)
    raise ValueError(f"unknown kind of damage: {kind}")


def _shrink(png: bytes) -> bytes:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.resize((_TOO_SMALL_PIXELS, _TOO_SMALL_PIXELS)).save(buffer, "PNG")
    return buffer.getvalue()
