"""What ingest remembers of every sample while it streams, to choose the evaluation set afterwards."""

from typing import Any

import numpy as np
from PIL import Image

from components.near_duplicates import THUMBNAIL_VALUES, thumbnail


class Survey:
    """Per row: id, content digest, caption, shorter side and, where pictures are compared, a thumbnail (768 bytes)."""

    def __init__(self, compare_pictures: bool):
        self.ids: list[str] = []
        self.contents: list[str] = []
        self.captions: list[str] = []
        self.smallest_sides: list[int] = []
        self._thumbnails = bytearray()
        self._compare_pictures = compare_pictures

    def add(self, row: dict[str, Any], pixels: Image.Image) -> None:
        self.ids.append(row["id"])
        self.contents.append(row["content_sha256"])
        self.captions.append(row["text"])
        self.smallest_sides.append(min(pixels.size))
        if self._compare_pictures:
            self._thumbnails += thumbnail(pixels).tobytes()

    @property
    def thumbnails(self) -> np.ndarray:
        """uint8 [rows, 768]"""
        return np.frombuffer(self._thumbnails, dtype=np.uint8).reshape(-1, THUMBNAIL_VALUES)

    def __len__(self) -> int:
        return len(self.ids)
