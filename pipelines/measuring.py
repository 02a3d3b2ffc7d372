"""`emuflow measure`: a package that a run exported, measured, judged and promoted once more, against the champion of now.

A measurement is a run of its own, with a folder, a record and MLflow runs: what earlier ones found stays as it is.
"""

import os
from collections.abc import Sequence

from rich.console import Console

from common.errors import GateError, UsageError
from common.files import write_json
from common.home import Home
from common.redaction import redact
from components.gate.verdict import Result, evidence_digest, read_verdict
from pipelines.connection import Connection, release_store, remembered
from pipelines.execution import execute, in_own_name, new_run_id, now, open_tracking, prepare_platform
from pipelines.exported import ARTIFACTS, Exported, find_exported
from pipelines.lock import only_run
from pipelines.parent import current_champion
from pipelines.provenance import code_digest, git_commit, image_digests
from pipelines.record import RunRecord, verdict_folders
from pipelines.releasing import connect_released, package_of
from pipelines.run_folder import ARGUMENTS_FILE, SETTINGS_FILE
from pipelines.settings import MEASURED_BY, MeasurementSettings, PlatformSettings, override_sections
from pipelines.signals import signals_raise
from serving.release.rows import CANDIDATE_STAGE

_PLATFORM = "platform."
_DEMANDS = ("approval", "canary", "canary_policy")
"""Settings of `promotion` that the package was registered with."""
_TRIES = "earlier_measurements"
"""The setting of `gate` that this module sets."""
_LINKED = (*ARTIFACTS, "curated")
"""What a measurement's folder shows of the run that exported the package: what it reads, and the data behind it."""


def measure(home: Home, version: str, overrides: Sequence[str], *, promote: bool = True, console: Console) -> RunRecord:
    """Measure the package that `version` names against the champion of now, judge it, and promote it as far as the
    settings say, or not at all. They are those of its own run, with `overrides`.

    Raises `UsageError` where there is no such package, it is the champion or another run works in `home`, what
    `find_exported` does, `StepFailedError` where a step failed and `Interrupted` on a signal. The same command again
    begins a new measurement.
    """
    platform = remembered(home, [each for each in overrides if each.startswith(_PLATFORM)])
    connection = connect_released(home, platform)
    digest = package_of(home, version, connection)
    with only_run(home) as lock, signals_raise():
        prepare_platform(platform, home)
        exported = find_exported(home, digest)
        champion = _rival(home, digest, connection)
        earlier = _verdicts_before(home, digest, champion, connection)
        settings = _settings(exported, platform, overrides, promote=promote, earlier_measurements=earlier)
        record = _new_record(exported, settings, champion)
        folder = home.run(record.run_id)
        folder.mkdir(parents=True)
        for name in _LINKED:
            (folder / name).symlink_to(os.path.relpath(exported.artifact(name), folder))
        write_json(folder / ARGUMENTS_FILE, _arguments(settings, exported, champion, home))
        write_json(folder / SETTINGS_FILE, record.settings)
        tags = {
            "emuflow.measured_package": digest,
            "emuflow.package_run": exported.run_folder.name,
            "emuflow.package_mlflow_run": exported.tracking_run or "unknown",
        }
        tracking = open_tracking(record, home, connection, tags)
        return execute(record, home, connection, tracking, console, lock)


def _verdicts_before(home: Home, digest: str, champion: str | None, connection: Connection) -> int:
    """How many measurements of the package against this champion came to a verdict that says something, whether or not it
    was registered then."""
    with release_store(connection.release_url) as store:
        rows = store.history(CANDIDATE_STAGE)
    of_pair = (row for row in rows if (row.digest, row.measured_against) == (digest, champion))
    found = {row.evidence_digest for row in of_pair if not row.reason.startswith(Result.INVALID)}
    for folder in verdict_folders(home):
        try:
            verdict = read_verdict(folder)
        except GateError:
            continue
        same = (verdict.candidate_digest, verdict.champion_digest) == (digest, champion)
        if same and verdict.result != Result.INVALID:
            found.add(evidence_digest(folder))
    return len(found)


def _settings(
    exported: Exported,
    platform: PlatformSettings,
    overrides: Sequence[str],
    *,
    promote: bool,
    earlier_measurements: int,
) -> MeasurementSettings:
    """Those of the package's own run with `overrides`; without `promote`, it is only registered."""
    own = {name: exported.settings.get(name, {}) for name in MEASURED_BY}
    changed = override_sections(own, [each for each in overrides if not each.startswith(_PLATFORM)])
    if loosened := [key for key in _DEMANDS if changed["promotion"].get(key) != own["promotion"].get(key)]:
        raise UsageError(
            f"a measurement does not change what the package's own run demands of a promotion: {', '.join(loosened)}",
            where="--set",
            fix="make a candidate by another policy: emuflow run",
        )
    if changed["gate"].get(_TRIES, 0) != own["gate"].get(_TRIES, 0):
        raise UsageError(
            f"a measurement counts the earlier ones itself: gate.{_TRIES}", where="--set", fix="leave it out"
        )
    changed["gate"][_TRIES] = max(own["gate"].get(_TRIES, 0), earlier_measurements)
    if not promote:
        changed["promotion"]["to"] = CANDIDATE_STAGE
    where = "--set" if overrides else str(exported.run_folder)
    return MeasurementSettings.parse(changed | {"platform": platform.model_dump()}, where=where)


def _rival(home: Home, digest: str, connection: Connection) -> str | None:
    """The champion of now, `None` where there is none. Raises `UsageError` where that is the package, or its own is gone."""
    champion = current_champion(connection.release_url)
    if champion == digest:
        raise UsageError(
            f"package {digest} is the champion already: there is nothing to measure it against",
            fix="see `emuflow history`",
        )
    if champion is not None and not (home.packages / champion).is_dir():
        raise UsageError(
            f"the package of the champion {champion[:12]} is not in the store",
            where=str(home.packages / champion),
            fix="put it back there",
        )
    return champion


def _new_record(exported: Exported, settings: MeasurementSettings, champion: str | None) -> RunRecord:
    started = now()
    return RunRecord(
        run_id=new_run_id(started),
        preset=exported.preset,
        settings=redact(settings.model_dump(mode="json")),
        started=started.isoformat(timespec="seconds"),
        code_digest=code_digest(),
        champion={"before": champion, "after": champion},
        provenance={"git_commit": git_commit(), **image_digests()},
        measures=exported.digest,
    )


def _arguments(settings: MeasurementSettings, exported: Exported, champion: str | None, home: Home) -> dict[str, str]:
    return {
        **settings.model_copy(update={"promotion": in_own_name(settings.promotion)}).section_parameters(),
        **{name: str(exported.artifact(name)) for name in ARTIFACTS},
        "champion": champion or "",
        "package_store": str(home.packages),
        "key_folder": str(home.keys),
        "serving": str(home.serving),
    }
