"""A run on this machine: open its records, let the graph work, close the records."""

import json
from collections.abc import Sequence

from rich.console import Console

from common.errors import UsageError
from common.files import read_json, write_json
from common.home import Home
from common.redaction import redact
from pipelines.connection import Connection, connect, platform_again
from pipelines.execution import execute, in_own_name, new_run_id, now, open_tracking, prepare_platform
from pipelines.lock import only_run
from pipelines.parent import Parent, current_champion, find_parent
from pipelines.provenance import code_digest, describe_run, git_commit, image_digests
from pipelines.record import RunRecord, measurements_of, resumable_run
from pipelines.run_folder import ARGUMENTS_FILE, SETTINGS_FILE
from pipelines.settings import Settings
from pipelines.signals import signals_raise
from pipelines.tracking import RunTracking

OTHER_DATA_NOTICE = (
    "The champion in this home learned from other data. This run begins a lineage of its own, which cannot be compared "
    "with that champion, so it will not replace it; another --home gives it a champion of its own."
)


def run(settings: Settings, *, preset: str, home: Home, console: Console) -> RunRecord:
    """Run the whole chain once. Returns the record of a run that came to a verdict, promoted or not.

    Raises `StepFailedError` where a step failed and `Interrupted` on a signal: `resume` goes on with either.
    """
    with only_run(home) as lock, signals_raise():
        prepare_platform(settings.platform, home)
        connection = connect(home, settings.platform)
        parent = find_parent(home, connection.release_url, settings.data.source)
        if parent.other_data:
            console.print(OTHER_DATA_NOTICE)
        record = _new_record(settings, preset, parent)
        folder = home.run(record.run_id)
        folder.mkdir(parents=True)
        write_json(folder / ARGUMENTS_FILE, _arguments(settings, record, parent, home))
        write_json(folder / SETTINGS_FILE, record.settings)
        tracking = open_tracking(record, home, connection)
        return execute(record, home, connection, tracking, console, lock)


def resume(home: Home, overrides: Sequence[str], console: Console) -> RunRecord:
    """Go on with the last run, which failed or was interrupted: what is complete is not repeated.

    `overrides` are of the section `platform`: an address that holds a password, which is not kept on disk, or what a
    step lacked, such as `platform.containers.memory=4g`.
    """
    with only_run(home) as lock, signals_raise():
        record = resumable_run(home)
        _refuse_what_was_measured_since(record, home)
        platform = platform_again(record.settings["platform"], overrides)
        prepare_platform(platform, home)
        record.settings = {**record.settings, "platform": redact(platform.model_dump(mode="json"))}
        write_json(home.run(record.run_id) / SETTINGS_FILE, record.settings)
        connection = connect(home, platform)
        tracking = RunTracking(record.tracking["steps"], record.tracking["parent"])
        tracking.begin_again()
        record.status, record.error = "running", None
        _follow_code(record, home)
        _follow_champion(record, home, connection)
        return execute(record, home, connection, tracking, console, lock)


def _refuse_what_was_measured_since(record: RunRecord, home: Home) -> None:
    """Raises `UsageError` where the run's package was measured once more meanwhile: the run's own verdict is an older one, and
    what came of the newer one, a rejection or a rollback, must not be undone by it."""
    exported = home.run(record.run_id) / "exported" / "export.json"
    later = measurements_of(home, read_json(exported)["int8"]) if exported.is_file() else []
    if later:
        digest = read_json(exported)["int8"]
        raise UsageError(
            f"package {digest[:12]} of run {record.run_id} was measured again since, by run {later[0]}",
            where=str(home.run(record.run_id)),
            fix=f"measure it against the champion of now: emuflow measure {digest[:12]}",
        )


def _follow_code(record: RunRecord, home: Home) -> None:
    """Where the code has changed since the start, every step is repeated with it: the package names the new commit."""
    images = image_digests()
    if record.code_digest == code_digest() and {name: record.provenance.get(name) for name in images} == images:
        return
    file = home.run(record.run_id) / ARGUMENTS_FILE
    record.code_digest = code_digest()
    record.provenance |= {"git_commit": git_commit(), **images}
    write_json(file, read_json(file) | {"provenance": json.dumps(record.provenance, sort_keys=True)})


def _follow_champion(record: RunRecord, home: Home, connection: Connection) -> None:
    """Let the rest of a resumed run be measured against the champion of now; its own promotion demands that."""
    folder = home.run(record.run_id)
    file, exported = folder / ARGUMENTS_FILE, folder / "exported" / "export.json"
    champion = current_champion(connection.release_url)
    if exported.is_file() and read_json(exported)["int8"] == champion:
        return  # the run was interrupted after its own promotion: nothing is left to measure
    write_json(file, read_json(file) | {"champion": champion or ""})
    record.champion = {"before": champion, "after": champion}


def _new_record(settings: Settings, preset: str, parent: Parent) -> RunRecord:
    started = now()
    return RunRecord(
        run_id=new_run_id(started),
        preset=preset,
        settings=redact(settings.model_dump(mode="json")),
        started=started.isoformat(timespec="seconds"),
        code_digest=code_digest(),
        champion={"before": parent.digest, "after": parent.digest},
        provenance=describe_run(settings, preset, parent.digest),
    )


def _arguments(settings: Settings, record: RunRecord, parent: Parent, home: Home) -> dict[str, str]:
    """The pipeline's parameters: each section as JSON, what the run starts from, where this home keeps things."""
    from_weights = settings.training.initialize_from == "parent"
    return {
        **settings.model_copy(update={"promotion": in_own_name(settings.promotion)}).section_parameters(),
        "champion": parent.digest or "",
        "parent_tokenizers": str(parent.tokenizers or ""),
        "parent_checkpoint": str(parent.checkpoint or "") if from_weights else "",
        "parent_evaluation_set": str(parent.evaluation_set or ""),
        "provenance": json.dumps(record.provenance, sort_keys=True),
        "work": str(home.work),
        "cache": str(home.cache),
        "data_docs": str(home.data_docs),
        "package_store": str(home.packages),
        "key_folder": str(home.keys),
        "serving": str(home.serving),
    }
