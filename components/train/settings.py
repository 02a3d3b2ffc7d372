"""Settings section `training`, and what it has in common with `adaptation`."""

from typing import Literal

from pydantic import Field

from common.settings import Section
from model.objectives.settings import MaskingSettings, Objective


class OptimizationSettings(Section):
    """How weights are made better, whatever they start from and are to predict."""

    steps: int = Field(default=1500, ge=1, description="optimizer steps")
    seed: int = Field(default=0, ge=0, description="of the initial weights, the order of the data and the masks")
    processes: int = Field(default=2, ge=1, description="data-parallel ranks on this machine")
    threads_per_process: int = Field(default=1, ge=1)
    global_batch_size: int = Field(default=32, ge=1, description="images a step, over all ranks")
    fine_every_steps: int = Field(default=1, ge=1, description="the detail pass is trained on every n-th step")
    fine_batch_share: float = Field(
        default=0.5, gt=0, le=1, description="share of the batch whose details are trained then"
    )
    fine_loss_weight: float = Field(default=1.0, gt=0)
    plan_loss_weight: float = Field(default=0.6, gt=0)
    plan_frozen_from: float = Field(
        default=0.67, ge=0, le=1, description="share of the steps after which an image's plan stays the same"
    )
    learning_rate: float = Field(default=5e-3, gt=0)
    warmup_steps: int = Field(default=40, ge=0)
    constant_share: float = Field(
        default=0.5, ge=0, le=1, description="share of the steps before the cosine decay begins"
    )
    final_learning_rate_ratio: float = Field(default=0.02, ge=0, le=1)
    weight_decay: float = Field(default=0.05, ge=0, description="of the block matrices (Muon)")
    other_weight_decay: float = Field(default=0.01, ge=0, description="of everything else (AdamW)")
    gradient_clipping: float = Field(default=1.0, gt=0)
    precision: Literal["auto", "bf16", "fp32"] = Field(
        default="auto", description="auto: bf16 autocast where the processor has it"
    )
    masking: MaskingSettings = MaskingSettings()
    checkpoint_every_steps: int = Field(default=200, ge=1, description="how often the state for a resume is saved")
    log_every_steps: int = Field(default=20, ge=1)
    step_timeout_s: float = Field(default=300, gt=0, description="a collective that takes longer is a hang")


class TrainingSettings(OptimizationSettings):
    """How a generator is trained."""

    objective: Objective = Field(
        default="parallel",
        description="how the sketch is predicted: all cells at once, or one after another (then the step `adapt` follows)",
    )
    initialize_from: Literal["scratch", "parent"] = Field(
        default="scratch", description="parent: start from the champion's weights"
    )
