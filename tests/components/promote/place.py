"""A home with MLflow, a release store and signed packages, and what becomes of a candidate there."""

from dataclasses import dataclass
from pathlib import Path

from common.files import write_json
from common.home import Home
from components.benchmark.measurements import (
    CANDIDATE,
    CHAMPION,
    CONTROL,
    FULL_PRECISION,
    Arm,
    write_measurements,
)
from components.gate.gate import gate
from components.gate.settings import GateSettings
from components.promote.promote import PromotionResult, promote
from components.promote.registry import Registry
from components.promote.settings import PromotionSettings
from serving.release.store import ReleaseStore
from tests.evidence import arm, measurements
from tests.packages import build

SETTINGS = PromotionSettings(actor="tester")
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
    def home(self) -> Home:
        return Home(self.root)

    @property
    def store(self) -> ReleaseStore:
        return ReleaseStore(self.url, self.home.keys)

    @property
    def champion(self) -> str | None:
        release = self.store.current()
        return release.digest if release else None

    def candidate(self, run_id: str) -> "Candidate":
        int8, fp32 = (
            build(self.engine, self.root / "packages", self.root / "keys", precision, run_id).name
            for precision in ("int8", "fp32")
        )
        write_json(self.home.run(run_id) / "exported" / "export.json", {"int8": int8, "fp32": fp32})
        return Candidate(self, self.home.run(run_id), int8, fp32)

    def version(self, number: str):
        return self.client.get_model_version(SETTINGS.registered_model, number)

    def alias(self, stage: str = "champion") -> str | None:
        return Registry(SETTINGS.registered_model, self.url).version_of(stage)

    def actions(self) -> list[str]:
        """What the audit log tells of, the oldest first."""
        return [entry.parsed()["action"] for entry in self.store.audit_log()]


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
        digests = {CANDIDATE: self.int8, FULL_PRECISION: self.fp32, CHAMPION: champion, CONTROL: champion}
        arms = {
            name: each.model_copy(update={"digest": digests[name], "evaluation_digest": held_out})
            for name, each in record.arms.items()
        }
        write_measurements(self.folder / "measurements", record.model_copy(update={"arms": arms}))
        gate(GATE, self.folder / "measurements", self.folder / "verdict")
        return self

    def promoted(
        self, *, tracking_uri: str | None = None, experiments_url: str | None = None, **settings: object
    ) -> PromotionResult:
        """What the pipeline's step does with it."""
        return promote(
            SETTINGS.model_copy(update=settings),
            verdict=self.folder / "verdict",
            exported=self.folder / "exported",
            package_store=self.place.root / "packages",
            key_folder=self.place.root / "keys",
            release_url=self.place.url,
            serving=self.place.root / "serving",
            tracking_uri=tracking_uri or self.place.url,
            run_id=self.place.run_id,
            experiments_url=experiments_url,
        )
