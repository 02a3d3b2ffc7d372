"""A package's whole lineage: from it, or from an answer, back to the first package that it descends from."""

from datetime import timedelta
from pathlib import Path

from pipelines.lineage.artifacts import artifacts_of
from pipelines.lineage.find import find_package
from pipelines.lineage.packages import package_node
from pipelines.lineage.runs import measurement_node, run_node, step_names
from pipelines.lineage.sources import Sources
from pipelines.lineage.subject import Subject, find_subject, measurements
from pipelines.lineage.tree import Lineage, Node


def trace(sources: Sources, wanted: str) -> Lineage:
    """The lineage of the package that `wanted` names, as `find.find_package` takes it and with its errors."""
    return Lineage(_generations(sources, find_package(sources, wanted)))


def _generations(sources: Sources, digest: str | None) -> tuple[Node, ...]:
    """The package, its parent, and so on; a record that leads back to a later package ends the row."""
    found: dict[str, Node] = {}
    while digest is not None and digest not in found:
        subject = find_subject(sources, digest)
        again = (measurement_node(each, _steps(each)) for each in measurements(subject))
        found[digest] = package_node(subject, (run_node(subject, _steps(subject)), *again))
        digest = subject.parent
    return tuple(found.values())


def _steps(subject: Subject) -> tuple[Node, ...]:
    run = subject.run_folder
    return tuple(_step(subject, run, name) for name in step_names(subject)) if run else ()


def _step(subject: Subject, run: Path, name: str) -> Node:
    record = subject.step(name)
    facts = {"status": record.get("status", "no record of it")}
    if record.get("seconds") is not None:
        facts["time"] = str(timedelta(seconds=round(record["seconds"])))
    return Node("step", name, facts, (), artifacts_of(subject, run, name))
