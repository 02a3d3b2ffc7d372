"""From the parts of a sample to a row of the Sample contract, or to the reason why it cannot be one."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from components.images import UnreadableImageError, load
from components.ingest.readers.parts import IMAGE_EXTENSIONS, Parts, Rejected
from components.ingest.settings import LimitSettings
from components.samples import MOST_POSITION, DocumentPlace, image_sample

_CAPTION_KEYS = ("caption", "text", "prompt")


@dataclass(frozen=True)
class Assembled:
    """A row, and its decoded picture for those who compare pictures."""

    row: dict[str, Any]
    pixels: Image.Image


class _QuarantineError(Exception):
    def __init__(self, reason: str, detail: str):
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def assemble(parts: Parts, limits: LimitSettings) -> Assembled | Rejected:
    """Decode every part of a sample and check it. Nothing is repaired: what is not right is rejected, with why."""
    try:
        metadata = _metadata(parts.contents)
        caption = _caption(parts.contents, metadata, limits.max_caption_chars)
        payload = _payload(parts.contents)
        image = load(payload, limits.max_pixels)
        row = image_sample(
            source=parts.source,
            member=parts.member,
            payload=payload,
            caption=caption,
            mime=image.mime,
            width=image.pixels.width,
            height=image.pixels.height,
            license=_license(parts.contents, metadata),
            labels=_labels(parts.contents, metadata),
            place=_place(metadata),
        )
        return Assembled(row, image.pixels)
    except (_QuarantineError, UnreadableImageError) as error:
        return Rejected(parts.source, parts.member, error.reason, error.detail)


def _payload(contents: Mapping[str, bytes]) -> bytes:
    images = [extension for extension in contents if extension in IMAGE_EXTENSIONS or extension == "image"]
    if not images:
        raise _QuarantineError("image_missing", "a caption without an image")
    if len(images) > 1:
        raise _QuarantineError("several_images", f"one sample holds {', '.join(sorted(images))}")
    return contents[images[0]]


def _caption(contents: Mapping[str, bytes], metadata: Mapping[str, Any], max_chars: int) -> str:
    if "txt" in contents:
        caption = _utf8(contents["txt"], "caption").removeprefix("\ufeff").strip()
    else:
        stated = next((metadata[key] for key in _CAPTION_KEYS if isinstance(metadata.get(key), str)), None)
        if stated is None:
            raise _QuarantineError("caption_missing", "neither a .txt nor a caption in a .json")
        caption = stated.strip()
    if not caption:
        raise _QuarantineError("caption_empty", "the caption holds no word")
    if len(caption) > max_chars:
        raise _QuarantineError("caption_too_long", f"{len(caption)} characters, more than {max_chars}")
    return _storable(caption, "caption")


def _metadata(contents: Mapping[str, bytes]) -> Mapping[str, Any]:
    if "json" not in contents:
        return {}
    parsed = _parse(contents["json"], "json")
    if not isinstance(parsed, dict):
        raise _QuarantineError("json_unreadable", f"an object is expected, not {type(parsed).__name__}")
    return parsed


def _labels(contents: Mapping[str, bytes], metadata: Mapping[str, Any]) -> Mapping[str, Any] | None:
    labels = _parse(contents["labels"], "labels") if "labels" in contents else metadata.get("labels")
    if not isinstance(labels, dict):
        return None
    try:
        json.dumps(labels, allow_nan=False)
    except ValueError as error:  # a number such as 1e999 reads as infinity
        raise _QuarantineError("json_unreadable", f"labels: {error}") from None
    return labels


def _place(metadata: Mapping[str, Any]) -> DocumentPlace | None:
    """Where the sample stands in an interleaved document, for metadata with `document_id` and `position`."""
    if "document_id" not in metadata or "position" not in metadata:
        return None
    document, position = metadata["document_id"], metadata["position"]
    if not isinstance(document, str) or not document or type(position) is not int or not 0 <= position <= MOST_POSITION:
        raise _QuarantineError(
            "place_invalid", f"document_id is not a text, or position not a number from 0 to {MOST_POSITION}"
        )
    return DocumentPlace(_storable(document, "document_id"), position)


def _license(contents: Mapping[str, bytes], metadata: Mapping[str, Any]) -> str | None:
    stated = _utf8(contents["license"], "license") if "license" in contents else metadata.get("license")
    return _storable(stated, "license") if isinstance(stated, str) and stated else None


def _parse(content: bytes, name: str) -> Any:
    try:
        return json.loads(_utf8(content, name), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise _QuarantineError("json_unreadable", f"{name}: {error}") from None


def _refuse_constant(constant: str) -> None:
    raise _QuarantineError("json_unreadable", f"{constant} is not JSON")


def _utf8(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _QuarantineError("not_utf8", f"{name}: {error}") from None


def _storable(text: str, name: str) -> str:
    """JSON can spell half a character (`"\\ud800"`), which no table can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _QuarantineError("not_utf8", f"{name}: {error}") from None
    return text
