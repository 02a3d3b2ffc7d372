"""What the closing table says comes next."""

import io

import pytest
from rich.console import Console

from pipelines.display import closing_table

RECORD = {
    "seconds": {"total": 60.0},
    "peak_memory_mb": 900,
    "error": None,
    "verdict": {"result": "PASS", "checks": []},
    "paths": {},
    "candidate": "b" * 64,
    "stage": "staging",
    "version": "7",
}


@pytest.mark.parametrize(
    ("before", "canary", "told"),
    [
        ("a" * 64, "required", "emuflow canary start 7"),
        ("a" * 64, "none", "emuflow promote 7 --to champion"),
        (None, "required", "emuflow promote 7 --to champion"),  # nothing to compare the first champion with
    ],
)
def test_from_staging_the_way_on_is_named(before, canary, told):
    champion = {"champion": {"before": before, "after": before}}
    shown = io.StringIO()
    record = RECORD | champion | {"settings": {"promotion": {"canary": canary}}}
    Console(file=shown, width=120).print(closing_table(record, []))
    assert f"In staging: {'b' * 12}. `{told}` goes on from there." in shown.getvalue()


@pytest.mark.parametrize(
    ("result", "canary", "told"),
    [
        ("PASS", "none", "`emuflow promote 7 --to champion` does that."),
        ("PASS", "required", "`emuflow promote 7 --to staging` does that."),
        ("INCONCLUSIVE", "none", "`emuflow measure 7` measures it again."),
        ("INVALID", "none", "`emuflow measure 7` measures it again."),
        ("FAIL", "none", ""),
    ],
)
def test_what_was_not_promoted_can_be_promoted_or_measured_again(result, canary, told):
    shown = io.StringIO()
    champion = {"champion": {"before": "a" * 64, "after": "a" * 64}, "stage": "candidate"}
    verdict = {"verdict": {"result": result, "checks": []}, "settings": {"promotion": {"canary": canary}}}
    Console(file=shown, width=160).print(closing_table(RECORD | champion | verdict, []))
    last = shown.getvalue().strip().splitlines()[-1].strip()
    assert last == f"Not promoted: {'a' * 12} stays the champion. {told}".strip()
