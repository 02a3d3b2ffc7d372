"""The tokenizers of a lineage: text and visual together, named by one digest.

Models are comparable by their losses only under the same digest. A retraining reuses its parent's tokenizers
byte for byte; new ones begin a new lineage.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from common.errors import DataError, DigestMismatchError
from common.files import atomic_path, read_json, write_json
from model.tokenizers.digest import DESCRIPTION_FILE as _DESCRIPTION
from model.tokenizers.digest import TEXT_FOLDER as _TEXT
from model.tokenizers.digest import VISUAL_FOLDER as _VISUAL
from model.tokenizers.digest import tokenizers_digest
from model.tokenizers.text import TextTokenizer
from model.tokenizers.visual import VisualTokenizer

_LINEAGE_CHARACTERS = 12


@dataclass(frozen=True)
class TokenizerBundle:
    """What a tokenizers folder holds."""

    text: TextTokenizer
    visual: VisualTokenizer
    digest: str
    """Over the files of both tokenizers, not over the metrics."""
    lineage: str
    """Begins with the first tokenizers of the lineage, and is inherited."""
    metrics: dict[str, float]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Raises `DigestMismatchError` where a file is not the one that `tokenizers.json` names."""
        if not (folder / _DESCRIPTION).is_file():
            raise DataError("no tokenizers here", where=str(folder))
        description = read_json(folder / _DESCRIPTION)
        if tokenizers_digest(folder) != description["digest"]:
            raise DigestMismatchError("the tokenizers are not the ones that were saved", where=str(folder))
        return cls(
            TextTokenizer.load(folder / _TEXT),
            VisualTokenizer.load(folder / _VISUAL),
            description["digest"],
            description["lineage"],
            description["metrics"],
        )


def save_tokenizers(folder: Path, text: TextTokenizer, visual: VisualTokenizer) -> None:
    """Write both tokenizers as the first of a new lineage, without metrics yet."""
    with atomic_path(folder) as temporary:
        text.save(temporary / _TEXT)
        visual.save(temporary / _VISUAL)
        digest = tokenizers_digest(temporary)
        _describe(temporary, digest, digest[:_LINEAGE_CHARACTERS], {})


def record_metrics(folder: Path, metrics: dict[str, float]) -> None:
    """Replace the metrics of saved tokenizers; their digest and lineage stay."""
    description = read_json(folder / _DESCRIPTION)
    _describe(folder, description["digest"], description["lineage"], metrics)


def _describe(folder: Path, digest: str, lineage: str, metrics: dict[str, float]) -> None:
    write_json(folder / _DESCRIPTION, {"digest": digest, "lineage": lineage, "metrics": metrics})
