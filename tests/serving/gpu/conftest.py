"""A GPU repository, as it is laid out for a package."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from serving.gpu.accelerators import Accelerator
from serving.gpu.config import GpuOptions
from serving.gpu.layout import GraphLayout
from serving.package.verify import verify


@dataclass(frozen=True)
class Laid:
    """The repository, its Python model's folder, and the graphs' models by graph."""

    models: Path
    package: Path
    by_graph: dict[str, str]

    def model(self, graph: str) -> Path:
        return self.models / self.by_graph[graph]


LayOut = Callable[..., Laid]


@pytest.fixture
def lay_out(tmp_path: Path, packages: dict[str, Path], key_folder: Path) -> LayOut:
    def laid(precision: str = "int8", accelerator: Accelerator = "tensorrt", **options) -> Laid:
        models = tmp_path / f"{precision}-{accelerator}"
        package = Path(shutil.copytree(packages[precision], models / "generator"))
        layout = GraphLayout(GpuOptions(accelerator=accelerator, **options))
        return Laid(models, package, layout.write(package, verify(package, key_folder), "generator", models))

    return laid
