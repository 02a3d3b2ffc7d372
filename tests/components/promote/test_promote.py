"""Promotion with a real MLflow store, a real release store and real signed packages."""

import queue
import shutil
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path

import pytest

from common.errors import DigestMismatchError, GateError, PromotionConflictError, SignatureError, TrackingError
from common.files import write_json
from components.benchmark.measurements import CANDIDATE, CHAMPION, FULL_PRECISION, Arm, write_measurements
from components.gate.gate import gate
from components.gate.settings import GateSettings
from components.promote.promote import PromotionResult, promote
from components.promote.registry import Registry
from components.promote.settings import PromotionSettings
from emuflow_client import GeneratorClient
from serving.release.store import ReleaseStore
from serving.supervisor import serve
from tests.engines import write_engine
from tests.evidence import arm, measurements
from tests.packages import build

SETTINGS = PromotionSettings(actor="tester")
PASSWORD = "hunter2"
GATE = GateSettings(bootstrap_resamples=200)


@dataclass
class Place:
    """A home with MLflow, a release store, and as many packages as a test asks for."""

    root: Path
    engine: Path
    url: str

    def __post_init__(self) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri=self.url, registry_uri=self.url)
        experiment = self.client.create_experiment("emuflow", artifact_location=(self.root / "artifacts").as_uri())
        self.run_id = self.client.create_run(experiment).info.run_id

    @property
    def store(self) -> ReleaseStore:
        return ReleaseStore(self.url)

    @property
    def champion(self) -> str | None:
        release = self.store.current()
        return release.digest if release else None

    def candidate(self, run_id: str) -> "Candidate":
        int8, fp32 = (
            build(self.engine, self.root / "packages", self.root / "keys", precision, run_id).name
            for precision in ("int8", "fp32")
        )
        write_json(self.root / run_id / "exported" / "export.json", {"int8": int8, "fp32": fp32})
        return Candidate(self, self.root / run_id, int8, fp32)

    def version(self, number: str):
        return self.client.get_model_version(SETTINGS.registered_model, number)

    def alias(self) -> str | None:
        return Registry(SETTINGS.registered_model, self.url).version_of("champion")


@dataclass
class Candidate:
    """One export, and what becomes of it."""

    place: Place
    folder: Path
    int8: str
    fp32: str

    def judged(self, *, accuracy: float = 0.95, champion: str | None = None, **changes: object) -> "Candidate":
        """Measure and gate it; its arms carry its own digests."""
        rival: Arm | None = None
        if champion is not None:
            rival = arm(CHAMPION, 0.94, 6.0, seed=3)
        held_out = "2" * 64  # what the packages' manifests name
        record = measurements(accuracy=accuracy, champion=rival, **{"evaluation_digest": held_out, **changes})
        digests = {CANDIDATE: self.int8, FULL_PRECISION: self.fp32, CHAMPION: champion}
        arms = {
            name: each.model_copy(update={"digest": digests[name], "evaluation_digest": held_out})
            for name, each in record.arms.items()
        }
        write_measurements(self.folder / "measurements", record.model_copy(update={"arms": arms}))
        gate(GATE, self.folder / "measurements", self.folder / "verdict")
        return self

    def promoted(self, *, tracking_uri: str | None = None) -> PromotionResult:
        return promote(
            SETTINGS,
            verdict=self.folder / "verdict",
            exported=self.folder / "exported",
            package_store=self.place.root / "packages",
            key_folder=self.place.root / "keys",
            release_url=self.place.url,
            serving=self.place.root / "serving",
            tracking_uri=tracking_uri or self.place.url,
            run_id=self.place.run_id,
        )


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_engine(tmp_path_factory.mktemp("engine") / "engine")


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, made once: its migrations take seconds."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    url = f"sqlite:///{file}"
    MlflowClient(tracking_uri=url, registry_uri=url).search_registered_models()
    return file


@pytest.fixture
def place(tmp_path: Path, engine: Path, empty_database: Path) -> Place:
    (tmp_path / "mlflow").mkdir()
    shutil.copyfile(empty_database, tmp_path / "mlflow" / "mlflow.db")
    return Place(tmp_path, engine, f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}")


def test_a_pass_becomes_the_champion_with_its_evidence_on_record(place):
    candidate = place.candidate("run-1").judged()
    result = candidate.promoted()
    assert result.promoted and result.champion == candidate.int8 == place.champion
    assert result.server == "not running"
    release = place.store.history()[0]
    assert release.previous_digest is None and release.actor == "tester" and release.reason.startswith("PASS")
    version = place.version(result.version)
    assert version.tags["package_digest"] == candidate.int8
    assert version.tags["verdict"] == "PASS" and version.tags["measured_against"] == "none"
    assert version.tags["evidence_digest"] == release.evidence_digest
    assert version.tags["git_commit"] == "0" * 40 and version.tags["data_digest"] == "1" * 64
    assert place.alias() == result.version
    logged = {f.path for name in ("evidence", "package") for f in place.client.list_artifacts(place.run_id, name)}
    assert logged == {"evidence/verdict.json", "evidence/report.html", "package/manifest.json", "package/manifest.sig"}


def test_a_fail_is_registered_with_its_reasons_and_changes_nothing(place):
    first = place.candidate("run-1").judged()
    version_of_first = first.promoted().version
    worse = place.candidate("run-2").judged(accuracy=0.5, champion=first.int8)
    result = worse.promoted()
    assert not result.promoted and result.verdict == "FAIL" and result.champion == first.int8
    assert place.champion == first.int8 and len(place.store.history()) == 1
    version = place.version(result.version)
    assert "accuracy_int8" in version.tags["reasons"] and version.tags["measured_against"] == first.int8
    assert place.alias() == version_of_first


@pytest.mark.parametrize("changes", [{"status": "INVALID", "reasons": ["not warmed up"]}, {"tokenizer_ssim": None}])
def test_fault_18_no_champion_is_made_of_what_did_not_pass(place, changes):
    result = place.candidate("run-1").judged(**changes).promoted()
    assert not result.promoted and result.champion is None and place.champion is None and place.alias() is None


def test_the_second_champion_replaces_the_first(place):
    first = place.candidate("run-1").judged()
    first.promoted()
    second = place.candidate("run-2").judged(champion=first.int8)
    result = second.promoted()
    assert result.promoted and place.champion == second.int8
    assert place.store.history()[0].previous_digest == first.int8
    assert place.alias() == result.version


def test_fault_19_the_second_of_two_promotions_against_one_champion_is_refused(place):
    one, other = place.candidate("run-1").judged(), place.candidate("run-2").judged()
    one.promoted()
    with pytest.raises(PromotionConflictError, match="measure the candidate against the new champion"):
        other.promoted()
    assert place.champion == one.int8
    found = place.client.search_model_versions(f"tags.package_digest = '{other.int8}'")
    assert [version.tags["promotion"] for version in found] == ["refused"]


def test_running_a_promotion_again_changes_nothing_more(place):
    candidate = place.candidate("run-1").judged()
    first = candidate.promoted()
    again = candidate.promoted()
    assert again == first and len(place.store.history()) == 1


def test_an_alias_that_a_crash_left_behind_is_repaired_by_the_next_promotion(place):
    first = place.candidate("run-1").judged()
    result = first.promoted()
    place.client.delete_registered_model_alias(SETTINGS.registered_model, "champion")
    place.candidate("run-2").judged(accuracy=0.5, champion=first.int8).promoted()
    assert place.alias() == result.version


def test_fault_21_without_the_tracking_server_nothing_is_promoted(place, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    candidate = place.candidate("run-1").judged()
    with pytest.raises(TrackingError, match="nothing was promoted"):
        candidate.promoted(tracking_uri="http://127.0.0.1:9")
    assert place.champion is None
    assert candidate.promoted().promoted  # it is back: the same step succeeds


def test_fault_25_an_error_of_the_tracking_server_shows_no_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError) as caught:
        Registry("generator", f"http://team:{PASSWORD}@127.0.0.1:9/mlflow").version_of("champion")
    assert PASSWORD in str(caught.value.__context__)  # MLflow's own message
    shown = "".join(traceback.format_exception(caught.value))
    assert "team:***@127.0.0.1" in shown and PASSWORD not in shown


def test_a_candidate_alias_that_a_crash_left_behind_is_repaired_by_the_next_call(place):
    def alias() -> str | None:
        return Registry(SETTINGS.registered_model, place.url).version_of("candidate")

    first = place.candidate("run-1").judged(accuracy=0.5)
    assert alias() is None and first.promoted().version == "1"
    place.client.delete_registered_model_alias(SETTINGS.registered_model, "candidate")
    assert first.promoted().version == alias() == "1"
    second = place.candidate("run-2").judged(accuracy=0.5)
    assert second.promoted().version == alias() == "2"
    assert first.promoted().version == "1" and alias() == "2"  # an older one again is not the newest


def test_a_verdict_about_another_package_is_refused(place):
    judged, other = place.candidate("run-1").judged(), place.candidate("run-2")
    shutil.copytree(judged.folder / "verdict", other.folder / "verdict")
    with pytest.raises(GateError, match="was exported"):
        other.promoted()
    assert place.champion is None


def test_without_a_verdict_nothing_is_promoted(place):
    with pytest.raises(GateError, match="there is no verdict"):
        place.candidate("run-1").promoted()


def test_a_package_that_was_altered_after_its_verdict_is_refused(place):
    candidate = place.candidate("run-1").judged()
    weights = place.root / "packages" / candidate.int8 / "1" / "engine" / "weights.bin"
    weights.write_bytes(b"\0" + weights.read_bytes()[1:])
    with pytest.raises(SignatureError):
        candidate.promoted()
    assert place.champion is None and not place.client.search_model_versions("")


def test_an_evaluation_set_that_the_training_did_not_hold_out_is_refused(place):
    with pytest.raises(DigestMismatchError, match="held out"):
        place.candidate("run-1").judged(evaluation_digest="9" * 64).promoted()


def test_a_running_server_serves_the_new_champion(place):
    first = place.candidate("run-1").judged()
    first.promoted()
    stop, told = threading.Event(), queue.Queue()
    serving = threading.Thread(
        target=serve,
        kwargs={
            "folder": place.root / "serving",
            "package_store": place.root / "packages",
            "key_folder": place.root / "keys",
            "desired": lambda: first.int8,
            "stop": stop,
            "poll_s": 60.0,  # it does not look by itself: the promotion must tell it
            "on_change": told.put,
        },
    )
    serving.start()
    try:
        state = told.get(timeout=60)
        second = place.candidate("run-2").judged(champion=first.int8)
        assert second.promoted().server == "updated"
        with GeneratorClient(state.grpc_endpoint) as client:
            assert client.generate("a yellow eight", seed=1).version == second.int8
    finally:
        stop.set()
        serving.join(60)
