"""Judge one benchmark: measurements in, a verdict and a page out. It always gives a verdict; it never guesses one."""

import datetime
import logging
from dataclasses import dataclass
from pathlib import Path

from common.files import sha256_file
from components.benchmark.measurements import CANDIDATE, FILE_NAME, FULL_PRECISION, Measurements, read_measurements
from components.gate.policy import all_checks, unfit
from components.gate.reported import reported
from components.gate.settings import GateSettings
from components.gate.verdict import Check, Result, Verdict, evidence_digest, overall, write_verdict

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GateOutcome:
    """What the gate decided, and where it is written."""

    result: Result
    verdict: Verdict
    verdict_file: Path
    report_file: Path
    evidence_digest: str


def gate(settings: GateSettings, measurements: Path, verdict: Path) -> GateOutcome:
    """Judge the `measurements` folder by the policy; write `verdict.json` and `report.html` into the `verdict` folder.

    A rejected candidate is an ordinary return. Raises `GateError` where there are no readable measurements at all.
    """
    from components.gate.report import write_report

    measured = read_measurements(measurements)
    decided = judge(settings, measured, sha256_file(measurements / FILE_NAME))
    verdict_file = write_verdict(verdict, decided)
    report_file = write_report(verdict, decided, measured, measurements)
    _log.info("%s: %s", decided.result.value, "; ".join(decided.reasons))
    return GateOutcome(decided.result, decided, verdict_file, report_file, evidence_digest(verdict))


def judge(settings: GateSettings, measured: Measurements, measurements_digest: str) -> Verdict:
    """The verdict on `measured`. Invalid measurements give INVALID, with their checks shown but not counted."""
    checks, unusable = all_checks(settings, measured), unfit(settings, measured)
    if unusable is not None:
        measured = measured.model_copy(update={"status": "INVALID", "reasons": [*measured.reasons, unusable]})
    valid = measured.status == "VALID" and CANDIDATE in measured.arms
    result = overall(checks) if valid else Result.INVALID
    full = measured.arms.get(FULL_PRECISION)
    return Verdict(
        result=result,
        reasons=_reasons(result, checks, measured) + _told_tries(settings, measured),
        checks=checks,
        reported=reported(settings, measured),
        candidate_digest=measured.arms[CANDIDATE].digest if CANDIDATE in measured.arms else "",
        candidate_fp32_digest=full.digest if full else None,
        champion_digest=measured.champion_digest,
        evaluation_digest=measured.evaluation_digest,
        tokenizers_digest=measured.tokenizers_digest,
        judge_digest=measured.judge.digest if measured.judge else None,
        measurements_digest=measurements_digest,
        policy=settings.model_dump(),
        machine=measured.machine.model_dump(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
    )


def _told_tries(settings: GateSettings, measured: Measurements) -> list[str]:
    earlier = settings.earlier_measurements
    if not earlier:
        return []
    rival = "against this champion" if measured.champion_digest else "without a champion"
    return [
        f"{earlier} earlier measurement{'s' * (earlier > 1)} of this package {rival} came to a verdict: what is drawn anew must "
        f"be shown at {100 * settings.confidence_now:.4g}% for that"
    ]


def _reasons(result: Result, checks: list[Check], measured: Measurements) -> list[str]:
    """In plain words, the most important first: why the measurement is unusable, else every check that did not pass."""
    reasons = (
        [f"the measurement is invalid: {reason}" for reason in measured.reasons] if measured.status == "INVALID" else []
    )
    reasons += [f"{check.name}: {check.reason}" for check in checks if check.result is not Result.PASS]
    if result is Result.PASS:
        rival = (
            "it is proven not to be worse than the champion" if measured.champion_digest else "there is no champion yet"
        )
        reasons.append(f"every bound is kept; {rival}")
    return reasons or ["nothing could be checked"]
