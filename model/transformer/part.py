"""Which layers of a model a process holds: all, or those of one stage of a pipeline."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """Some consecutive layers of a decoder."""

    stem: bool
    """The embeddings, before the first block."""
    first: int
    """The number of its first block."""
    blocks: int | None
    """How many blocks it has; None: all to the last."""
    head: bool
    """What reads the last block."""

    def layers(self, total: int) -> range:
        """The numbers of its blocks, of `total` in the model."""
        return range(self.first, total if self.blocks is None else self.first + self.blocks)


WHOLE = Part(stem=True, first=0, blocks=None, head=True)
STEM = Part(stem=True, first=0, blocks=0, head=False)
HEAD = Part(stem=False, first=0, blocks=0, head=True)


def one_block(number: int) -> Part:
    return Part(stem=False, first=number, blocks=1, head=False)
