"""What it means for two captions to be the same."""

import unicodedata


def normalise_caption(caption: str) -> str:
    """One spelling for captions that say the same: NFKC, case-folded, single spaces, no closing full stop."""
    folded = unicodedata.normalize("NFKC", caption).casefold()
    return " ".join(folded.split()).rstrip(" .")
