"""How a promotion is recorded."""

from pydantic import Field

from common.settings import Section


class PromotionSettings(Section):
    """Where a candidate is registered, and in whose name it is promoted."""

    registered_model: str = Field(
        default="emuflow-generator", min_length=1, description="the registered model in MLflow"
    )
    actor: str | None = Field(default=None, description="who promotes; else the user that runs the step")
