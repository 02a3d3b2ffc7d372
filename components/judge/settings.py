"""The recipe of the judge."""

from pydantic import Field

from common.settings import Section


class JudgeSettings(Section):
    """The recipe of the judge. It names the judge: another recipe is another judge."""

    scenes: int = Field(default=4000, ge=100, description="scenes of judge digits that its crops are cut from")
    jitter: float = Field(default=1.5, gt=0, le=3, description="of size, angle and place, relative to the real scenes")
    steps: int = Field(default=600, ge=1)
    batch: int = Field(default=96, ge=8, description="crops of a step")
    occupied_share: float = Field(default=0.75, gt=0, lt=1, description="crops of a batch that hold a digit")
    width: int = Field(default=16, ge=4, description="channels of the first convolution")
    learning_rate: float = Field(default=5e-3, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    label_smoothing: float = Field(default=0.05, ge=0, lt=1)
    seed: int = 11
    test_scenes: int = Field(default=2000, ge=100, description="scenes of test digits that measure the judge itself")
    min_accuracy: float = Field(default=0.97, ge=0, le=1, description="a judge that reads worse may judge nobody")
