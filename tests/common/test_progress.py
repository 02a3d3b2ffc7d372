"""Progress: few writes while a step works, and never a last one that is lost."""

import json
from pathlib import Path

import pytest

from common import progress
from common.progress import PROGRESS_VARIABLE, report


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(PROGRESS_VARIABLE, str(tmp_path / "progress.json"))
    monkeypatch.setattr(progress, "_last_report_s", float("-inf"))
    return tmp_path / "progress.json"


@pytest.mark.parametrize("total", [0, 100_000])
def test_reports_in_quick_succession_are_written_once(file, total):
    for done in range(1, 50):
        report(done, total, "samples read")
    assert json.loads(file.read_text())["done"] == 1


def test_the_last_report_is_always_written(file):
    for done in range(101):
        report(done, 100)
    written = json.loads(file.read_text())
    assert (written["done"], written["total"]) == (100, 100)


def test_a_report_is_written_again_after_the_interval(file, monkeypatch):
    report(1, 0)
    monkeypatch.setattr(progress, "_MINIMUM_INTERVAL_S", 0)
    report(2, 0)
    assert json.loads(file.read_text())["done"] == 2


def test_the_first_report_of_a_count_stands_in_every_later_one(file, monkeypatch):
    monkeypatch.setattr(progress, "_MINIMUM_INTERVAL_S", 0)
    for done, total in ((5, 30), (6, 30), (7, 30)):
        report(done, total)
    assert (json.loads(file.read_text())["begun"]["done"]) == 5
    report(1, 30)
    assert json.loads(file.read_text())["begun"]["done"] == 1
    report(1, 8)
    assert json.loads(file.read_text())["begun"]["total"] == 8


def test_without_the_variable_nothing_is_written(file, monkeypatch):
    monkeypatch.delenv(PROGRESS_VARIABLE)
    report(1, 1)
    assert list(file.parent.iterdir()) == []
