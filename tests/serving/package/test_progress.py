"""Work that stands still is told from work that goes on, also while others come and are refused."""

from serving.package.runtime.progress import Progress
from tests.clock import Clock


def test_who_comes_and_is_refused_moves_nothing() -> None:
    """A drawing hangs; every 10 s one more comes, and gives up after 30 s."""
    clock = Clock()
    progress = Progress(clock)
    with progress.drawing():
        for number in range(9):
            progress.begin()
            clock.seconds += 10
            if number >= 2:
                progress.end()
        assert (progress.under_way, progress.still_s()) == (2, 90)


def test_a_drawing_is_under_way_until_it_ends_whoever_waits_for_it() -> None:
    """One at a time, with pauses in which nobody waits."""
    clock = Clock()
    progress = Progress(clock)
    progress.begin()
    with progress.drawing():
        for _ in range(4):
            clock.seconds += 30
            progress.end()
            assert progress.under_way == 0
            clock.seconds += 10
            progress.begin()
        assert progress.still_s() == 160
        progress.move()
        assert progress.still_s() == 0
        progress.end()
        clock.seconds += 5
        assert progress.still_s() == 5
    assert progress.still_s() == 0
    clock.seconds += 50
    assert progress.still_s() == 0


def test_a_drawing_that_begins_or_ends_is_a_movement_for_those_who_wait() -> None:
    clock = Clock()
    progress = Progress(clock)
    progress.begin()
    clock.seconds += 3
    with progress.drawing():
        assert progress.still_s() == 0
        clock.seconds += 4
        assert progress.still_s() == 4
    assert progress.still_s() == 0
    clock.seconds += 5
    assert progress.still_s() == 5  # drawn, and not sent
