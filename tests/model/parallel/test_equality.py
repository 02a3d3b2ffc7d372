"""One training is the same training in every layout, and no word between its ranks can be left out."""

import json
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
    ((2, 1, 1), "compiled", {"compiled": True}),
    ((1, 1, 2), "ZeRO-1", {"zero": 1}),
    ((1, 1, 2), "ZeRO-2", {"zero": 2}),
    ((1, 1, 2), "ZeRO-3", {"zero": 3}),
    ((1, 2, 2), "ZeRO-1", {"zero": 1}),
    ((2, 2, 2), "ZeRO-1", {"zero": 1}),
    ((2, 1, 2), "ZeRO-1", {"zero": 1}),
    ((2, 1, 2), "ZeRO-3", {"zero": 3}),
]
"""Ways to save memory or time, which change no number either."""
COMPILED_DECODER = (1, 2, 1)
"""Where the plain decoder is compiled too, with checkpointing; each compilation takes most of a minute."""
SOMETIMES = [((1, 2, 1), {}), ((1, 2, 1), {"checkpointing": True}), ((1, 1, 2), {"zero": 1})]
"""Where other tensors pass from step to step: details are asked in every second one, of the next token as well."""
BF16 = [((1, 1, 1), 0), ((1, 1, 2), 1), ((1, 1, 2), 2), ((1, 1, 2), 3), ((2, 2, 1), 0)]
"""Layouts and ZeRO stages that compute in bf16."""
DECODED = [
    ((2, 1, 1), "tokens"),
    ((2, 1, 1), "tied tokens"),
    ((1, 2, 1), "tokens"),
    ((1, 1, 2), "tied tokens"),
    ((2, 2, 1), "tokens"),
    ((1, 2, 2), "tokens"),
    ((2, 2, 2), "tokens"),
]
"""Layouts of the plain decoder; a head that is tied to the embedding has one stage."""
GRADIENTS, DISPLACEMENT = 1e-5, 1e-3
"""Relative L2: of the first step's gradients, and of what the weights have moved by after `STEPS` steps."""


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of all trainings, by layout and job."""
    layouts: list[Layout] = [*LAYOUTS, (2, 1, 2)]
    return run_worlds(tmp_path_factory.mktemp("worlds"), [(layout, jobs_of(layout)) for layout in layouts])


def jobs_of(layout: Layout) -> list[Job]:
    return [
        *(Job(f"first step, {objective}", objective) for objective in OBJECTIVES if layout in LAYOUTS),
        *(
            Job(f"all steps, {objective}", objective, steps=STEPS, frozen=True)
            for objective in OBJECTIVES
            if layout in LAYOUTS
        ),
        *([Job("sometimes", "next_token", steps=6, frozen=True, details_every=2)] if layout == (1, 1, 1) else []),
        *(
            Job(f"sometimes {number}", "next_token", steps=6, frozen=True, details_every=2, **changes)
            for number, (where, changes) in enumerate(SOMETIMES)
            if where == layout
        ),
        *(
            Job(f"bf16 {zero}", "parallel", steps=6, frozen=True, zero=zero, bf16=True)
            for where, zero in BF16
            if where == layout
        ),
        *(
            Job(f"{length}, {objective}", objective, steps)
            for objective in ("tokens", "tied tokens")
            if (layout, objective) in DECODED or layout == (1, 1, 1)
            for length, steps in (("first step", 1), ("all steps", STEPS))
        ),
        *(
            Job(variant, "parallel", steps=STEPS, frozen=True, **changes)
            for where, variant, changes in VARIANTS
            if where == layout
        ),
        *(
            [Job("compiled tokens", "tokens", steps=STEPS, compiled=True, checkpointing=True)]
            if layout == COMPILED_DECODER
            else []
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


@pytest.mark.parametrize(("layout", "objective"), DECODED)
def test_a_plain_decoder_is_the_same_in_every_layout(layout: Layout, objective: str, worlds: Path) -> None:
    alone, shared = (worlds / name(each) for each in (LAYOUTS[0], layout))
    first, last = f"first step, {objective}", f"all steps, {objective}"
    assert distance(whole(shared / first, "gradients"), whole(alone / first, "gradients")) <= GRADIENTS
    moved, expected = (displacement(folder / last, objective) for folder in (shared, alone))
    assert distance(moved, expected) <= DISPLACEMENT
    steps, told = steps_of(shared / last), steps_of(alone / last)
    assert [step["loss"] for step in steps] == pytest.approx([step["loss"] for step in told], rel=1e-3)


@pytest.mark.parametrize(("layout", "variant"), [(layout, variant) for layout, variant, _ in VARIANTS])
def test_what_saves_memory_changes_no_number(layout: Layout, variant: str, worlds: Path) -> None:
    alone, saving = worlds / name(LAYOUTS[0]) / "all steps, parallel", worlds / name(layout) / variant
    assert distance(displacement(saving), displacement(alone)) <= DISPLACEMENT
    steps, expected = (steps_of(folder) for folder in (saving, alone))
    for own, other in zip(steps, expected, strict=True):
        assert own["stepped"] and own["norm"] == pytest.approx(other["norm"], rel=1e-3)


def test_a_compiled_decoder_is_the_same_decoder(worlds: Path) -> None:
    alone = worlds / name(LAYOUTS[0]) / "all steps, tokens"
    compiled = worlds / name(COMPILED_DECODER) / "compiled tokens"
    assert distance(displacement(compiled, "tokens"), displacement(alone, "tokens")) <= DISPLACEMENT


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
    evaluated, expected = (
        json.loads((worlds / name(each) / job / "evaluated.json").read_text()) for each in (layout, LAYOUTS[0])
    )
    assert evaluated == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("number", range(len(SOMETIMES)))
def test_other_tensors_may_pass_from_step_to_step(number: int, worlds: Path) -> None:
    layout, _ = SOMETIMES[number]
    steps = steps_of(worlds / name(layout) / f"sometimes {number}")
    expected = steps_of(worlds / name(LAYOUTS[0]) / "sometimes")
    assert [step["parts"].keys() for step in steps] == [step["parts"].keys() for step in expected]
    assert [len(step["parts"]) for step in steps] == [2, 1, 2, 1, 2, 1]
    assert [step["loss"] for step in steps] == pytest.approx([step["loss"] for step in expected], rel=1e-3)


@pytest.mark.parametrize(("layout", "zero"), BF16)
def test_bf16_trains_in_every_way_and_tells_nearly_the_losses_of_fp32(layout: Layout, zero: int, worlds: Path) -> None:
    steps = steps_of(worlds / name(layout) / f"bf16 {zero}")
    expected = steps_of(worlds / name(LAYOUTS[0]) / "all steps, parallel")[: len(steps)]
    assert all(step["stepped"] for step in steps)
    told, exact = ([step["loss"] for step in each] for each in (steps, expected))
    assert told == pytest.approx(exact, rel=0.03) and told != pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("zero", [1, 2])
def test_ranks_add_up_the_gradients_of_bf16_in_fp32(zero: int, worlds: Path) -> None:
    """Added up in bf16 they are 2.5% of the way apart by then."""
    shared, alone = worlds / name((1, 1, 2)) / f"bf16 {zero}", worlds / name(LAYOUTS[0]) / "bf16 0"
    assert distance(displacement(shared), displacement(alone)) <= 5e-3


@pytest.mark.parametrize(("layout", "place"), OMISSIONS)
def test_without_any_one_all_reduce_it_is_another_training(layout: Layout, place: str, worlds: Path) -> None:
    alone, shared = worlds / name(LAYOUTS[0]) / "first step, parallel", worlds / name(layout) / f"without {place}"
    gradients = distance(whole(shared, "gradients"), whole(alone, "gradients"))
    told, expected = (steps_of(folder)[0]["loss"] for folder in (shared, alone))
    # What only adds to the loss is in no gradient, but in the loss that is told.
    assert gradients > 10 * GRADIENTS or told != pytest.approx(expected, rel=10 * GRADIENTS)
