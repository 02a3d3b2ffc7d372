"""The whole chain with the step `adapt` in it, through the command line."""

import pytest

from pipelines.steps import steps_of
from tests.pipelines.chain import Chain


@pytest.mark.slow
def test_a_next_token_model_is_adapted_served_and_judged(tmp_path):
    chain = Chain(tmp_path / "home")
    switches = ("--set", "training.objective=next_token", "--set", "adaptation.enabled=true")
    steps = ("--set", "adaptation.steps=10", "--set", "adaptation.global_batch_size=8")
    told = chain.call("run", "--preset", "smoke", *switches, *steps)
    names = steps_of({"adaptation": {"enabled": True}})
    assert {name: chain.step(name)["status"] for name in names} == dict.fromkeys(names, "succeeded")
    assert "adapt" in told and "adapt" in chain.call("status")
    result = chain.step("adapt")["result"]
    assert (result["steps"], result["cost_share"]) == (10, pytest.approx(10 / 30))
    assert result["heldout_loss"] < result["heldout_loss_before"]
    assert chain.status()["last_run"]["verdict"]["result"] == "PASS"
