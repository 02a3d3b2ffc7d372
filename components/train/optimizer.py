"""Muon for the matrices of the blocks, AdamW for everything else, and their learning-rate schedule."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from components.train.settings import OptimizationSettings

_PLAN_ENCODER = "plan.encoder"


class MuonWithAdamW(torch.optim.Optimizer):
    """Two optimizers that step as one, so that DeepSpeed sees a single client optimizer.

    Muon (Jordan et al. 2024) orthogonalises the momentum of a matrix; its step is scaled to AdamW's root mean
    square, so that both share one learning rate (Liu et al. 2025, "Muon is Scalable for LLM Training").
    """

    def __init__(self, model: nn.Module, settings: OptimizationSettings):
        matrices, plan_encoder, others = split_parameters(model)
        groups = [{"params": others}, *([{"params": plan_encoder, _PLAN_ENCODER: True}] if plan_encoder else [])]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                groups, settings.learning_rate, betas=(0.9, 0.95), weight_decay=settings.other_weight_decay, fused=True
            ),
            torch.optim.Muon(
                matrices,
                settings.learning_rate,
                weight_decay=settings.weight_decay,
                momentum=0.95,
                adjust_lr_fn="match_rms_adamw",
            ),
        ]
        super().__init__([{"params": matrices + plan_encoder + others}], {"lr": settings.learning_rate})
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for part in self.parts:
            part.step(closure)

    def set_learning_rate(self, learning_rate: float, plan_encoder: float | None = None) -> None:
        """`plan_encoder` is the rate of the plan's encoder, if another; at 0 neither momentum nor weight decay moves it."""
        for group in self.param_groups:
            own = plan_encoder if group.get(_PLAN_ENCODER) else None
            group["lr"] = learning_rate if own is None else own

    def tensors(self) -> dict[str, Tensor]:
        """All state as flat tensors named `part.parameter.key`, for safetensors."""
        flat: dict[str, Tensor] = {}
        for part_index, part in enumerate(self.parts):
            for parameter_index, state in part.state_dict()["state"].items():
                for key, value in state.items():
                    flat[f"{part_index}.{parameter_index}.{key}"] = torch.as_tensor(value)
        return flat

    def load_tensors(self, flat: dict[str, Tensor]) -> None:
        """The inverse of `tensors`."""
        for part_index, part in enumerate(self.parts):
            state: dict[int, dict[str, Any]] = {}
            for name, value in flat.items():
                owner, parameter_index, key = name.split(".", 2)
                if int(owner) == part_index:
                    state.setdefault(int(parameter_index), {})[key] = value
            part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """The matrices inside the blocks, the plan's encoder, and all other parameters."""
    matrices, plan_encoder, others = [], [], []
    for name, parameter in model.named_parameters():
        if f".{_PLAN_ENCODER}." in f".{name}":
            plan_encoder.append(parameter)
        elif ".blocks." in f".{name}" and parameter.ndim == 2:
            matrices.append(parameter)
        else:
            others.append(parameter)
    return matrices, plan_encoder, others


def learning_rate_at(step: int, settings: OptimizationSettings) -> float:
    """Linear warm-up, constant until `constant_share` of the steps, then a cosine to the final ratio."""
    warm = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    start = settings.constant_share
    progress = (step / settings.steps - start) / (1 - start) if start < 1 else 0.0
    floor = settings.final_learning_rate_ratio
    decay = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
    return settings.learning_rate * warm * decay


def use_bf16(settings: OptimizationSettings) -> bool:
    """Whether training computes in bf16 autocast: as the settings say, and by default where the processor has it."""
    if settings.precision != "auto":
        return settings.precision == "bf16"
    return torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()
