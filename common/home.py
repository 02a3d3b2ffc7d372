"""Where a run leaves what it makes: one folder, `runs/` by default (`--home`).

Only command lines and the pipeline's driver use this; a step receives the paths it needs as arguments.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Home:
    """The folder layout under `root`."""

    root: Path

    @property
    def tracking_uri(self) -> str:
        """MLflow's default store: SQLite."""
        return f"sqlite:///{self.root.resolve() / 'mlflow' / 'mlflow.db'}"

    @property
    def has_database(self) -> bool:
        """Whether that file is there: asking a store makes it, and looking must not leave anything behind."""
        return (self.root / "mlflow" / "mlflow.db").is_file()

    @property
    def mlflow_artifacts(self) -> Path:
        return self.root.resolve() / "mlflow" / "artifacts"

    @property
    def release_url(self) -> str:
        """The release store's SQLAlchemy URL: a table in MLflow's own SQLite file."""
        return self.tracking_uri

    @property
    def experiments_url(self) -> str:
        """A/B tests and their outcomes: a SQLite file beside the release store's, as outcomes are many."""
        return f"sqlite:///{self.root.resolve() / 'mlflow' / 'experiments.db'}"

    @property
    def has_experiments(self) -> bool:
        """Whether that file is there."""
        return (self.root / "mlflow" / "experiments.db").is_file()

    @property
    def packages(self) -> Path:
        """Model packages, one folder each, named by the manifest's digest."""
        return self.root.resolve() / "packages"

    @property
    def keys(self) -> Path:
        """The local signing key pair."""
        return self.root.resolve() / "keys"

    @property
    def cache(self) -> Path:
        """Results that are named by a digest and can be made again: judges, steps."""
        return self.root.resolve() / "cache"

    @property
    def work(self) -> Path:
        """What a run needs only until it is complete, a folder for each run."""
        return self.root.resolve() / "work"

    @property
    def data_docs(self) -> Path:
        """The Great Expectations context with its Data Docs."""
        return self.root.resolve() / "great_expectations"

    @property
    def serving(self) -> Path:
        """The running server's repository, state file and log."""
        return self.root.resolve() / "serving"

    def run(self, run_id: str) -> Path:
        return self.root.resolve() / "pipeline" / run_id

    @property
    def last_run_file(self) -> Path:
        return self.root.resolve() / "pipeline" / "last_run.json"
