"""What the display is told about a step, from the files that the step writes."""

import json

from pipelines.watch import read_step

NOW = 1000.0


def write(folder, name, suffix="json", **content):
    (folder / "steps").mkdir(exist_ok=True)
    (folder / "steps" / f"{name}.{suffix}").write_text(json.dumps(content))


def read(folder, run_started=900.0):
    return read_step(folder, "train", now=NOW, run_started=run_started)


def test_a_step_without_a_record_waits(tmp_path):
    assert read(tmp_path).status == "waiting"


def test_a_working_step_shows_its_progress_and_the_time_left(tmp_path):
    write(tmp_path, "train", status="running", started=960.0, seconds=None)
    begun = {"done": 2, "total": 30, "time": 968.0}
    write(tmp_path, "train", "progress", done=10, total=30, message="loss 3.2", time=990.0, begun=begun)
    state = read(tmp_path)
    assert (state.status, state.seconds, state.done, state.total, state.message) == (
        "running",
        40.0,
        10,
        30,
        "loss 3.2",
    )
    assert state.remaining_s == 80.0


def test_progress_of_an_earlier_attempt_is_not_shown(tmp_path):
    write(tmp_path, "train", status="running", started=960.0, seconds=None)
    write(tmp_path, "train", "progress", done=10, total=30, message="", time=950.0)
    assert read(tmp_path).total == 0
    assert read(tmp_path).remaining_s is None


def test_a_step_that_an_earlier_start_completed_is_marked(tmp_path):
    write(tmp_path, "train", status="succeeded", started=100.0, seconds=5.0)
    state = read(tmp_path)
    assert (state.status, state.earlier, state.seconds) == ("succeeded", True, 5.0)


def test_a_step_that_an_earlier_start_left_unfinished_waits(tmp_path):
    write(tmp_path, "train", status="running", started=100.0, seconds=None)
    assert read(tmp_path).status == "waiting"
    write(tmp_path, "train", status="failed", started=100.0, seconds=5.0)
    assert read(tmp_path).status == "waiting"


def test_a_failed_step_carries_its_record(tmp_path):
    write(tmp_path, "train", status="failed", started=960.0, seconds=5.0, error={"message": "no"})
    state = read(tmp_path)
    assert state.status == "failed"
    assert state.record is not None and state.record["error"] == {"message": "no"}
