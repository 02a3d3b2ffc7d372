"""The optimizers, Muon for the matrices of the blocks and AdamW for everything else, and the learning-rate schedule."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from components.train.settings import OptimizationSettings

_PLAN_ENCODER = "plan.encoder"


class PartedOptimizer(torch.optim.Optimizer):
    """Some optimizers that step as one, so that DeepSpeed sees a single client optimizer; they share one `state`."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]):
        self.parts = list(parts)
        super().__init__(
            [{"params": [p for part in parts for group in part.param_groups for p in group["params"]]}], {}
        )
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        for part in self.parts:
            part.state = self.state

    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for part in self.parts:
            part.step(closure)


def make_optimizer(model: nn.Module, settings: OptimizationSettings) -> torch.optim.Optimizer:
    """`settings.optimizer` over the parameters of `model`, in groups that `set_learning_rate` knows.

    Muon (Jordan et al. 2024) orthogonalises the momentum of a matrix; its step is scaled to AdamW's root mean square, so
    that both share one learning rate (Liu et al. 2025, "Muon is Scalable for LLM Training"). A matrix must be whole for it.
    """
    matrices, plan_encoder, others = split_parameters(model)
    decays = [(others, settings.other_weight_decay, False), (plan_encoder, settings.other_weight_decay, True)]
    if settings.optimizer == "adamw":
        decays.append((matrices, settings.weight_decay, False))
    groups = [
        {"params": parameters, "weight_decay": decay, _PLAN_ENCODER: of_plan}
        for parameters, decay, of_plan in decays
        if parameters
    ]
    adamw = torch.optim.AdamW(groups, settings.learning_rate, betas=(0.9, 0.95), fused=True)
    if settings.optimizer == "adamw":
        return adamw
    muon = torch.optim.Muon(
        matrices,
        settings.learning_rate,
        weight_decay=settings.weight_decay,
        momentum=0.95,
        adjust_lr_fn="match_rms_adamw",
    )
    return PartedOptimizer([adamw, muon])


def set_learning_rate(
    optimizer: torch.optim.Optimizer, learning_rate: float, plan_encoder: float | None = None
) -> None:
    """`plan_encoder` is the rate of the plan's encoder, if another; at 0 neither momentum nor weight decay moves it."""
    for group in optimizer.param_groups:
        own = plan_encoder if group.get(_PLAN_ENCODER) else None
        group["lr"] = learning_rate if own is None else own


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
