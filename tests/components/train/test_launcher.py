"""What a training finds of compilations that were killed."""

from components.train.launcher import remove_stale_locks


def test_the_lock_of_a_killed_compilation_goes_and_that_of_a_living_one_stays(tmp_path):
    stale, held = tmp_path / "a" / "lock", tmp_path / "b" / "lock"
    for lock in (stale, held):
        lock.parent.mkdir()
    stale.touch()
    with held.open("w"):
        remove_stale_locks(tmp_path)
        assert not stale.exists() and held.exists()
    remove_stale_locks(tmp_path)
    assert not held.exists()
