"""What the graphs of a package hold in either precision: bytes by part, operators, and how far INT8 is off."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime
import torch

from common.files import files_under
from model.decoding.loop import unpack_blocks
from model.quantization.export_onnx import engine_graphs, export_graphs
from model.quantization.fuse import DRAW, fuse_graphs
from model.quantization.inference import with_plain_tables
from model.quantization.weights_pool import tensor_bytes
from model.tokenizers.visual import VisualTokenizer
from model.transformer.model import Generator
from serving.package.runtime.engine import EngineSession

_PARTS = {
    "embeddings": ("text_embedding", "code_embedding", "sketch_embedding", "text_position", "row_", "column_", "cell_"),
    "heads": ("coarse_head", "fine_head"),
    "plan": ("plan.", "generator.plan."),
    "blocks": ("blocks.",),
    "norms": ("norm.",),
}
"""Beginnings of the initializers' names."""
_GRAPHS = engine_graphs(detail_stages=1)


def part_bytes(graphs: Path, packaged: Path) -> dict[str, int]:
    """Bytes of the parameters by what they belong to, each content once; and of what a package holds of them: the graphs
    beside the weights, and all files."""
    parts: Counter[str] = Counter()
    seen = set()
    for graph in _GRAPHS:
        for tensor in onnx.load(graphs / f"{graph}.onnx").graph.initializer:
            content = tensor_bytes(tensor)
            digest = hashlib.sha256(content).hexdigest()
            if digest not in seen:
                seen.add(digest)
                parts["image decoder" if graph == "image_decoder" else _part(tensor.name)] += len(content)
    parts["graphs without their weights"] = sum(path.stat().st_size for path in packaged.glob("*.onnx"))
    return dict(parts) | {"all files": file_bytes(packaged)}


def _part(name: str) -> str:
    name = name.removesuffix("_half")
    if name.startswith("blocks.") and name.endswith(("norm.weight", "qk_norm", "turned_norm")):
        return "norms"
    return next((part for part, begins in _PARTS.items() if name.startswith(begins)), "scales, masks and constants")


def file_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in files_under(folder))


def operators(
    generator: Generator, visual: VisualTokenizer, full: Path, int8: Path
) -> dict[str, dict[str, dict[str, int]]]:
    """For each graph the nodes of the file and the kernels that onnxruntime makes of them: as the model's own layers are
    exported (`plain`), as we export them (`fp32`), and quantized (`int8`). `draw` is all of them in one."""
    with TemporaryDirectory(prefix="emuflow-plain-") as plain:
        export_graphs(with_plain_tables(generator), visual, Path(plain), lean=False)
        fuse_graphs(Path(plain), generator.config.grids, generator.config.visual_vocabulary)
        folders = {"plain": Path(plain), "fp32": full, "int8": int8}
        return {
            graph: {name: _count(folder / f"{graph}.onnx") for name, folder in folders.items()}
            for graph in (*_GRAPHS, DRAW)
        }


def _count(graph: Path) -> dict[str, int]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns that the optimized graph fits this processor alone
    options.intra_op_num_threads = 1
    with TemporaryDirectory(prefix="emuflow-optimized-") as folder:
        options.optimized_model_filepath = str(Path(folder) / graph.name)
        onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        kernels = onnx.load(options.optimized_model_filepath, load_external_data=False).graph.node
        quantizing = sum(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in kernels)
        return {
            "nodes": len(onnx.load(graph, load_external_data=False).graph.node),
            "kernels": len(kernels),
            "quantizing": quantizing,
        }


def output_errors(
    full: EngineSession, int8: EngineSession, generator: Generator, prompts: Sequence[np.ndarray]
) -> Mapping[str, float]:
    """Relative L2 errors |int8 - fp32| / |fp32| of each graph's output, with the errors of the prompt's graph before it:
    keys and values are in a basis of their own in each precision, so that each reads its own.

    Plan, sketch and details are those that fp32 takes for the most likely.
    """
    error, total = defaultdict[str, float](float), defaultdict[str, float](float)

    def compare(graph: str, expected: np.ndarray, found: np.ndarray) -> None:
        error[graph] += float(np.square(found.astype(np.float64) - expected).sum())
        total[graph] += float(np.square(expected.astype(np.float64)).sum())

    assert generator.plan is not None and full.plan_noise_shape is not None
    for text_ids in prompts:
        drawn = full.prefill(text_ids, np.zeros((len(text_ids), *full.plan_noise_shape), np.float32))[1]
        assert drawn is not None
        noise = generator.plan.prior.certain(torch.from_numpy(drawn)).numpy()
        (past, plan, logits), (int8_past, _, int8_logits) = (each.prefill(text_ids, noise) for each in (full, int8))
        assert plan is not None and logits is not None and int8_logits is not None
        compare("prefill", logits, int8_logits)
        cells = full.coarse_grid[0] * full.coarse_grid[1]
        blank = np.full((len(text_ids), cells), full.visual_vocabulary)
        sketch = full.coarse(past, blank, plan)
        compare("coarse", sketch, int8.coarse(int8_past, blank, plan))
        known, unknown = sketch.argmax(-1), np.full((len(text_ids), cells, 4), full.visual_vocabulary)
        details = full.fine(past, known, unknown, plan)
        compare("fine", details, int8.fine(int8_past, known, unknown, plan))
        codes = unpack_blocks(details.argmax(-1), *full.coarse_grid)
        compare("image_decoder", full.decode_image(codes), int8.decode_image(codes))
    return {graph: float(np.sqrt(error[graph] / total[graph])) for graph in total}
