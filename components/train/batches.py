"""Which samples a step trains on: a pure function of the seed, the step and the rank."""

import torch

from common.errors import DataError
from components.train.settings import OptimizationSettings
from model.data.shards import Shards, epoch_order
from model.decoding.loop import pack_blocks
from model.objectives.masked import Grids


class BatchSource:
    """Reads a rank's share of every step's batch from memory-mapped shards."""

    def __init__(
        self, shards: Shards, settings: OptimizationSettings, coarse_grid: tuple[int, int], rank: int, ranks: int
    ):
        if settings.global_batch_size % ranks:
            raise ValueError(f"global_batch_size {settings.global_batch_size} is not a multiple of {ranks} ranks")
        self.shards, self.settings, self.coarse_grid = shards, settings, coarse_grid
        self.share = settings.global_batch_size // ranks
        self.rank = rank
        self._order_epoch, self._order = -1, None

    def batch(self, step: int) -> Grids:
        """This rank's samples of one step."""
        first = step * self.settings.global_batch_size + self.rank * self.share
        rows = [self._row(position) for position in range(first, first + self.share)]
        return grids(self.shards, rows, self.coarse_grid)

    def _row(self, position: int) -> int:
        epoch, index = divmod(position, len(self.shards))
        if epoch != self._order_epoch:
            self._order_epoch, self._order = epoch, epoch_order(self.settings.seed, epoch, len(self.shards))
        assert self._order is not None
        return int(self._order[index])


def grids(shards: Shards, rows: list[int], coarse_grid: tuple[int, int]) -> Grids:
    """The named rows as tensors; for a model that has the image's own grid for a sketch, there are no details.

    Raises `DataError` for a model whose grid is neither.
    """
    sketch = shards.layout.coarse_grid
    image = (2 * sketch[0], 2 * sketch[1])
    if coarse_grid not in (sketch, image):
        raise DataError(
            f"the model draws {_size(coarse_grid)} cells; the shards hold sketches of {_size(sketch)} and images of {_size(image)}",
            where="coarse_grid",
            fix="tokenize the data for this grid, or train a model of another one",
        )
    batch = shards.batch(rows)
    text, coarse, fine = (torch.from_numpy(batch[name]) for name in ("text_ids", "coarse", "fine"))
    if coarse_grid == image:
        return Grids(text, fine, torch.empty(len(rows), 0, 4, dtype=torch.long))
    return Grids(text, coarse, torch.from_numpy(pack_blocks(batch["fine"], *coarse_grid)))


def _size(grid: tuple[int, int]) -> str:
    return f"{grid[0]}x{grid[1]}"
