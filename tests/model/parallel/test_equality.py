"""One training is the same training in every layout, and no word between its ranks can be left out."""

from itertools import product
from pathlib import Path

import pytest

from tests.model.parallel.results import Layout, displacement, distance, name, parameters, run_worlds, steps_of, whole
from tests.model.parallel.training import Job

LAYOUTS = [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 1), (1, 2, 2), (2, 2, 2)]
OBJECTIVES = ("parallel", "next_token")
STEPS = 20
TENSOR_PLACES = (
    "attention input",
    "attention output",
    "query norm",
    "key norm",
    "feed-forward input",
    "feed-forward output",
    "embedding",
    "table",
    "table levels",
    "head",
    "loss maximum",
    "loss normaliser",
    "loss target",
    "loss smoothing",
    "gradient norm",
)
OMISSIONS = [
    *(((2, 1, 1), place) for place in TENSOR_PLACES),
    ((1, 2, 1), "gradient norm"),
    ((1, 1, 2), "data-parallel gradients"),
    ((1, 2, 2), "data-parallel gradients"),
]
VARIANTS = [
    ((1, 1, 1), "checkpointing", {"checkpointing": True}),
    ((1, 2, 1), "checkpointing", {"checkpointing": True}),
    ((1, 1, 2), "ZeRO-1", {"zero": 1}),
    ((1, 1, 2), "ZeRO-2", {"zero": 2}),
    ((1, 1, 2), "ZeRO-3", {"zero": 3}),
    ((1, 2, 2), "ZeRO-1", {"zero": 1}),
    ((2, 2, 2), "ZeRO-1", {"zero": 1}),
]
"""Ways to save memory, which change no number either."""
GRADIENTS, DISPLACEMENT = 1e-5, 1e-3
"""Relative L2: of the first step's gradients, and of what the weights have moved by after `STEPS` steps."""


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of all trainings, by layout and job."""
    return run_worlds(tmp_path_factory.mktemp("worlds"), [(layout, jobs_of(layout)) for layout in LAYOUTS])


def jobs_of(layout: Layout) -> list[Job]:
    return [
        *(Job(f"first step, {objective}", objective) for objective in OBJECTIVES),
        *(Job(f"all steps, {objective}", objective, steps=STEPS, frozen=True) for objective in OBJECTIVES),
        *(
            Job(variant, "parallel", steps=STEPS, frozen=True, **changes)
            for where, variant, changes in VARIANTS
            if where == layout
        ),
        *(Job(f"without {place}", "parallel", omit=place) for where, place in OMISSIONS if where == layout),
    ]


@pytest.mark.parametrize(("layout", "objective"), list(product(LAYOUTS[1:], OBJECTIVES)))
def test_the_gradients_are_those_of_one_process(layout: Layout, objective: str, worlds: Path) -> None:
    job = f"first step, {objective}"
    alone, shared = (whole(worlds / name(each) / job, "gradients") for each in (LAYOUTS[0], layout))
    assert distance(shared, alone) <= GRADIENTS
    assert all(gradient.any() for gradient in parameters(alone).values() if objective == "parallel")


@pytest.mark.parametrize(("layout", "objective"), list(product(LAYOUTS[1:], OBJECTIVES)))
def test_the_weights_move_as_in_one_process(layout: Layout, objective: str, worlds: Path) -> None:
    job = f"all steps, {objective}"
    alone, shared = (displacement(worlds / name(each) / job) for each in (LAYOUTS[0], layout))
    assert distance(shared, alone) <= DISPLACEMENT


@pytest.mark.parametrize(("layout", "variant"), [(layout, variant) for layout, variant, _ in VARIANTS])
def test_what_saves_memory_changes_no_number(layout: Layout, variant: str, worlds: Path) -> None:
    alone, saving = worlds / name(LAYOUTS[0]) / "all steps, parallel", worlds / name(layout) / variant
    assert distance(displacement(saving), displacement(alone)) <= DISPLACEMENT
    steps, expected = (steps_of(folder) for folder in (saving, alone))
    for own, other in zip(steps, expected, strict=True):
        assert own["stepped"] and own["norm"] == pytest.approx(other["norm"], rel=1e-3)


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_every_layout_tells_the_same_losses_and_norms(layout: Layout, worlds: Path) -> None:
    job = "all steps, parallel"
    alone, shared = (steps_of(worlds / name(each) / job) for each in (LAYOUTS[0], layout))
    assert len(shared) == STEPS and all(step["stepped"] for step in shared)
    assert shared[0]["parts"].keys() == {"coarse_loss", "plan_loss", "fine_loss"}
    assert shared[0]["loss"] == pytest.approx(alone[0]["loss"], rel=GRADIENTS)
    for own, other in zip(shared, alone, strict=True):
        assert own["parts"] == pytest.approx(other["parts"], rel=1e-3)
        assert (own["loss"], own["norm"]) == pytest.approx((other["loss"], other["norm"]), rel=1e-3)
    assert alone[-1]["loss"] < alone[0]["loss"]


@pytest.mark.parametrize(("layout", "place"), OMISSIONS)
def test_without_any_one_all_reduce_it_is_another_training(layout: Layout, place: str, worlds: Path) -> None:
    alone, shared = worlds / name(LAYOUTS[0]) / "first step, parallel", worlds / name(layout) / f"without {place}"
    gradients = distance(whole(shared, "gradients"), whole(alone, "gradients"))
    told, expected = (steps_of(folder)[0]["loss"] for folder in (shared, alone))
    # What only adds to the loss is in no gradient, but in the loss that is told.
    assert gradients > 10 * GRADIENTS or told != pytest.approx(expected, rel=10 * GRADIENTS)
