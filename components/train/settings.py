"""Settings section `training`, and what it has in common with `adaptation`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from common.settings import Section
from model.objectives.settings import MaskingSettings, Objective


class LauncherSettings(Section):
    """Where the ranks of a training run."""

    kind: Literal["processes", "hosts"] = Field(
        default="processes", description="on the step's own machine, or on `hosts` that a remote shell reaches"
    )
    hosts: list[str] = Field(
        default_factory=list,
        description="names for the remote shell; each sees the home and has the environment under the same path, and runs"
        " training.processes ranks; the first one hosts the rendezvous",
    )
    addresses: list[str] = Field(default_factory=list, description="how they reach each other; else by those names")
    interface: str | None = Field(default=None, description="their network interface, where there are several")
    port: int = Field(default=29400, ge=1024, le=65535, description="of the rendezvous, on the first host")
    remote_shell: list[str] = Field(
        default=["ssh", "-o", "BatchMode=yes"], min_length=1, description="runs a command: REMOTE_SHELL HOST COMMAND"
    )

    @model_validator(mode="after")
    def _hosts_are_named(self) -> Self:
        if self.kind == "hosts" and len(self.hosts) < 2:
            raise ValueError(f"kind=hosts needs two or more hosts, not {len(self.hosts)}")
        if self.addresses and len(self.addresses) != len(self.hosts):
            raise ValueError(f"{len(self.addresses)} addresses for {len(self.hosts)} hosts")
        return self


class ParallelSettings(Section):
    """How the ranks share the work; what tensor and pipeline parallel leave of them is data parallel."""

    tensor: int = Field(default=1, ge=1, description="ranks that share every layer; needs optimizer=adamw")
    pipeline: int = Field(default=1, ge=1, description="stages of some layers each; needs optimizer=adamw")
    zero: Literal[0, 1, 2, 3] = Field(
        default=0,
        description="what of the training's state data-parallel ranks share: nothing, the optimizer's (1), gradients too"
        " (2), weights too (3); needs optimizer=adamw, and 2 and 3 one stage",
    )
    activation_checkpointing: bool = Field(
        default=False, description="compute what is inside a block again in the backward pass; takes less memory"
    )
    micro_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        default=None,
        description="images computed at once by a rank; auto: as many as fit its memory, found by trying; null: all of its"
        " share of a step",
    )


class OptimizationSettings(Section):
    """How weights are made better, whatever they start from and are to predict."""

    steps: int = Field(default=1500, ge=1, description="optimizer steps")
    seed: int = Field(default=0, ge=0, description="of the initial weights, the order of the data and the masks")
    processes: int = Field(default=2, ge=1, description="ranks on each machine")
    threads_per_process: int = Field(default=1, ge=1)
    parallel: ParallelSettings = ParallelSettings()
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
    optimizer: Literal["muon", "adamw"] = Field(
        default="muon", description="muon: Muon for the matrices of the blocks and AdamW for the rest; adamw: for all"
    )
    learning_rate: float = Field(
        default_factory=lambda known: 5e-3 if known.get("optimizer") == "muon" else 1e-4,
        gt=0,
        description="of the optimizer; not given: 0.005 with muon, 0.0001 with adamw",
    )
    warmup_steps: int = Field(default=40, ge=0)
    constant_share: float = Field(
        default_factory=lambda known: 0.5 if known.get("optimizer") == "muon" else 0.0,
        ge=0,
        le=1,
        description="share of the steps before the cosine decay begins; not given: 0.5 with muon, 0 with adamw",
    )
    final_learning_rate_ratio: float = Field(default=0.02, ge=0, le=1)
    weight_decay: float = Field(default=0.05, ge=0, description="of the block matrices")
    other_weight_decay: float = Field(default=0.01, ge=0, description="of everything else")
    gradient_clipping: float = Field(default=1.0, gt=0)
    precision: Literal["auto", "bf16", "fp32"] = Field(
        default="auto", description="auto: bf16 autocast where the processor has it"
    )
    compile_blocks: bool = Field(
        default=False,
        description="compile the blocks (torch.compile): faster steps after a minute or two; without a GPU it takes g++",
    )
    masking: MaskingSettings = MaskingSettings()
    checkpoint_every_steps: int = Field(default=200, ge=1, description="how often the state for a resume is saved")
    evaluate_every_steps: int = Field(
        default=0, ge=0, description="how often the held-out loss is computed meanwhile; 0: at the end alone"
    )
    early_stop_after: int = Field(
        default=0, ge=0, description="evaluations in a row without a lower held-out loss that end it; 0: none do"
    )
    states_kept: int = Field(default=2, ge=1, description="states for a resume that are kept, the newest")
    largest_skips: int = Field(
        default=10,
        ge=1,
        description="steps in a row that are skipped for gradients that are not finite, before it ends",
    )
    log_every_steps: int = Field(default=20, ge=1)
    restarts: int = Field(
        default=0, ge=0, description="how often all ranks are started again where one dies, from the newest state"
    )
    step_timeout_s: float = Field(
        default=300, gt=0, description="a collective, or writing a state, that takes longer is a hang"
    )


class TrainingSettings(OptimizationSettings):
    """How a generator is trained."""

    objective: Objective = Field(
        default="parallel",
        description="how the sketch is predicted: all cells at once, or one after another (then the step `adapt` follows)",
    )
    initialize_from: Literal["scratch", "parent"] = Field(
        default="scratch", description="parent: start from the champion's weights"
    )
