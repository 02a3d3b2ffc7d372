"""How a promotion is recorded, how far the pipeline takes one, and whom it needs."""

from typing import Literal

from pydantic import Field

from common.settings import Section
from serving.release.experiments.policy import Policy


class PromotionSettings(Section):
    """Where a candidate is registered, in whose name and how far it is promoted."""

    registered_model: str = Field(
        default="emuflow-generator", min_length=1, description="the registered model in MLflow"
    )
    actor: str | None = Field(default=None, description="who promotes; else the user that runs the step")
    to: Literal["champion", "staging", "candidate"] = Field(
        default="champion",
        description="how far the pipeline takes a PASS; `emuflow promote` goes on from staging, and from candidate, where "
        "it is only registered",
    )
    approval: Literal["none", "person"] = Field(
        default="none",
        description="person: a champion needs `emuflow promote --approve-by NAME --why TEXT`; the pipeline stops at staging",
    )

    canary: Literal["none", "required"] = Field(
        default="none",
        description="required: what replaces a champion must have passed a canary (`emuflow canary`); the pipeline stops "
        "at staging",
    )
    canary_policy: Policy = Field(default=Policy(), description="of canaries that `emuflow canary start` begins")

    @property
    def pipeline_stage(self) -> Literal["champion", "staging", "candidate"]:
        """How far the pipeline goes by itself: nobody approves there, and no user is asked."""
        if self.to == "candidate":
            return "candidate"
        return "staging" if self.approval == "person" or self.canary == "required" else self.to
