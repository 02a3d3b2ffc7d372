"""A model as the list of layers that DeepSpeed cuts into the stages of a pipeline, and its step."""

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from deepspeed.pipe import LayerSpec, PipelineModule
from deepspeed.runtime.pipe.engine import PipelineEngine
from deepspeed.runtime.pipe.topology import PipelineParallelGrid, ProcessTopology
from torch import Tensor, nn

from model.parallel.engine import BatchT, Engine, EngineOptions, MakeOptimizer
from model.parallel.place import Place

BLOCK_LAYER = "BlockLayer"
"""The class name of layers that are blocks: stages have as many of them each, and theirs are computed again if asked."""


class Stages(PipelineModule):
    """The stages of this process. `part` of a layer is its piece of the model, with the names of the whole.

    The pipeline engine asks `get_additional_losses` for what a step's loss is made of.
    """

    def __init__(self, layers: Sequence[LayerSpec], topology: ProcessTopology, *, checkpointing: bool):
        super().__init__(
            list(layers),
            topology=topology,
            loss_fn=self._loss,
            partition_method=f"type:{BLOCK_LAYER}",
            activation_checkpoint_interval=int(checkpointing),
            checkpointable_layers=[BLOCK_LAYER],
        )
        self._told = OrderedDict[str, Tensor]()

    @abstractmethod
    def losses(self, outputs: Any, labels: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Of a micro-batch: the one that is made smaller, and its parts by name."""

    @property
    def grid(self) -> PipelineParallelGrid:
        return self._grid

    def own_parts(self) -> list[nn.Module]:
        """The parts of the model that this rank has, in their order."""
        return [layer.part for layer in self.forward_funcs if isinstance(layer, nn.Module)]  # pyright: ignore[reportReturnType]

    def _loss(self, outputs: Any, labels: Any) -> Tensor:
        loss, parts = self.losses(outputs, labels)
        self._told = OrderedDict((name, part.detach()) for name, part in parts.items())
        return loss

    def expect(self, names: Sequence[str]) -> None:
        """The losses that the next step has: stages without a head must know how many there are."""
        self._told = OrderedDict((name, torch.zeros(())) for name in names)

    def get_additional_losses(self) -> OrderedDict[str, Tensor]:
        """The last micro-batch's losses by name."""
        return self._told


class StagedEngine(Engine[BatchT]):
    """Some layers on every rank."""

    def __init__(
        self,
        place: Place,
        stages: Stages,
        options: EngineOptions,
        make: MakeOptimizer,
        *,
        feed: Callable[[BatchT], tuple[Any, Any]],
        names: Callable[[BatchT], Sequence[str]],
    ):
        """`feed` gives what the first stage and the last one are given of a micro-batch, `names` its losses."""
        super().__init__(place, stages.own_parts(), stages, options, make(stages))
        assert isinstance(self.deepspeed, PipelineEngine)
        self._stages, self._feed, self._names = stages, feed, names
        self._named: list[str] = []

    def train(self, batches: Sequence[BatchT]) -> tuple[float, dict[str, float]]:
        self._prepare(batches[0])
        loss = self.deepspeed.train_batch(iter([self._feed(batch) for batch in batches]))
        parts = self.deepspeed.agg_additional_losses
        return loss.item(), {name: part.item() for name, part in parts.items()}

    def evaluate(self, batches: Sequence[BatchT]) -> float:
        self._named = []  # the same names may be of more rows
        self._prepare(batches[0])
        fed = iter([self._feed(batch) for batch in batches])
        loss = self.deepspeed.eval_batch(fed, num_micro_batches=len(batches))
        self._named = []
        self._stages.train()
        return loss.item()

    def _prepare(self, batch: BatchT) -> None:
        """Make the pipeline ready for batches like this one."""
        names = list(self._names(batch))
        if names != self._named:  # other tensors pass between the stages
            self._named = names
            self.deepspeed.reset_activation_shape()
        self._stages.expect(names)
