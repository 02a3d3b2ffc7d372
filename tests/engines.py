"""A tiny generator engine with random weights: real ONNX graphs of the contract, made in milliseconds.

It keeps every shape of docs/architecture.md, depends on the prompt, and runs in onnxruntime like a trained one.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from common.files import write_json
from model.quantization.fuse import fuse_graphs

CAPTIONS = [
    "a red seven left of a green two",
    "a blue nine above a yellow four",
    "a white zero below a red one",
    "a green three right of a blue five",
    "a yellow eight",
    "a purple six",
]
SPECIALS = ["<pad>", "<bos>", "<boi>", "<uncond>"]


@dataclass(frozen=True)
class TinyShape:
    """Sizes of the tiny engine."""

    text_length: int = 24
    visual_vocabulary: int = 24
    layers: int = 2
    kv_heads: int = 2
    head_dim: int = 4
    unconditional_share: float = 0.1
    """As if it had been trained without prompts, too: its packages take guidance."""

    @property
    def cache_width(self) -> int:
        return self.layers * 2 * self.kv_heads * self.head_dim


def train_tokenizer() -> Tokenizer:
    """The project's byte-level BPE, on six captions."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(" ?[^ \t\r\n]+|[ \t\r\n]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CAPTIONS * 4, trainer)
    return tokenizer


def write_engine(folder: Path, *, seed: int = 0, shape: TinyShape | None = None) -> Path:
    """Write an `engine/` folder (fp32 and int8, the same tiny graphs with other weights) and return it."""
    shape = shape or TinyShape()
    tokenizer = train_tokenizer()
    text_folder = folder / "tokenizers" / "text"
    text_folder.mkdir(parents=True)
    tokenizer.save(str(text_folder / "tokenizer.json"))
    for offset, precision in enumerate(("fp32", "int8")):
        write_graphs(folder / precision, shape, tokenizer.get_vocab_size(), seed + offset)
    write_json(folder / "generator.json", generator_config(shape, tokenizer))
    write_json(folder / "calibration.json", {"block_bytes": {"fp32": 4, "int8": 1, "ratio": 0.25}, "ssim": 0.9})
    return folder


def generator_config(shape: TinyShape, tokenizer: Tokenizer) -> dict:
    special = {name.strip("<>"): tokenizer.token_to_id(name) for name in SPECIALS}
    return {
        "text_length": shape.text_length,
        "text_vocabulary": tokenizer.get_vocab_size(),
        "special": special,
        "coarse_grid": [8, 8],
        "fine_grid": [16, 16],
        "plan_noise_shape": None,
        "visual_vocabulary": shape.visual_vocabulary,
        "mask_id": shape.visual_vocabulary,
        "image_size": [64, 64],
        "layers": shape.layers,
        "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "unconditional_share": shape.unconditional_share,
        "decoding": {"coarse_steps": 2, "temperature": 0.7},
    }


def write_graphs(folder: Path, shape: TinyShape, text_vocabulary: int, seed: int) -> None:
    """The four graphs, their weights in one `weights.bin`, and the one that is made of them."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    vocabulary, width = shape.visual_vocabulary, shape.cache_width
    weights = {
        "text_table": rng.normal(scale=0.5, size=(text_vocabulary, width)).astype(np.float32),
        "code_table": rng.normal(scale=0.5, size=(vocabulary + 1, width)).astype(np.float32),
        "head": rng.normal(scale=0.5, size=(width, vocabulary)).astype(np.float32),
        "colours": rng.integers(0, 256, size=(vocabulary, 48)).astype(np.float32),
    }
    offsets = _write_weights(folder / "weights.bin", weights)
    past = ("past", TensorProto.FLOAT, [shape.layers, 2, "batch", shape.kv_heads, "text_length", shape.head_dim])
    coarse_ids = ("coarse_ids", TensorProto.INT64, ["batch", "coarse_tokens"])
    fine_ids = ("fine_ids", TensorProto.INT64, ["batch", "coarse_tokens", 4])
    graphs = {
        "prefill": (_prefill(shape), [("text_ids", TensorProto.INT64, ["batch", "text_length"])], [past]),
        "coarse": (
            _coarse(shape),
            [past, coarse_ids],
            [("logits", TensorProto.FLOAT, ["batch", "coarse_tokens", vocabulary])],
        ),
        "fine": (
            _fine(shape),
            [past, coarse_ids, fine_ids],
            [("logits", TensorProto.FLOAT, ["batch", "coarse_tokens", 4, vocabulary])],
        ),
        "image_decoder": (
            _image_decoder(),
            [("codes", TensorProto.INT64, ["batch", "rows", "columns"])],
            [("pixels", TensorProto.UINT8, ["batch", "height", "width", 3])],
        ),
    }
    for name, (nodes, inputs, outputs) in graphs.items():
        _save(folder / f"{name}.onnx", nodes, inputs, outputs, weights, offsets)
    fuse_graphs(folder, ((8, 8), (16, 16)), vocabulary)


def _write_weights(path: Path, weights: dict[str, np.ndarray]) -> dict[str, int]:
    offsets, position = {}, 0
    with path.open("wb") as handle:
        for name, values in weights.items():
            offsets[name] = position
            position += handle.write(values.tobytes())
    return offsets


def _constant(name: str, values: list[int] | list[float], kind: type) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(values, dtype=kind), name))


def _prefill(shape: TinyShape) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Gather", ["text_table", "text_ids"], ["rows"]),
        _constant("split", [0, 0, shape.layers, 2, shape.kv_heads, shape.head_dim], np.int64),
        helper.make_node("Reshape", ["rows", "split"], ["parts"]),
        helper.make_node("Transpose", ["parts"], ["past"], perm=[2, 3, 0, 4, 1, 5]),
    ]


def _context(shape: TinyShape) -> list[onnx.NodeProto]:
    """`past` to one vector per prompt: [batch, 1, cache_width]."""
    return [
        _constant("text_axis", [4], np.int64),
        helper.make_node("ReduceMean", ["past", "text_axis"], ["mean"], keepdims=0),
        helper.make_node("Transpose", ["mean"], ["by_prompt"], perm=[2, 0, 1, 3, 4]),
        _constant("flat", [-1, 1, shape.cache_width], np.int64),
        helper.make_node("Reshape", ["by_prompt", "flat"], ["context"]),
    ]


def _coarse(shape: TinyShape) -> list[onnx.NodeProto]:
    return [
        *_context(shape),
        helper.make_node("Gather", ["code_table", "coarse_ids"], ["codes"]),
        helper.make_node("Add", ["codes", "context"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "head"], ["logits"]),
    ]


def _fine(shape: TinyShape) -> list[onnx.NodeProto]:
    return [
        *_context(shape),
        helper.make_node("Gather", ["code_table", "coarse_ids"], ["sketch"]),
        helper.make_node("Add", ["sketch", "context"], ["sketch_context"]),
        _constant("block_axis", [2], np.int64),
        helper.make_node("Unsqueeze", ["sketch_context", "block_axis"], ["per_block"]),
        helper.make_node("Gather", ["code_table", "fine_ids"], ["details"]),
        helper.make_node("Add", ["details", "per_block"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "head"], ["logits"]),
    ]


def _image_decoder() -> list[onnx.NodeProto]:
    """Each code is a 4x4 patch of colours, looked up and put in its place."""
    return [
        helper.make_node("Gather", ["colours", "codes"], ["patches"]),
        _constant("split", [0, 0, 0, 4, 4, 3], np.int64),
        helper.make_node("Reshape", ["patches", "split"], ["blocks"]),
        helper.make_node("Transpose", ["blocks"], ["lines"], perm=[0, 1, 3, 2, 4, 5]),
        helper.make_node("Shape", ["codes"], ["size"]),
        _constant("scale", [1, 4, 4], np.int64),
        helper.make_node("Mul", ["size", "scale"], ["image_size"]),
        _constant("channels", [3], np.int64),
        helper.make_node("Concat", ["image_size", "channels"], ["image_shape"], axis=0),
        helper.make_node("Reshape", ["lines", "image_shape"], ["image"]),
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.UINT8),
    ]


def _save(path: Path, nodes: list, inputs: list, outputs: list, weights: dict, offsets: dict[str, int]) -> None:
    used = {name for node in nodes for name in node.input}
    initializers = []
    for name in sorted(used & weights.keys()):
        tensor = numpy_helper.from_array(weights[name], name)
        length = len(tensor.raw_data)
        onnx.external_data_helper.set_external_data(tensor, "weights.bin", offsets[name], length)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        initializers.append(tensor)
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info(*item) for item in inputs],
        [helper.make_tensor_value_info(*item) for item in outputs],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)

    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(str(path))
