"""The layouts that are named in the place of one that does not go: each keeps every rule of the settings."""

import re

import pytest

from common.errors import UsageError
from components.train.layouts import check_layout
from model.transformer.config import GeneratorConfig
from tests.components.train.trainings import settings

SHAPE = GeneratorConfig(num_attention_heads=4, num_key_value_heads=4, num_hidden_layers=4)


def named(**changes: object) -> list[dict[str, int]]:
    """The sizes of the layouts that the refusal of these settings names."""
    with pytest.raises(UsageError, match="nearest that go") as refused:
        check_layout("training", settings(**changes), SHAPE, "parallel")
    found = re.findall(r"tensor (\d+) x pipeline (\d+) x data (\d+)", str(refused.value).split("nearest")[1])
    return [dict(zip(("tensor", "pipeline", "data"), map(int, sizes), strict=True)) for sizes in found]


def test_muon_is_not_sent_to_tensor_parallel() -> None:
    assert named(processes=64, global_batch_size=32) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"processes": 64, "global_batch_size": 32},
        {"processes": 12, "global_batch_size": 8, "parallel": {"tensor": 3}},
        {"processes": 16, "global_batch_size": 8, "parallel": {"micro_batch_size": 4}},
        {"processes": 16, "global_batch_size": 8, "parallel": {"zero": 2}},
    ],
)
def test_what_is_named_goes(changes: dict[str, object]) -> None:
    changes = {"optimizer": "adamw", **changes}
    layouts = named(**changes)
    assert layouts
    for layout in layouts:
        parallel = {**changes.get("parallel", {}), "tensor": layout["tensor"], "pipeline": layout["pipeline"]}  # pyright: ignore[reportGeneralTypeIssues]
        share = check_layout("training", settings(**{**changes, "parallel": parallel}), SHAPE, "parallel")
        assert share == settings(**changes).global_batch_size // layout["data"]
