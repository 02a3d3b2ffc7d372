"""The graphs' models of a GPU repository, for a Triton that has the Python backend alone.

Names, inputs, outputs, batching and the ONNX files are what the layout writes; the backend is another one.
"""

import shutil
from pathlib import Path

from serving.gpu.config import GpuOptions, pb, read_config, write_config
from serving.gpu.layout import GraphLayout
from serving.package.manifest import Manifest

_MODEL = Path(__file__).with_name("stand_in_model.py")


class StandIns(GraphLayout):
    def __init__(self) -> None:
        super().__init__(GpuOptions(accelerator="onnxruntime"))

    def write(self, package: Path, manifest: Manifest, name: str, models: Path) -> dict[str, str]:
        written = super().write(package, manifest, name, models)
        for model in written.values():
            stand_in(models / model)
        return written


def stand_in(model: Path) -> None:
    config = read_config(model)
    config.backend, config.platform, config.default_model_filename = "python", "", ""
    del config.instance_group[:]
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=1)
    write_config(config, model)
    shutil.copyfile(_MODEL, model / "1" / "model.py")
