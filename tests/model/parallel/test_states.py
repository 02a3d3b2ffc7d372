"""A training that was saved in one layout goes on in another, and a rank with a gradient that is no number stops no other."""

import math
from pathlib import Path

import pytest

from tests.model.parallel.results import Layout, displacement, distance, name, run_worlds, steps_of
from tests.model.parallel.training import Job, Zero

STEPS, SAVED = 10, 5
RESUMED: list[tuple[Layout, Zero, Layout, Zero]] = [
    ((2, 2, 1), 0, (1, 1, 2), 0),
    ((2, 2, 1), 0, (1, 1, 1), 0),
    ((1, 1, 2), 1, (2, 2, 1), 0),
    ((1, 1, 2), 3, (1, 1, 1), 0),
    ((2, 2, 1), 0, (1, 1, 2), 2),
    ((1, 1, 2), 1, (1, 1, 2), 3),
]
"""The layout and the ZeRO stage of the saving, then of the going on."""
POISONED: list[tuple[Layout, Zero]] = [((1, 1, 2), 0), ((2, 2, 1), 0), ((1, 1, 2), 1), ((1, 1, 2), 3)]
POISONED_STEP, POISONED_RANK = 2, {(1, 1, 2): 1, (2, 2, 1): 3}


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("states")
    layouts: list[Layout] = [(1, 1, 1), (1, 1, 2), (2, 2, 1)]
    saving = [(layout, jobs) for layout in layouts if (jobs := _saving(layout))]
    run_worlds(folder, saving)
    run_worlds(folder, [(layout, jobs) for layout in layouts if (jobs := _going_on(layout))])
    return folder


def _saving(layout: Layout) -> list[Job]:
    if layout == (1, 1, 1):
        return [Job("alone", "parallel", steps=STEPS, frozen=True)]
    saved = sorted({(where, zero) for where, zero, _, _ in RESUMED if where == layout})
    return [
        *(
            Job(f"saved {zero}", "parallel", SAVED, True, zero, states=_states(where, zero), saved_after=(3, SAVED))
            for where, zero in saved
        ),
        *(
            Job(f"poisoned {zero}", "parallel", 4, True, zero, poisoned=(POISONED_STEP, POISONED_RANK[where]))
            for where, zero in POISONED
            if where == layout
        ),
    ]


def _going_on(layout: Layout) -> list[Job]:
    return [
        Job(f"on {number}", "parallel", STEPS, True, zero, states=_states(saved, saved_zero))
        for number, (saved, saved_zero, where, zero) in enumerate(RESUMED)
        if where == layout
    ]


def _states(layout: Layout, zero: Zero) -> str:
    return f"states-{name(layout)}-{zero}"


@pytest.mark.parametrize("number", range(len(RESUMED)))
def test_fault_10_a_training_goes_on_in_another_layout_as_if_nothing_had_been(number: int, worlds: Path) -> None:
    _, _, layout, _ = RESUMED[number]
    alone, resumed = worlds / "1x1x1" / "alone", worlds / name(layout) / f"on {number}"
    steps, expected = steps_of(resumed), steps_of(alone)[SAVED:]
    assert len(steps) == STEPS - SAVED
    for own, other in zip(steps, expected, strict=True):
        assert own["parts"] == pytest.approx(other["parts"], rel=1e-4)
    assert distance(displacement(resumed), displacement(alone)) <= 1e-3


@pytest.mark.parametrize(("layout", "zero"), POISONED)
def test_fault_11_a_gradient_that_is_no_number_on_one_rank_moves_none(layout: Layout, zero: int, worlds: Path) -> None:
    steps, alone = steps_of(worlds / name(layout) / f"poisoned {zero}"), steps_of(worlds / "1x1x1" / "alone")
    assert [step["stepped"] for step in steps] == [number != POISONED_STEP for number in range(4)]
    assert math.isnan(steps[POISONED_STEP]["loss"]) or not math.isfinite(steps[POISONED_STEP]["norm"])
    assert steps[1]["loss"] == pytest.approx(alone[1]["loss"], rel=1e-4)
    assert steps[3]["loss"] == pytest.approx(alone[3]["loss"], rel=0.05) and math.isfinite(steps[3]["norm"])


def test_states_have_their_name_once_they_are_whole_and_only_the_newest_stay(worlds: Path) -> None:
    for saved, zero in {(saved, zero) for saved, zero, _, _ in RESUMED}:
        folder = worlds / _states(saved, zero)
        assert sorted(path.name for path in folder.iterdir()) == ["state-00000003", "state-00000005"]
