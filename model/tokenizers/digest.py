"""The digest that names a lineage's tokenizers. It needs no torch: who only checks files computes it, too."""

from pathlib import Path

from common.files import digest_folder, digest_json

TEXT_FOLDER, VISUAL_FOLDER, DESCRIPTION_FILE = "text", "visual", "tokenizers.json"


def tokenizers_digest(folder: Path) -> str:
    """One digest over the files of the text and the visual tokenizer."""
    return digest_json({part: digest_folder(folder / part) for part in (TEXT_FOLDER, VISUAL_FOLDER)})
