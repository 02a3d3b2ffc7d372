"""What passed along the graph, and the digests that name it. An artifact stands below the step that wrote it."""

from collections.abc import Callable
from pathlib import Path

from common.files import sha256_file
from components.benchmark.measurements import FILE_NAME as MEASUREMENTS
from components.evaluation_set import load_evaluation_set
from components.gate.verdict import FILE_NAME as VERDICT
from components.samples import SAMPLES_FILE
from model.data.shards import MANIFEST_FILE as SHARDS
from model.data.shards import verify_shards
from model.tokenizers.digest import DESCRIPTION_FILE as TOKENIZERS
from model.tokenizers.digest import tokenizers_digest
from pipelines.lineage.compare import UNREADABLE, digest, equal, record, unchecked, unreadable, word
from pipelines.lineage.evidence import evidence_checks
from pipelines.lineage.packages import registered
from pipelines.lineage.sources import Away
from pipelines.lineage.subject import Subject
from pipelines.lineage.tree import Check, Node

_MANIFEST = "the manifest"


def artifacts_of(subject: Subject, run: Path, step: str) -> tuple[Node, ...]:
    """The artifacts that a step left in the folder `run`."""
    make = _ARTIFACTS.get(step)
    return make(subject, run) if make else ()


def _ingest(subject: Subject, run: Path) -> tuple[Node, ...]:
    summary = subject.read("samples", "summary.json")
    table = digest(
        "samples",
        run / "samples" / SAMPLES_FILE,
        sha256_file,
        {
            "samples/summary.json": word(summary, "table_sha256"),
            "steps/ingest.json": word(subject.result("ingest"), "table_sha256"),
            "validation/result.json": word(subject.read("validation", "result.json"), "table_sha256"),
        },
    )
    held_out = digest(
        "evaluation set",
        run / "evaluation_set",
        lambda folder: load_evaluation_set(folder).digest,
        {
            _MANIFEST: subject.named("evaluation_digest"),
            "samples/summary.json": word(summary, "evaluation_digest"),
            "the verdict": word(subject.read("verdict", VERDICT), "evaluation_digest"),
        },
    )
    return (
        _artifact(subject, run / "samples", table, rows=word(summary, "rows")),
        _artifact(subject, run / "evaluation_set", held_out, rows=word(summary, "withheld")),
    )


def _curate(subject: Subject, run: Path) -> tuple[Node, ...]:
    report = subject.read("curated", "report.json")
    check = digest(
        "curated table",
        run / "curated" / SAMPLES_FILE,
        sha256_file,
        {
            _MANIFEST: subject.named("data_digest"),
            "curated/report.json": word(report, "table_sha256"),
            "steps/curate.json": word(subject.result("curate"), "table_sha256"),
            "validation_curated/result.json": word(subject.read("validation_curated", "result.json"), "table_sha256"),
        },
    )
    return (_artifact(subject, run / "curated", check, rows=word(report, "rows")),)


def _tokenize(subject: Subject, run: Path) -> tuple[Node, ...]:
    written = subject.read("shards", SHARDS)
    tokenizers = digest(
        "tokenizers",
        run / "tokenizers",
        tokenizers_digest,
        {
            _MANIFEST: subject.named("tokenizers_digest"),
            "tokenizers/tokenizers.json": word(subject.read("tokenizers", TOKENIZERS), "digest"),
            "steps/tokenize.json": word(subject.result("tokenize"), "tokenizers_digest"),
        },
    )
    table = equal("shards' table", word(written, "table_sha256"), {_MANIFEST: subject.named("data_digest")})
    codes = equal(
        "shards' tokenizers", word(written, "tokenizers_digest"), {_MANIFEST: subject.named("tokenizers_digest")}
    )
    origin = (table, codes) if written else ()
    return (
        _artifact(subject, run / "tokenizers", tokenizers),
        _artifact(subject, run / "shards", _shards_check(run / "shards"), *origin),
    )


def _shards_check(folder: Path) -> Check:
    name = "shards' files"
    if not folder.is_dir():
        return unchecked(name, "shards is gone")
    try:
        verify_shards(folder)
    except UNREADABLE as error:
        return unreadable(name, error)
    return Check(name, "ok", f"each is what {SHARDS} names")


def _train(subject: Subject, run: Path) -> tuple[Node, ...]:
    """Where a step adapts the checkpoint, the run's link is to what that one left."""
    return () if subject.step("adapt") else _checkpoint(subject, run)


def _checkpoint(subject: Subject, run: Path) -> tuple[Node, ...]:
    tokenizers = digest(
        "checkpoint's tokenizers",
        run / "checkpoint" / "tokenizers",
        tokenizers_digest,
        {_MANIFEST: subject.named("tokenizers_digest")},
    )
    signed = record(subject.folder / "1" / "calibration.json")
    weights = digest(
        "checkpoint's weights",
        run / "checkpoint" / "model.safetensors",
        sha256_file,
        {"the package's calibration.json": word(signed, "checkpoint_digest")},
    )
    return (_artifact(subject, run / "checkpoint", tokenizers, weights),)


def _calibrate(subject: Subject, run: Path) -> tuple[Node, ...]:
    return (_artifact(subject, run / "engine", _engine_check(subject, run / "engine")),)


def _engine_check(subject: Subject, engine: Path) -> Check:
    """The package's copies of the engine's files are signed: the engine must still be what was copied."""
    name = "engine's files"
    if not engine.is_dir():
        return unchecked(name, "engine is gone")
    if subject.manifest is None:
        return unchecked(name, "the manifest is gone")
    listed = {
        engine / subject.precision / Path(path).name: expected
        for path, expected in subject.manifest.files.items()
        if path.startswith("1/engine/")
    }
    for path, inside in (
        (engine / "calibration.json", "calibration.json"),
        (engine / "tokenizers/text/tokenizer.json", "tokenizer.json"),
    ):
        if expected := subject.manifest.files.get(f"1/{inside}"):
            listed[path] = expected
    for path, expected in sorted(listed.items()):
        shown = path.relative_to(engine).as_posix()
        if not path.is_file():
            return unchecked(name, f"{shown} is gone")
        if (found := sha256_file(path)) != expected:
            return Check(name, "failed", f"engine/{shown} is not what was packaged", expected, found)
    return Check(name, "ok", f"{len(listed)} are what was packaged")


def _export(subject: Subject, run: Path) -> tuple[Node, ...]:
    said = subject.read("exported", "export.json")
    name = "exported package"
    witnesses = {
        "exported/export.json": word(said, subject.precision),
        "steps/export.json": word(subject.result("export"), subject.precision),
    }
    return (_artifact(subject, run / "exported", equal(name, subject.digest, witnesses)),)


def _judge(subject: Subject, run: Path) -> tuple[Node, ...]:
    graph, said = run / "trained_judge" / "judge.onnx", subject.read("trained_judge", "judge.json")
    if not said:
        return ()  # a user's own data has none
    witnesses = {
        "trained_judge/judge.json": word(said, "digest"),
        "the verdict": word(subject.read("verdict", VERDICT), "judge_digest"),
    }
    return (_artifact(subject, graph.parent, digest("judge", graph, sha256_file, witnesses)),)


def _benchmark(subject: Subject, run: Path) -> tuple[Node, ...]:
    witnesses = {"the verdict": word(subject.read("verdict", VERDICT), "measurements_digest")}
    check = digest("measurements", run / "measurements" / MEASUREMENTS, sha256_file, witnesses)
    return (_artifact(subject, run / "measurements", check),)


def _gate(subject: Subject, run: Path) -> tuple[Node, ...]:
    said = subject.read("verdict", VERDICT)
    node = _artifact(
        subject, run / "verdict", *evidence_checks(subject, run / "verdict" / VERDICT), result=word(said, "result")
    )
    return (node,)


def _promote(subject: Subject, run: Path) -> tuple[Node, ...]:
    verdict = run / "verdict" / VERDICT
    version = registered(subject, on=sha256_file(verdict) if verdict.is_file() else None)
    facts = {"registered as": word(subject.result("promote"), "version") or "nothing"}
    if not isinstance(version, Away) and version.aliases:
        facts["aliases"] = ", ".join(version.aliases)
    return (Node("artifact", "registration", facts),)


def _artifact(subject: Subject, folder: Path, *checks: Check, **facts: str | None) -> Node:
    known = {key: value for key, value in facts.items() if value is not None}
    return Node("artifact", folder.name, {"path": subject.shown(folder), **known}, checks)


_ARTIFACTS: dict[str, Callable[[Subject, Path], tuple[Node, ...]]] = {
    "ingest": _ingest,
    "curate": _curate,
    "tokenize": _tokenize,
    "train": _train,
    "adapt": _checkpoint,
    "calibrate": _calibrate,
    "export": _export,
    "judge": _judge,
    "benchmark": _benchmark,
    "gate": _gate,
    "promote": _promote,
}
