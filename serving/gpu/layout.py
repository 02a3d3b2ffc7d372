"""Lays a package's graphs out as Triton models, beside the Python model that is to ask them.

What is verified is the copy of the package that the server loads; no signed file of it changes. Made from it, and not
signed, are one folder for each graph, whose `model.onnx` and weights are that copy's own files (hard links, or copies
that are compared with the manifest), and `graphs.json` in the copy, which says which models these are. Their names hold
the package's digest and the accelerator: a Python model can only ask the graphs of its own package.
"""

import os
import re
import shutil
from pathlib import Path

from common.errors import RepositoryError
from common.files import atomic_path, read_json, write_json
from serving.gpu.check import check_repository
from serving.gpu.config import MODEL_FILE, GpuOptions, graph_config, write_config
from serving.gpu.names import ENGINE, generation_of
from serving.gpu.onnx_file import read_onnx
from serving.package.manifest import Manifest
from serving.package.runtime.graphs import GRAPHS_NAME

_ASKING = "1/runtime/bls.py"
"""What a package can ask Triton models with; those from before it cannot."""


class GraphLayout:
    """Writes the models of a package's graphs, by `options`."""

    def __init__(self, options: GpuOptions):
        self.options = options

    def write(self, package: Path, manifest: Manifest, name: str, models: Path) -> dict[str, str]:
        """Write one model a graph into the repository `models`, and `graphs.json` into `package`, the verified copy that is
        to serve as `name`. Returns the models' names by graph.

        Raises `RepositoryError` where the package is too old for it, or what was written is not what Triton needs.
        """
        if _ASKING not in manifest.files:
            raise RepositoryError(
                "this package's runtime cannot ask Triton models for its graphs: it is older than that",
                where=manifest.digest,
                fix="export it again (emuflow run), or serve it without --accelerator",
            )
        prefix = generation_of(name, manifest.digest, self.options.accelerator)
        written = {file.stem: f"{prefix}-{file.stem}" for file in sorted((package / ENGINE).glob("*.onnx"))}
        largest_batch = read_json(package / "1" / "generator.json")["runtime"]["largest_group"]
        for graph, model in written.items():
            with atomic_path(models / model) as folder:
                self.write_model(package / ENGINE / f"{graph}.onnx", folder, model, manifest.precision, largest_batch)
        write_json(package / GRAPHS_NAME, {"accelerator": self.options.accelerator, "models": written})
        check_repository(models, name, package=package)
        return written

    def write_model(self, source: Path, folder: Path, model: str, precision: str, largest_batch: int) -> None:
        """One model's folder: the graph `source` and what it reads of other files, which must lie beside it."""
        file = read_onnx(source)
        version = folder / "1"
        version.mkdir(parents=True)
        _link(source, version / MODEL_FILE)
        for other in file.external_bytes:
            if not re.fullmatch(r"[\w-][\w.-]*", other):
                raise RepositoryError(f"it reads '{other}', which is not beside it", where=str(source))
            _link(source.parent / other, version / other)
        config = graph_config(file, model, largest_batch=largest_batch, precision=precision, options=self.options)
        write_config(config, folder)


def _link(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the file system has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
