"""One training step over any layout, by DeepSpeed, whatever the model: its pipeline engine where there are stages, its plain
one elsewhere."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Literal, Protocol, Self, TypeVar, cast

import deepspeed
import torch
import torch.distributed as dist
import torch.nn.functional as F
from deepspeed.pipe import PipelineModule
from deepspeed.runtime.pipe.topology import PipelineParallelGrid
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn
from torch.optim import Optimizer

from model.parallel.collectives import Group
from model.parallel.compiled import compile_blocks
from model.parallel.guard import GuardedOptimizer
from model.parallel.layout import ParallelLayout
from model.parallel.place import Place
from model.parallel.whole import gather_whole, load_whole, own_piece

MakeOptimizer = Callable[[nn.Module], Optimizer]


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How a model is trained on this rank."""

    layout: ParallelLayout
    seed: int = 0
    """Of initial weights."""
    micro_batch: int
    """Samples that are computed at once."""
    accumulation: int
    """Micro-batches of a step on each data-parallel rank."""
    gradient_clipping: float
    zero: Literal[0, 1, 2, 3] = 0
    """What of the training's state the data-parallel ranks share: nothing, the optimizer's, gradients too, weights too."""
    bf16: bool = False
    checkpointing: bool = False
    """Whether what is inside a block is computed again in the backward pass rather than kept."""
    compiled: bool = False
    """Whether blocks are compiled."""


@dataclass(frozen=True)
class Step:
    """What a training step found."""

    loss: float
    parts: dict[str, float]
    """The losses by name, in nats a token; means over all micro-batches of all ranks."""
    norm: float
    """Of all gradients, before they were clipped."""
    stepped: bool
    """False where a gradient was not finite: no rank has stepped."""


class Batch(Protocol):
    """What a model computes at once."""

    def to(self, device: torch.device) -> Self: ...


BatchT = TypeVar("BatchT", bound=Batch)


class Engine(ABC, Generic[BatchT]):
    """A model on this rank, its step, and what is to be kept of both."""

    def __init__(
        self, place: Place, parts: Sequence[nn.Module], model: nn.Module, options: EngineOptions, optimizer: Optimizer
    ):
        """`parts` are the layers of this rank in their order, with the names of the whole model; all are in `model`."""
        self.place, self.parts, self.options, self.optimizer = place, parts, options, optimizer
        self._guard = _guarded(model, place.grid, options, optimizer) if options.zero == 0 else None
        self.deepspeed: Any = deepspeed.initialize(
            model=model,
            optimizer=optimizer if self._guard is None else self._guard,
            config=_config(options),
            mpu=None if isinstance(model, PipelineModule) else place.grid,
        )[0]
        if options.layout.data == 1 and options.zero == 0:
            # DeepSpeed would copy all gradients into a buffer and back to average them with nobody's.
            self.deepspeed.enable_backward_allreduce = self.deepspeed.pipeline_enable_backward_allreduce = False
        if options.compiled:
            compile_blocks(parts, staged=options.layout.pipeline > 1)

    @abstractmethod
    def train(self, batches: Sequence[BatchT]) -> tuple[float, dict[str, float]]:
        """Train on this data-parallel rank's micro-batches; the loss and its parts, means over all ranks' micro-batches."""

    def step(self, batches: Sequence[BatchT]) -> Step:
        """A training step on this data-parallel rank's micro-batches, `accumulation` of them."""
        loss, parts = self.train(batches)
        if self._guard is not None:
            return Step(loss, parts, self._guard.norm, self._guard.stepped)
        norm = self.deepspeed.get_global_grad_norm()
        return Step(loss, parts, float(norm), not self.deepspeed.optimizer.overflow)

    @abstractmethod
    def evaluate(self, batches: Sequence[BatchT]) -> float:
        """The mean loss of micro-batches, of all data-parallel ranks, with nothing learned; every rank gets it."""

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers of this rank's layers, whole, in fp32, on the ranks that `Place.holds_whole` names; see
        `gather_whole`."""
        return self._gather(self._read)

    def optimizer_state(self) -> dict[str, Tensor]:
        """What the optimizer knows of each parameter of this rank's layers, whole: `KEY:NAME`."""
        return {
            f"{key}:{name}": value
            for key in self._state_keys()
            for name, value in self._gather(partial(self._read_state, key)).items()
        }

    def _gather(self, read: Callable[[Tensor], Tensor | None]) -> dict[str, Tensor]:
        return gather_whole(self.parts, self.place.tensor, read, keep=self.place.data == 0)

    def restore(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        """The way back from `weights` and `optimizer_state`, in whatever layout they were taken."""
        load_whole(self.parts, weights, self.place.tensor, self._write)
        keys = sorted({name.split(":", 1)[0] for name in state})
        if self.options.zero and state:
            self._make_state(keys, state)
        for part in self.parts:
            for name, parameter in part.named_parameters():
                for key in keys:
                    if f"{key}:{name}" in state:
                        piece = own_piece(parameter, state[f"{key}:{name}"], self.place.tensor)
                        self._write_state(key, parameter, piece)

    def _read(self, tensor: Tensor) -> Tensor:
        if self.options.zero and isinstance(tensor, nn.Parameter):
            return cast(Tensor, safe_get_full_fp32_param(tensor))
        return tensor

    def _write(self, target: Tensor, value: Tensor) -> None:
        if self.options.zero == 3 and isinstance(target, nn.Parameter):
            # This is what is stepped on; what is computed with would follow it only at a step.
            safe_set_local_fp32_param(target, self._shard(value))
            with deepspeed.zero.GatheredParameters([target], modifier_rank=self.place.grid.dp_group[0]):
                target.data.copy_(value)
            return
        if self.options.zero and isinstance(target, nn.Parameter):
            safe_set_full_fp32_param(target, value)
        target.copy_(value)

    def _shard(self, value: Tensor) -> Tensor:
        """What ZeRO-3 keeps on this rank: one of equal pieces, the last one filled up."""
        pieces = self.place.layout.data
        return F.pad(value.flatten(), (0, -value.numel() % pieces)).chunk(pieces)[self.place.data]

    def _state_keys(self) -> list[str]:
        return sorted({key for state in self.optimizer.state.values() for key in state})

    def _read_state(self, key: str, tensor: Tensor) -> Tensor | None:
        if not isinstance(tensor, nn.Parameter):
            return None
        if self.options.zero == 0:
            value = self.optimizer.state.get(tensor, {}).get(key)
            return None if value is None else torch.as_tensor(value)
        if key == "step":
            return torch.as_tensor(next(iter(self.optimizer.state.values()))["step"])
        return cast("Tensor | None", safe_get_full_optimizer_state(tensor, key))

    def _write_state(self, key: str, parameter: nn.Parameter, value: Tensor) -> None:
        if self.options.zero == 0:
            self.optimizer.state[parameter][key] = value.to(parameter.device)
        elif key != "step" and self.options.zero == 3:
            safe_set_local_optimizer_state(parameter, self._shard(value), key)
        elif key != "step":
            safe_set_full_optimizer_state(parameter, value, key)

    def _make_state(self, keys: Sequence[str], state: Mapping[str, Tensor]) -> None:
        """ZeRO's flat parameters have no state before their first step: make one to write into."""
        step = next(value for name, value in state.items() if name.startswith("step:"))
        flats = [flat for group in self.optimizer.param_groups for flat in group["params"]]
        if self.options.zero == 3:  # which gives the optimizer one of them at a time
            flats = self.deepspeed.optimizer.fp32_partitioned_groups_flat
        for flat in flats:
            zeros = {key: torch.zeros_like(flat) for key in keys if key != "step"}
            self.optimizer.state[flat] = {"step": step.clone().to(flat.device), **zeros}
        if self.options.zero < 3:
            self.deepspeed.optimizer._lazy_init_hp_params_optimizer_state()


class PlainEngine(Engine[BatchT]):
    """All layers on every rank, whole or cut. The model's forward pass gives a micro-batch's loss, and its parts by name."""

    def train(self, batches: Sequence[BatchT]) -> tuple[float, dict[str, float]]:
        engine, sums = self.deepspeed, _Sums()
        for batch in batches:
            loss, losses = engine(batch.to(engine.device))
            engine.backward(loss)
            engine.step()
            sums.add(loss, losses)
        return self._means(sums, len(batches))

    @torch.no_grad()
    def evaluate(self, batches: Sequence[BatchT]) -> float:
        engine, sums = self.deepspeed, _Sums()
        engine.eval()
        for batch in batches:
            sums.add(*engine(batch.to(engine.device)))
        engine.train()
        return self._means(sums, len(batches))[0]

    def _means(self, sums: "_Sums", batches: int) -> tuple[float, dict[str, float]]:
        """Over the micro-batches of all data-parallel ranks."""
        values = torch.stack(list(sums.values.values())).double()
        if self.place.layout.data > 1:
            dist.all_reduce(values, group=self.place.data_group)
        means = dict(zip(sums.values, (values / batches / self.place.layout.data).tolist(), strict=True))
        return means.pop(_Sums.WHOLE), means


class _Sums:
    """Sums of losses by name, where they were computed: no device is waited for before all are done."""

    WHOLE = ""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    def add(self, loss: Tensor, losses: Mapping[str, Tensor]) -> None:
        for name, value in {self.WHOLE: loss, **losses}.items():
            self.values[name] = self.values.get(name, 0) + value.detach()


def to_rank(model: nn.Module, options: EngineOptions) -> None:
    """Move a model to this rank's device; with ZeRO-3 its buffers alone, as DeepSpeed takes each parameter there in pieces."""
    device = rank_device()
    if options.zero < 3:
        model.to(device)
        return
    for part in model.modules():
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, buffer.to(device))


def rank_device() -> torch.device:
    """This rank's GPU, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


def _guarded(
    model: nn.Module, grid: PipelineParallelGrid, options: EngineOptions, optimizer: Optimizer
) -> GuardedOptimizer:
    shared = options.layout.tensor * options.layout.pipeline > 1
    return GuardedOptimizer(
        optimizer,
        (parameter for parameter in model.parameters() if parameter.requires_grad),
        options.gradient_clipping,
        counts_whole=grid.get_slice_parallel_rank() == 0,
        group=cast(Group, grid.get_model_parallel_group()) if shared else None,
    )


def _config(options: EngineOptions) -> dict[str, Any]:
    guarded = options.zero == 0
    return {
        "train_micro_batch_size_per_gpu": options.micro_batch,
        "gradient_accumulation_steps": options.accumulation,
        # DeepSpeed clips to 1 where it is not told; without ZeRO the guarded optimizer does it.
        "gradient_clipping": 0.0 if guarded else options.gradient_clipping,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": options.zero},
        # Weights, their gradients and their sums over micro-batches and ranks stay fp32: ZeRO would add up those of the layers
        # named here in bf16, of all linear ones unless told otherwise.
        "torch_autocast": {"enabled": options.bf16, "dtype": "bfloat16", "lower_precision_safe_modules": []},
        # Cut in pieces between stages, only one tensor of the activations could need a gradient.
        "pipeline": {"use_reentrant": False, "pipe_partitioned": False, "grad_partitioned": False},
        "steps_per_print": 2**31,
    }
