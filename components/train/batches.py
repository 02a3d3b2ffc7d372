"""Which samples a step trains on: a pure function of the seed, the step and the rank."""

from components.train.settings import OptimizationSettings
from model.data.grids import Grids, read_grids
from model.data.shards import Shards, epoch_order
from model.transformer.config import GeneratorConfig


class BatchSource:
    """Reads a rank's share of every step's batch from memory-mapped shards."""

    def __init__(self, shards: Shards, settings: OptimizationSettings, shape: GeneratorConfig, rank: int, ranks: int):
        if settings.global_batch_size % ranks:
            raise ValueError(f"global_batch_size {settings.global_batch_size} is not a multiple of {ranks} ranks")
        self.shards, self.settings, self.shape = shards, settings, shape
        self.share = settings.global_batch_size // ranks
        self.rank = rank
        self._order_epoch, self._order = -1, None

    def batch(self, step: int) -> Grids:
        """This rank's samples of one step."""
        first = step * self.settings.global_batch_size + self.rank * self.share
        rows = [self._row(position) for position in range(first, first + self.share)]
        return read_grids(self.shards, rows, self.shape)

    def _row(self, position: int) -> int:
        epoch, index = divmod(position, len(self.shards))
        if epoch != self._order_epoch:
            self._order_epoch, self._order = epoch, epoch_order(self.settings.seed, epoch, len(self.shards))
        assert self._order is not None
        return int(self._order[index])
