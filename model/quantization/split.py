"""Two graphs in the place of `prefill`, for a model that draws plans: what a prompt says, and the draw of its plan.

What a prompt says does not depend on the seed, so a server keeps it for the next request with this prompt. And the logits
of a plan's codes, which `prefill` gives for scoring, are of no use to an image and cost as much as the draw.
"""

from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto, helper
from onnx.utils import Extractor

PROMPT = "prompt"
"""`text_ids` to `past` and `plan_start`."""
PLAN = "plan"
"""`plan_start` and `plan_noise` to `plan_ids`."""
_START = "plan_start"
_FIRST_WEIGHT = "plan.prior.prompt.weight"
"""Of the one product through which a prompt reaches its plan (`model/transformer/plan_prior.py`)."""


def split_prefill(folder: Path) -> tuple[str, ...]:
    """Write `prompt.onnx` and `plan.onnx`, weights inside, from `prefill.onnx` of either precision.

    Returns the names of what was written: nothing for a model without plans.
    """
    model = onnx.load(folder / "prefill.onnx")
    if "plan_noise" not in {value.name for value in model.graph.input}:
        return ()
    _name_start(model)
    extractor = Extractor(model)
    onnx.save(extractor.extract_model(["text_ids"], ["past", _START]), folder / f"{PROMPT}.onnx")
    onnx.save(extractor.extract_model([_START, "plan_noise"], ["plan_ids"]), folder / f"{PLAN}.onnx")
    return PROMPT, PLAN


def _name_start(model: ModelProto) -> None:
    """Call the value between the two parts by its name, and say its shape."""
    graph = model.graph
    (product,) = (node for node in graph.node if _FIRST_WEIGHT in node.input)
    before = product.output[0]
    for node in graph.node:
        for names in (node.input, node.output):
            for position, value in enumerate(names):
                names[position] = _START if value == before else value
    known = [value for value in graph.value_info if value.name != before]
    del graph.value_info[:]
    graph.value_info.extend(known)
    assert product.op_type == "Gemm"
    (bias,) = (tensor for tensor in graph.initializer if tensor.name == product.input[2])
    graph.value_info.append(helper.make_tensor_value_info(_START, TensorProto.FLOAT, ["batch", bias.dims[0]]))
