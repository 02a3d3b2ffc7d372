"""What an experiment is: its arms with their shares, and its policy."""

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from common.errors import UsageError
from common.files import sha256_bytes
from common.settings import Section
from serving.release.experiments.policy import Policy

Status = Literal["control", "running", "stopped", "passed"]
CHAMPION_ARM, CANARY_ARM = "champion", "canary"
"""The two arms of a canary."""


class Arm(Section):
    """One package and its share of all users; the control has what the challengers leave."""

    name: str = Field(min_length=1, max_length=64)
    digest: str = Field(pattern="^[0-9a-f]{64}$", description="the package's")
    share: float = Field(default=0.0, ge=0, lt=1, description="a challenger's share of all users")
    status: Status = "running"
    step: int = Field(default=0, ge=0, description="where on the ramp it is")
    served: bool = Field(default=True, description="while its model is not served, its users are sent to the control")

    @property
    def live_share(self) -> float:
        """Its share of the users now."""
        return self.share if self.served else 0.0


class Experiment(Section):
    """An experiment as it is at one time. The first arm is the control."""

    name: str = Field(min_length=1, max_length=64)
    salt: str = Field(min_length=8, max_length=64, description="another one assigns every user anew")
    arms: tuple[Arm, ...] = Field(min_length=2)
    policy: Policy = Policy()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len({arm.name for arm in self.arms}) < len(self.arms):
            raise ValueError("two arms have the same name")
        if [arm.status for arm in self.arms].count("control") != 1 or self.arms[0].status != "control":
            raise ValueError("the first arm, and no other one, is the control")
        if self.control.share:
            raise ValueError("the control has no share of its own: it takes what the challengers leave")
        widest = 1 / len(self.challengers)
        for arm in self.challengers:
            if arm.share > widest or math.isclose(arm.share, widest):
                raise ValueError(f"the share of '{arm.name}' must be below {widest:g}: its lane also holds the control")
            if arm.status == "stopped" and arm.share:
                raise ValueError(f"'{arm.name}' was stopped and must have no share")
        return self

    @property
    def control(self) -> Arm:
        return self.arms[0]

    @property
    def challengers(self) -> tuple[Arm, ...]:
        return self.arms[1:]

    def arm(self, name: str) -> Arm:
        """Raises `UsageError` for a name that is no arm's."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        known = ", ".join(arm.name for arm in self.arms)
        raise UsageError(f"there is no arm '{name}'", where=f"experiment '{self.name}'", fix=f"use one of {known}")

    def with_arm(self, changed: Arm) -> Self:
        """The same experiment with `changed` in the place of the arm of its name. Raises `SettingsError`."""
        self.arm(changed.name)
        arms = [(changed if arm.name == changed.name else arm).model_dump() for arm in self.arms]
        return self.parse(self.model_dump() | {"arms": arms}, where=f"experiment '{self.name}'")


def canary(
    name: str,
    *,
    control_digest: str,
    canary_digest: str,
    salt: str | None = None,
    policy: Policy | None = None,
    served: bool = True,
) -> Experiment:
    """An experiment of two arms, `champion` and `canary`, the second one on the first step of the ramp.

    Where its model is not `served` yet, it gets its share once whoever serves it says that it is.
    Without a `salt` the name and the digests decide it, so that another canary, of the same package, too, starts with other
    users.
    """
    policy = policy or Policy()
    content = {
        "name": name,
        "salt": salt or sha256_bytes(f"{name}\n{control_digest}\n{canary_digest}".encode())[:32],
        "arms": [
            {"name": CHAMPION_ARM, "digest": control_digest, "status": "control"},
            {"name": CANARY_ARM, "digest": canary_digest, "share": policy.ramp[0], "served": served},
        ],
        "policy": policy.model_dump(),
    }
    return Experiment.parse(content, where=f"experiment '{name}'")
