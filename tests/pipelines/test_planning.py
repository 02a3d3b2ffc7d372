"""`emuflow plan` through the command line."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.pipelines.chain import Chain


def test_the_best_layouts_and_a_given_one_are_planned_and_drawn(tmp_path: Path):
    chain, picture = Chain(tmp_path / "runs"), tmp_path / "scaling.png"
    size = ("--gpus", "256", "--tokens", "1e12", "--layout", "8,4,8,1,1,full")
    found = json.loads(chain.call("plan", *size, "--plot", str(picture), "--json"))
    assert len(found["best"]) == 5 and all(plan["fits"] for plan in found["best"])
    given = found["given"]
    assert given["layout"]["gpus"] == 256 and given["layout"]["batch"] == 2048
    assert (given["layout"]["engine"], given["layout"]["recompute"]) == ("emuflow", "full")
    assert given["step_s"]["total"] > found["best"][0]["step_s"]["total"]
    assert given["days"] == pytest.approx(1e12 / given["tokens_per_s"] / 86400)
    assert [point["gpus"] for point in found["scaling"]][-3:] == [1024, 2048, 4096]
    with Image.open(picture) as drawn:
        assert drawn.width > 800
    shown = chain.call("plan", *size)
    assert "34.1B parameters" in shown and "stragglers" in shown and "given" in shown
    assert "by the engine emuflow" in shown and "gradients of 4" in shown
    assert not (tmp_path / "runs").exists()


def test_a_best_layout_can_be_given_with_its_zero_stage(tmp_path: Path):
    chain = Chain(tmp_path / "runs")
    best = json.loads(chain.call("plan", "--gpus", "2048", "--json"))["best"]
    sharded = next(each for each in best if each["layout"]["zero"] == 3)
    asked = sharded["layout"]
    text = ",".join(str(asked[name]) for name in ("tensor", "pipeline", "data", "micro_batch", "recompute"))
    assert json.loads(chain.call("plan", "--gpus", "2048", "--layout", f"{text},z3", "--json"))["given"] == sharded


def test_another_engine_is_planned_for_where_it_is_named(tmp_path: Path):
    interleaved = ("plan", "--gpus", "256", "--layout", "8,4,8,1,2,full")
    chain = Chain(tmp_path / "runs")
    given = json.loads(chain.call(*interleaved, "--engine", "megatron", "--json"))["given"]["layout"]
    assert (given["engine"], given["virtual"], given["sequence_parallel"]) == ("megatron", 2, True)
    assert "plan for the engine megatron" in chain.call(*interleaved, code=2)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--preset", "emu9"), "choose one of nano"),
        (("--gpu", "tpu"), "choose one of a100"),
        (("--engine", "other"), "choose one of emuflow"),
        (("--layout", "eight"), "write TENSOR,PIPELINE,DATA"),
        (("--layout", "8,4,32,1,1,1"), "write TENSOR,PIPELINE,DATA"),
        (("--layout", "8,4,32,z1,z2"), "write TENSOR,PIPELINE,DATA"),
        (("--layout", "8,4,32,z2"), "has no ZeRO-2 with pipeline"),
        (("--layout", "8,4,8"), "is not 1024 GPUs"),
        (("--gpus", "8", "--gpu", "a100"), "does not fit 8 A100"),
        (("--gpus", "32", "--layout", "8,4,1,1,3"), "do not divide into 12"),
    ],
)
def test_what_cannot_be_is_wrong_use_and_named(tmp_path: Path, arguments: tuple[str, ...], told: str):
    assert told in Chain(tmp_path / "runs").call("plan", *arguments, code=2)
