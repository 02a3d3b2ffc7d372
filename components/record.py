"""The base of what a step leaves as evidence."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A frozen part of the evidence; unknown keys are refused, non-finite numbers survive reading for the gate to see."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="null")
