"""`emuflow gate`: what another policy would have decided on measurements that are there. Nothing is recorded or promoted."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UsageError
from common.files import read_json, sha256_file
from common.home import Home
from pipelines.run_folder import SETTINGS_FILE
from pipelines.settings import override_section

if TYPE_CHECKING:
    from components.gate.verdict import Verdict


def try_policy(home: Home, run_id: str | None, overrides: Sequence[str], report: Path | None) -> "Verdict":
    """Judge the measurements of a run (`None`: the last one) by its own policy with `overrides` such as
    `gate.confidence=0.99`; `report` takes the page.

    Raises `UsageError` where there is no such run, `GateError` where it measured nothing, `SettingsError` for a policy that
    cannot be.
    """
    from components.benchmark.measurements import FILE_NAME, read_measurements
    from components.gate.gate import judge
    from components.gate.report import write_report
    from components.gate.settings import GateSettings

    folder = _run_folder(home, run_id)
    own = read_json(folder / SETTINGS_FILE).get("gate", {})
    policy = GateSettings.parse(override_section("gate", own, overrides), where="--set" if overrides else str(folder))
    measurements = folder / "measurements"
    measured = read_measurements(measurements)
    verdict = judge(policy, measured, sha256_file(measurements / FILE_NAME))
    if report is not None:
        report.mkdir(parents=True, exist_ok=True)
        write_report(report, verdict, measured, measurements)
    return verdict


def _run_folder(home: Home, run_id: str | None) -> Path:
    if run_id is None:
        if not home.last_run_file.is_file():
            raise UsageError("there was no run here", where=str(home.root), fix="run the pipeline: emuflow run")
        run_id = str(read_json(home.last_run_file)["run_id"])
    folder = home.run(run_id)
    if not (folder / SETTINGS_FILE).is_file():
        raise UsageError(f"there is no run '{run_id}'", where=str(folder), fix="see `emuflow history`")
    return folder
