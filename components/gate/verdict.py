"""The verdict: every check with its value, bound, interval and samples, and what the whole comes to."""

from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from common.errors import GateError
from common.files import read_json, sha256_file, write_text

FILE_NAME = "verdict.json"


class Result(StrEnum):
    """PASS only where everything is proven; INCONCLUSIVE where an interval holds the bound; INVALID where the evidence
    cannot be used at all."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    INVALID = "INVALID"


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Check(Record):
    """One bound and what was measured. `ok` is true only for a proven PASS; `n` counts the samples behind the value."""

    name: str
    kind: Literal["quality", "latency", "size", "safety"]
    comparison: Literal[">=", "<="]
    value: float | None
    bound: float
    n: int
    interval: tuple[float, float] | None = None
    result: Result
    ok: bool
    reason: str


class Verdict(Record):
    """The evidence that a promotion demands. All digests are sha256; a package's is its identity."""

    schema_version: Literal[1] = 1
    result: Result
    reasons: list[str]
    checks: list[Check]
    reported: dict[str, float | None]
    candidate_digest: str
    candidate_fp32_digest: str | None
    champion_digest: str | None
    evaluation_digest: str
    tokenizers_digest: str
    judge_digest: str | None
    measurements_digest: str
    policy: dict[str, Any]
    machine: dict[str, Any]
    created: str


def overall(checks: list[Check]) -> Result:
    """The worst of all checks, in the order FAIL, INVALID, INCONCLUSIVE; no check at all is INVALID, never a pass."""
    results = {check.result for check in checks}
    for worst in (Result.FAIL, Result.INVALID, Result.INCONCLUSIVE):
        if worst in results:
            return worst
    return Result.PASS if checks else Result.INVALID


def write_verdict(folder: Path, verdict: Verdict) -> Path:
    path = folder / FILE_NAME
    write_text(path, verdict.model_dump_json(indent=1) + "\n")
    return path


def read_verdict(folder: Path) -> Verdict:
    """Read `folder/verdict.json`. Raises `GateError` where it is absent, malformed or contradicts itself."""
    path = folder / FILE_NAME
    try:
        verdict = Verdict.model_validate(read_json(path))
    except FileNotFoundError:
        raise GateError("there is no verdict", where=str(path), fix="run the gate step again") from None
    except (ValidationError, ValueError) as error:
        raise GateError(f"not a verdict: {error}", where=str(path), fix="run the gate step again") from None
    if verdict.result is Result.PASS and not (verdict.checks and all(check.ok for check in verdict.checks)):
        raise GateError("it says PASS, but not every check passed", where=str(path), fix="run the gate step again")
    return verdict


def evidence_digest(folder: Path) -> str:
    """sha256 of `folder/verdict.json`: what the release store names as the evidence of a promotion."""
    return sha256_file(folder / FILE_NAME)
