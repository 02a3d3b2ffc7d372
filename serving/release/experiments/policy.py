"""The policy of an experiment: how much worse an arm may be, how sure we want to be, and how fast it may grow."""

from typing import Self

from pydantic import Field, model_validator

from common.settings import Section


class Policy(Section):
    """A metric is looked at where its margin is set; a margin is how much worse than the control an arm may be."""

    alpha: float = Field(default=0.05, gt=0, lt=0.5, description="chance to stop an arm that is not too bad, ever")
    alpha_pass: float = Field(default=0.05, gt=0, lt=0.5, description="chance to pass an arm that is too bad, ever")
    error_margin: float | None = Field(default=0.005, ge=0, lt=1, description="share of failed requests, difference")
    latency_ratio: float | None = Field(default=1.10, ge=1, le=3, description="latency, geometric means, arm / control")
    slow_ms: float | None = Field(default=None, gt=0, description="a request that takes longer is a slow one")
    slow_margin: float | None = Field(default=None, ge=0, lt=1, description="share of slow requests, difference")
    vote_margin: float | None = Field(default=None, ge=0, lt=1, description="share of bad votes, difference")

    min_users: int = Field(default=50, ge=2, description="in each arm: with fewer an arm neither passes nor grows")
    requests_per_user: int = Field(default=10, ge=1, description="the first ones of a user's window that count")
    window_s: float = Field(default=30.0, ge=0, description="requests so long after a user's first one count with it")
    settle_s: float = Field(default=35.0, ge=0, description="until a request's outcome is surely written")
    recount_after_s: float | None = Field(
        default=3600.0, gt=0, description="a returning user is compared with their own past so often; null: never"
    )
    failure_latency_ms: float = Field(default=30_000.0, gt=0, description="what a failed request counts as in latency")
    ramp: tuple[float, ...] = Field(
        default=(0.05, 0.2, 0.5), min_length=1, description="the arm's share of all users, step by step"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.slow_ms is None) != (self.slow_margin is None):
            raise ValueError("slow_ms and slow_margin go together")
        if not self.margins:
            raise ValueError("no metric has a margin: set error_margin or another one")
        if list(self.ramp) != sorted(set(self.ramp)) or not 0 < self.ramp[0] <= self.ramp[-1] < 1:
            raise ValueError("ramp must rise from above 0 to below 1: one who gets no control cannot be compared")
        return self

    @property
    def margins(self) -> dict[str, float]:
        """The margin of each metric that is looked at. That of latency is of the ratio."""
        named = {
            "error_rate": self.error_margin,
            "latency_ratio": self.latency_ratio,
            "slow_share": self.slow_margin,
            "bad_vote_share": self.vote_margin,
        }
        return {name: margin for name, margin in named.items() if margin is not None}
