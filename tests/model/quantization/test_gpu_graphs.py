"""The graphs of a model with plans as Triton models for a GPU: their configurations, and what the decode loop asks of them."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from common.errors import RepositoryError
from model.decoding.loop import DecodingOptions, generate
from model.quantization.export_onnx import engine_graphs
from model.quantization.fuse import DRAW, fuse_graphs
from model.quantization.split import split_prefill
from model.quantization.weights_pool import pool_weights
from serving.gpu.config import GpuOptions, data_type, dims, pb, read_config
from serving.gpu.layout import GraphLayout
from serving.gpu.onnx_file import read_onnx
from serving.gpu.tensorrt import check_for_tensorrt
from serving.package.runtime.engine import EngineSession
from serving.package.runtime.providers import load_graph

LARGEST = 2
CONFIG = {"visual_vocabulary": 12, "coarse_grid": [2, 4], "fine_grid": [4, 8], "plan_noise_shape": [4, 7]}


@pytest.fixture(params=["fp32", "int8"])
def engine(request, exported, quantized, tmp_path) -> Path:
    """As calibrate leaves one: `prefill` in two parts, all in one graph, and the weights of all in one file."""
    source = exported[2] if request.param == "fp32" else quantized[0]
    folder = shutil.copytree(source, tmp_path / request.param)
    fuse_graphs(folder, ((2, 4), (4, 8)), 12)
    pool_weights(folder, (*engine_graphs(1), DRAW, *split_prefill(folder)))
    return folder


@pytest.fixture
def models(engine, tmp_path) -> dict[str, Path]:
    """Every graph's model folder."""
    layout = GraphLayout(GpuOptions(accelerator="tensorrt"))
    made = {file.stem: tmp_path / "models" / file.stem for file in engine.glob("*.onnx")}
    for graph, folder in made.items():
        layout.write_model(engine / f"{graph}.onnx", folder, graph, engine.name, LARGEST)
    return made


def test_graphs_batch_but_for_those_that_hold_what_a_prompt_says(models):
    batches = {graph for graph, folder in models.items() if read_config(folder).max_batch_size}
    assert batches == {"draw", "plan", "image_decoder"}
    assert models.keys() - batches == {"prompt", "prefill", "coarse", "fine"}


def test_tensorrt_takes_every_graph_and_none_that_breaks_its_rules(models):
    for folder in models.values():
        file = folder / "1" / "model.onnx"
        check_for_tensorrt(read_onnx(file), file)
        assert read_onnx(file).opset == 21
    model = onnx.load(file, load_external_data=False)
    model.graph.node[0].domain = "com.microsoft"
    file.unlink()
    file.write_bytes(model.SerializeToString())
    with pytest.raises(RepositoryError, match=r"com\.microsoft"):
        check_for_tensorrt(read_onnx(file), file)


class Asked:
    """A graph, computed here, that takes only what its Triton model would take."""

    def __init__(self, folder: Path):
        self._folder, self._config = folder, read_config(folder)
        self._file = read_onnx(folder / "1" / "model.onnx")
        self._graph = load_graph(folder / "1" / "model.onnx", 1)

    def run(self, outputs, feeds, /):
        inputs = {one.name: one for one in self._config.input}
        assert feeds.keys() == inputs.keys()
        assert set(outputs) <= {one.name for one in self._config.output}
        for value in self._file.inputs:
            given, one = feeds[value.name], inputs[value.name]
            assert one.data_type == data_type(value) == pb.DataType.Value(NAMES[given.dtype.name])
            shape = given.shape[1:] if self._config.max_batch_size else given.shape
            assert all(dim in (-1, length) for dim, length in zip(dims(value, self._file), shape, strict=True))
            assert not self._config.max_batch_size or len(given) <= self._config.max_batch_size
        return self._graph.run(list(outputs), dict(feeds))


NAMES = {"int64": "TYPE_INT64", "float32": "TYPE_FP32"}


@pytest.mark.parametrize(
    "asked", [{}, {"guidance": 2.0}, {"coarse_steps": 1, "previews": False}, {"redraw_below": 0.9}]
)
def test_what_the_decode_loop_asks_of_a_graph_is_what_its_model_takes(engine, models, asked):
    options = DecodingOptions(**({"coarse_steps": 2, "temperature": 0.9, "plan_temperature": 1.0} | asked))
    text_ids = np.random.default_rng(1).integers(0, 40, (LARGEST, 6))
    images = []
    for load in (None, lambda file: Asked(models[file.stem])):
        session = EngineSession(engine, CONFIG, threads=1, prefix_cache_bytes=1 << 20, load=load)
        stages = list(generate(session, text_ids, options, [5, 6], np.zeros(6, dtype=np.int64)))
        images.append([stage.pixels for stage in stages])
    for here, there in zip(*images, strict=True):
        np.testing.assert_array_equal(here, there)
