"""Which captions of the digit world are never trained on.

The choice is a hash of the caption alone: no seed, no number of scenes and no order of files changes it, so every
lineage holds out the same captions.
"""

import hashlib

from components.captions import normalise_caption

_ONE_IN = 10


def is_evaluation_caption(caption: str) -> bool:
    """Whether this caption belongs to the evaluation set: about one in ten of all captions."""
    digest = hashlib.sha256(normalise_caption(caption).encode()).digest()
    return int.from_bytes(digest[:8], "big") % _ONE_IN == 0
