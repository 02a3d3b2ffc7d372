"""Where this rank stands in a layout, and whom it talks to."""

from dataclasses import dataclass
from datetime import timedelta
from typing import cast

import torch.distributed as dist
from deepspeed.runtime.pipe.topology import PipelineParallelGrid, PipeModelDataParallelTopology
from torch.distributed import distributed_c10d

from model.parallel.collectives import Group
from model.parallel.layout import ParallelLayout
from model.parallel.tensor import TensorRanks


@dataclass(frozen=True)
class Place:
    """A rank's place."""

    layout: ParallelLayout
    topology: PipeModelDataParallelTopology
    grid: PipelineParallelGrid
    tensor: TensorRanks | None
    """The ranks that share its layers; None where it has them to itself."""

    @property
    def stage(self) -> int:
        return self.grid.get_stage_id()

    @property
    def data(self) -> int:
        """Which of the data-parallel replicas it belongs to."""
        return self.grid.get_data_parallel_rank()

    @property
    def data_group(self) -> Group:
        """The ranks that have the same layers and see other samples."""
        return cast(Group, self.grid.get_data_parallel_group())

    @property
    def holds_whole(self) -> bool:
        """Whether this rank is given the whole tensors of its layers, and no other rank the same ones."""
        return self.data == 0 and (self.tensor is None or self.tensor.rank == 0)


def take_place(layout: ParallelLayout) -> Place:
    """This rank's place. All ranks call it: they make all groups, in one order."""
    topology = PipeModelDataParallelTopology(num_pp=layout.pipeline, num_mp=layout.tensor, num_dp=layout.data)
    return Place(layout, topology, PipelineParallelGrid(topology), _join_tensor_group(topology, layout))


def _join_tensor_group(topology: PipeModelDataParallelTopology, layout: ParallelLayout) -> TensorRanks | None:
    if layout.tensor == 1:
        return None
    own = None
    for ranks in topology.get_axis_comm_lists("model"):
        group = dist.new_group(ranks)
        if dist.get_rank() in ranks:
            assert isinstance(group, dist.ProcessGroup)
            own = TensorRanks(group, ranks.index(dist.get_rank()), layout.tensor)
    assert own is not None, "every rank is in one of them"
    return own


def limit_waiting(timeout_s: float) -> None:
    """No collective of any group waits longer: DeepSpeed makes its groups with torch's own limit, half an hour."""
    for group in list(distributed_c10d._world.pg_map):
        distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_s), group)
