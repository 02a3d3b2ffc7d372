"""A repository that a Triton with a GPU could not serve is refused before it is asked to, and the error names the file."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from common.errors import RepositoryError, SignatureError
from common.files import read_json, write_json
from serving.gpu.check import check_repository
from serving.gpu.config import pb, read_config, write_config
from serving.gpu.onnx_file import read_onnx
from serving.gpu.tensorrt import check_for_tensorrt
from tests.serving.gpu.conftest import Laid, LayOut


@pytest.fixture
def laid(lay_out: LayOut, tmp_path: Path) -> Laid:
    """A copy, in which no file is another one, too."""
    made = lay_out()
    models = Path(shutil.copytree(made.models, tmp_path / "copy"))
    return Laid(models, models / "generator", made.by_graph)


def test_what_was_laid_out_passes(laid: Laid) -> None:
    check_repository(laid.models, "generator")


def configured(change: Callable, graph: str = "coarse") -> Callable[[Laid], None]:
    """Damage to a graph's `config.pbtxt`."""

    def damage(laid: Laid) -> None:
        config = read_config(laid.model(graph))
        change(config)
        write_config(config, laid.model(graph))

    return damage


def in_graphs(change: Callable[[dict], None]) -> Callable[[Laid], None]:
    def damage(laid: Laid) -> None:
        content = read_json(laid.package / "graphs.json")
        change(content)
        write_json(laid.package / "graphs.json", content)

    return damage


def written(graph: str, name: str, content: str | bytes) -> Callable[[Laid], None]:
    def damage(laid: Laid) -> None:
        (laid.model(graph) / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return damage


def gone(graph: str, name: str) -> Callable[[Laid], None]:
    return lambda laid: (laid.model(graph) / name).unlink()


def cut_off(laid: Laid) -> None:
    weights = laid.model("fine") / "1" / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:100])


def altered(laid: Laid) -> None:
    weights = laid.model("fine") / "1" / "weights.bin"
    weights.write_bytes(b"\1" + weights.read_bytes()[1:])


def anothers_graph(laid: Laid) -> None:
    shutil.copy(laid.model("fine") / "1" / "model.onnx", laid.model("coarse") / "1" / "model.onnx")


def no_model(laid: Laid) -> None:
    shutil.rmtree(laid.model("draw"))


def no_manifest(laid: Laid) -> None:
    (laid.package / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("damage", "file", "message"),
    [
        (written("draw", "config.pbtxt", "backend: onnxruntime }"), "draw/config.pbtxt", "not a model configuration"),
        (written("draw", "config.pbtxt", 'backnd: "onnxruntime"'), "draw/config.pbtxt", "not a model configuration"),
        (gone("draw", "config.pbtxt"), "draw/config.pbtxt", "is missing"),
        (no_model, "-draw", "no model for the graph 'draw'"),
        (gone("fine", "1/model.onnx"), "fine/1/model.onnx", "is missing"),
        (written("fine", "1/model.onnx", b"not an ONNX model"), "fine/1/model.onnx", "not an ONNX model"),
        (written("fine", "1/model.onnx", b""), "fine/1/model.onnx", "not an ONNX model"),
        (gone("fine", "1/weights.bin"), "fine/1/weights.bin", "weights of the graph are missing"),
        (cut_off, "fine/1/weights.bin", r"reads \d+ bytes of it, and it has 100"),
        (altered, "fine/1/weights.bin", "not the package's 'weights.bin'"),
        (anothers_graph, "coarse/1/model.onnx", "not the package's 'coarse.onnx'"),
        (configured(lambda c: setattr(c, "name", "another")), "coarse/config.pbtxt", "name is 'another'"),
        (configured(lambda c: setattr(c, "backend", "python")), "coarse/config.pbtxt", "backend is 'python'"),
        (configured(lambda c: c.ClearField("instance_group")), "coarse/config.pbtxt", "not for a GPU"),
        (
            configured(lambda c: setattr(c.instance_group[0], "kind", pb.ModelInstanceGroup.KIND_CPU)),
            "coarse/config.pbtxt",
            "not for a GPU",
        ),
        (configured(lambda c: c.ClearField("optimization")), "coarse/config.pbtxt", "does not ask for tensorrt"),
        (configured(lambda c: setattr(c, "max_batch_size", 8)), "coarse/config.pbtxt", "max_batch_size does not fit"),
        (
            configured(lambda c: setattr(c, "max_batch_size", 0), "draw"),
            "draw/config.pbtxt",
            "max_batch_size does not fit",
        ),
        (configured(lambda c: c.dynamic_batching.SetInParent()), "coarse/config.pbtxt", "dynamic_batching without"),
        (
            configured(lambda c: setattr(c.input[0], "name", "history")),
            "coarse/config.pbtxt",
            "inputs are coarse_ids, history; the graph's are coarse_ids, past",
        ),
        (
            configured(lambda c: c.ClearField("output")),
            "coarse/config.pbtxt",
            "outputs are none; the graph's are logits",
        ),
        (
            configured(lambda c: setattr(c.input[1], "data_type", pb.DataType.Value("TYPE_INT32"))),
            "coarse/config.pbtxt",
            "'coarse_ids' is TYPE_INT32, in the graph TYPE_INT64",
        ),
        (
            configured(lambda c: c.input[0].dims.__setitem__(0, 3)),
            "coarse/config.pbtxt",
            r"'past' has the dims \[3, 2, -1, 2, -1, 4\], in the graph \[2, 2, -1, 2, -1, 4\]",
        ),
        (
            in_graphs(lambda g: g["models"].pop("fine")),
            "generator/graphs.json",
            "no model is named for the graph 'fine'",
        ),
        (in_graphs(lambda g: g["models"].update(fine2="x")), "generator/graphs.json", "has no graph 'fine2'"),
        (
            in_graphs(lambda g: g["models"].update(fine="generator-0123456789ab-tensorrt-fine")),
            "generator/graphs.json",
            "the graph 'fine' is that of the model 'generator-0123456789ab-tensorrt-fine', not",
        ),
        (in_graphs(lambda g: g.update(accelerator="abacus")), "generator/graphs.json", "cannot be"),
        (in_graphs(lambda g: g.pop("models")), "generator/graphs.json", "not a list of graphs"),
        (lambda laid: (laid.package / "graphs.json").unlink(), "generator/graphs.json", "is missing"),
        (
            lambda laid: (laid.package / "config.pbtxt").write_text('backend: "onnxruntime"'),
            "generator/config.pbtxt",
            "Python backend",
        ),
    ],
)
def test_damage_is_named(laid: Laid, damage: Callable[[Laid], None], file: str, message: str) -> None:
    damage(laid)
    with pytest.raises(RepositoryError, match=message) as refused:
        check_repository(laid.models, "generator")
    assert refused.value.where is not None and refused.value.where.endswith(file)


def test_a_package_without_its_manifest_is_none(laid: Laid) -> None:
    no_manifest(laid)
    with pytest.raises(SignatureError, match=r"manifest\.json"):
        check_repository(laid.models, "generator")


def quantizing(opset: int = 21, scale: float = 0.1, zero_point: int = 0, domain: str = "") -> onnx.ModelProto:
    """A graph that rounds its input to INT8."""
    kind = TensorProto.UINT8 if zero_point < 0 else TensorProto.INT8
    constants = [
        numpy_helper.from_array(np.array(scale, np.float32), "scale"),
        helper.make_tensor("zero", kind, [], [abs(zero_point)]),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], name="dequantize"),
        helper.make_node("Gelu", ["d"], ["y"], name="gelu", domain=domain),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (quantizing(opset=26), "opset is 26; TensorRT takes 9 to 24"),
        (quantizing(opset=8), "opset is 8"),
        (quantizing(domain="com.microsoft"), "'gelu' is of the domain com.microsoft"),
        (quantizing(scale=0.0), "a scale of the node 'quantize'"),
        (quantizing(scale=float("inf")), "a scale of the node 'quantize'"),
        (quantizing(zero_point=3), "a zero point of the node 'quantize'"),
        (quantizing(zero_point=-3), "a zero point of the node 'quantize'"),
    ],
)
def test_what_tensorrt_does_not_take_is_refused(tmp_path: Path, model: onnx.ModelProto, message: str) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(quantizing(), path)
    check_for_tensorrt(read_onnx(path), path)
    onnx.save(model, path)
    with pytest.raises(RepositoryError, match=message) as refused:
        check_for_tensorrt(read_onnx(path), path)
    assert refused.value.where == str(path)
