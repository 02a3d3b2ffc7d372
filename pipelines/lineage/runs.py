"""The run: its record, its settings, its code and its images."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.files import digest_json, read_json
from components.gate.verdict import FILE_NAME as VERDICT
from pipelines.lineage.compare import UNREADABLE, equal, unchecked, unreadable
from pipelines.lineage.subject import RUN, SETTINGS, Subject
from pipelines.lineage.tree import Check, Node
from pipelines.provenance import CHECKOUT, settings_digest
from pipelines.record import RunRecord
from pipelines.steps import steps_of

_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIRTY = "-dirty"


def run_node(subject: Subject, steps: tuple[Node, ...]) -> Node:
    run = subject.run
    if subject.run_folder is None:
        name, reason = subject.run_id or "unknown", "the run's folder is gone"
        return Node("run", name, {}, (unchecked("run", reason),), (_code_node(subject), _image_node(subject)))
    facts = {"folder": subject.shown(subject.run_folder)}
    if run is not None:
        facts |= {"preset": run.preset, "status": run.status, "started": run.started, "ended": run.ended or "never"}
    children = (_settings_node(subject), _code_node(subject), _image_node(subject), *steps)
    checks = (_record_check(subject), _readable_check(subject.run_folder))
    return Node("run", subject.run_id or "unknown", facts, checks, children)


def measurement_node(subject: Subject, steps: tuple[Node, ...]) -> Node:
    """A run that measured the package once more: it goes by sections of its own and reads what the first run left."""
    run = subject.run
    if run is None or subject.run_folder is None:
        return Node("run", "unknown", {}, (), steps)
    facts = {"folder": subject.shown(subject.run_folder), "measured": "once more", "status": run.status}
    facts |= {"started": run.started, "ended": run.ended or "never", "commit": run.provenance.get("git_commit", "")}
    return Node("run", run.run_id, facts, (_readable_check(subject.run_folder),), steps)


def step_names(subject: Subject) -> tuple[str, ...]:
    return subject.run.steps if subject.run else steps_of(subject.read(SETTINGS))


def _record_check(subject: Subject) -> Check:
    """`run.json` says what the manifest, the settings and the verdict say."""
    name, run, folder = "run's record", subject.run, subject.run_folder
    if folder is None or not (folder / RUN).exists():
        return unchecked(name, f"{RUN} is gone")
    if run is None:
        return unreadable(name, ValueError(f"{RUN} is not a run's record"))
    for what, found, expected in _said_twice(subject, run):
        if found != expected:
            return Check(name, "failed", f"{RUN}: {what} is another", _short(expected), _short(found))
    return Check(name, "ok", f"{RUN} says what the manifest, {SETTINGS} and the verdict say")


def _said_twice(subject: Subject, run: RunRecord) -> Iterator[tuple[str, Any, Any]]:
    """(what, as `run.json` says it, as another record says it), of everything that both say."""
    yield "id", run.run_id, subject.run_id
    yield "settings", run.settings, subject.read(SETTINGS) or run.settings
    if run.verdict and (verdict := subject.read("verdict", VERDICT)):
        yield "verdict", run.verdict, verdict
    if run.candidate and subject.precision == "int8":
        yield "candidate", run.candidate, subject.digest
    origin = vars(subject.origin) if subject.origin else {}
    for key in sorted(run.provenance.keys() & origin.keys()):
        yield key, run.provenance[key], origin[key]


def _readable_check(folder: Path) -> Check:
    """A record that cannot be read bears witness to nothing: that must not pass for agreement."""
    name = "run's files"
    files = sorted([*folder.glob("*.json"), *folder.glob("*/*.json")])
    for file in files:
        try:
            read_json(file)
        except (OSError, ValueError) as error:
            return Check(name, "failed", f"{file.relative_to(folder)} is no JSON", "JSON", type(error).__name__)
    return Check(name, "ok", f"{len(files)} records are readable")


def _settings_node(subject: Subject) -> Node:
    name, expected = "run's settings", subject.named("settings_digest")
    file = (subject.run_folder or Path()) / SETTINGS
    if subject.run_folder is None or not file.exists():
        check = unchecked(name, f"{SETTINGS} is gone")
    else:
        try:
            settings = read_json(file)
            whole = digest_json(settings)  # how packages named them before `platform` was left out
            found = whole if whole == expected else settings_digest(settings)
            recorded = (subject.run.provenance if subject.run else {}).get("settings_digest")
            check = equal(name, found, {"the manifest": expected, RUN: recorded})
        except (*UNREADABLE, AttributeError) as error:
            check = unreadable(name, error)
    return Node("settings", SETTINGS, {"digest": expected or "unknown"}, (check,))


def _code_node(subject: Subject) -> Node:
    commit = subject.named("git_commit") or (subject.run.provenance.get("git_commit") if subject.run else None)
    facts = {"commit": commit or "unknown"}
    if subject.run is not None and subject.run.code_digest:
        facts["code digest"] = subject.run.code_digest
    return Node("code", commit or "unknown", facts, (commit_check(commit, CHECKOUT),))


def commit_check(commit: str | None, checkout: Path) -> Check:
    """Whether `checkout` holds the commit; one with uncommitted changes on top says too little and is a warning."""
    name = "git commit"
    plain = (commit or "").removesuffix(_DIRTY)
    if not _COMMIT.fullmatch(plain):
        return unchecked(name, "the run did not know its commit")
    if not shutil.which("git") or not (checkout / ".git").exists():
        return unchecked(name, "this is no git checkout")
    found = subprocess.run(
        ["git", "-C", str(checkout), "cat-file", "-e", f"{plain}^{{commit}}"], capture_output=True, check=False
    )
    if found.returncode != 0:
        return unchecked(name, f"{plain[:12]} is not in this checkout: fetch the branch that it is on")
    if plain != commit:
        return Check(name, "warning", f"{plain[:12]} is in this checkout, but the run's files differed from it")
    return Check(name, "ok", f"{plain[:12]} is in this checkout")


def _image_node(subject: Subject) -> Node:
    steps, server = subject.named("image_digest"), subject.named("server_image_digest")
    if not steps and not server:
        return Node("image", "none: the steps were processes", {"image": "none"})
    facts = {"steps' image": steps or "none", "server's image": server or "none"}
    used = {name: _image_digest(subject, name) for name in step_names(subject)}
    known = {name: found for name, found in used.items() if found}
    if not known:
        check = unchecked("images", "no step's record names the digest of its image")
    else:
        foreign = next(((name, found) for name, found in known.items() if found not in (steps, server)), None)
        check = (
            Check("images", "failed", f"step {foreign[0]} ran in another image", steps or server, foreign[1])
            if foreign
            else Check("images", "ok", f"{len(known)} steps ran in the images that the manifest names")
        )
    return Node("image", steps or server or "", facts, (check,))


def _image_digest(subject: Subject, step: str) -> str | None:
    image = (subject.step(step).get("surroundings") or {}).get("image") or ""
    return image.partition("@")[2] or None


def _short(value: Any) -> str:
    return value if isinstance(value, str) else f"sha256 {digest_json(value)}"
