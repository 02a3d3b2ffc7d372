"""Requests of every kind, right and wrong, for a live server."""

import struct
from dataclasses import dataclass
from typing import Any

import tritonclient.grpc.service_pb2
from hypothesis import strategies as st

messages: Any = tritonclient.grpc.service_pb2

DECLARED: dict[str, tuple[str, list[int]]] = {
    "prompt": ("BYTES", [1]),
    "seed": ("INT64", [1]),
    "coarse_steps": ("INT32", [1]),
    "temperature": ("FP32", [1]),
    "guidance": ("FP32", [1]),
    "size": ("INT32", [2]),
    "format": ("BYTES", [1]),
    "deadline_ms": ("INT64", [1]),
}
OUTPUTS = ["image", "encoded", "stage", "final", "package_digest", "seed", "timings"]
DATATYPES = ["BYTES", "INT64", "INT32", "FP32", "BOOL", "UINT8", "INT8", "UINT64", "FP16", "FP64", "BF16", "", "FP128"]
PROMPTS = [b"a red seven", b"a blue nine above a yellow four", "ein gr\u00fcner Zweier".encode(), b"<bos>"]
FORMATS = [b"raw", b"png"]
_LAYOUTS = {"INT64": "<q", "INT32": "<i", "FP32": "<f"}
_RIGHT: dict[str, list[Any]] = {
    "seed": [0, 1, 2**53, 2**63 - 1],
    "coarse_steps": [1, 2, 8, 64],
    "temperature": [0.0, -0.0, 1e-45, 0.4, 2.0],
    "guidance": [0.0, 1.0, 3.5, 20.0],
    "deadline_ms": [1, 5, 50, 60_000],
}
_EXTREMES: dict[str, list[Any]] = {
    "INT64": [-1, 2**63 - 1, -(2**63), 0, 60_001],
    "INT32": [0, -1, 2**31 - 1, -(2**31), 65, 64, 32, 128],
    "FP32": [float("nan"), float("inf"), float("-inf"), 3.4e38, -3.4e38, -1e-45, 20.5],
}


@dataclass(frozen=True)
class Fuzzed:
    """What is sent, and whether its caller goes away after so many answers."""

    content: bytes
    """A serialized request, or no message at all."""
    hangs_up_after: int | None
    timeout_s: float


def rarely(draw: st.DrawFn, often: int) -> bool:
    """True about once in so many draws. (A library that looks for trouble prefers the ends of a range.)"""
    return draw(st.sampled_from([False] * (often // 2) + [True] + [False] * (often - often // 2 - 1)))


def mostly(right: st.SearchStrategy[bytes], *odd: st.SearchStrategy[bytes], times: int) -> st.SearchStrategy[bytes]:
    """`right` so many times as often as each of the others. (`one_of` counts equal ones once.)"""
    half = len(odd) // 2
    choices = [*odd[:half], *[right] * times, *odd[half:]]
    return st.sampled_from(range(len(choices))).flatmap(choices.__getitem__)


def strings(name: str) -> st.SearchStrategy[bytes]:
    """Contents of a BYTES value: what is right mostly, any Unicode, any bytes, long ones."""
    right = st.sampled_from(FORMATS if name == "format" else PROMPTS)
    beyond_latin = st.characters(min_codepoint=0x300, max_codepoint=0x1FFFF, exclude_categories=["Cs"])
    repeated = st.builds(
        lambda one, times: one * times, st.binary(min_size=1, max_size=4), st.sampled_from([60, 255, 256, 257, 5000])
    )
    odd = st.one_of(
        st.sampled_from([b"PNG", b"", b" \t\n", b"<boi>", b"\x00", b"a" * 20_000]),
        st.text(max_size=40).map(str.encode),
        st.text(alphabet=beyond_latin, max_size=90).map(str.encode),
        st.binary(max_size=40),
        repeated,
    )
    return mostly(right, odd, times=6)


def packed(values: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def contents(name: str, datatype: str, count: int) -> st.SearchStrategy[bytes]:
    """Bytes of a tensor: right ones mostly, extreme ones of its type, or any."""
    if datatype == "BYTES":
        right = odd = st.lists(strings(name), min_size=count, max_size=count).map(packed)
    elif datatype in _LAYOUTS:
        odd = right = _numbers(datatype, _EXTREMES[datatype], count)
        if name == "size":
            right = st.sampled_from([(64, 64), (32, 32)]).map(lambda size: struct.pack("<ii", *size))
        elif DECLARED.get(name, ("", []))[0] == datatype:
            right = _numbers(datatype, _RIGHT[name], count)
    else:
        right = odd = st.binary(max_size=16)
    lengths = st.builds(
        lambda length, rest: struct.pack("<I", length) + rest, st.integers(0, 2**32 - 1), st.binary(max_size=9)
    )
    return mostly(right, odd, odd, st.binary(max_size=24), lengths, times=30)


def _numbers(datatype: str, values: list[Any], count: int) -> st.SearchStrategy[bytes]:
    return st.lists(st.sampled_from(values), min_size=count, max_size=count).map(
        lambda chosen: b"".join(struct.pack(_LAYOUTS[datatype], value) for value in chosen)
    )


SHAPES = st.one_of(
    st.sampled_from(
        [[], [0], [2], [3], [1, 1], [-1], [2**31], [2**62], [2**63 - 1], [-(2**63)], [2**32, 2**32], [1] * 9]
    ),
    st.lists(st.integers(-2, 3), max_size=4),
)


@st.composite
def tensors(draw: st.DrawFn, name: str) -> tuple[str, str, list[int], bytes]:
    """Name, type, shape and bytes of one input: mostly as it is declared, with any value."""
    datatype, shape = DECLARED.get(name, ("BYTES", [1]))
    if rarely(draw, 20):
        datatype = draw(st.sampled_from(DATATYPES))
    count = shape[0]
    if rarely(draw, 20):
        shape = draw(SHAPES)
    return name, datatype, shape, draw(contents(name, datatype, count))


@st.composite
def requests(draw: st.DrawFn, model: str) -> bytes:
    """A serialized `ModelInferRequest`."""
    made = messages.ModelInferRequest(model_name=model, id=draw(st.text(max_size=8)))
    if rarely(draw, 31):
        made.model_name = draw(st.text(max_size=20))
    if rarely(draw, 31):
        made.model_version = draw(st.one_of(st.sampled_from(["1", "2", "-1", "0"]), st.text(max_size=8)))
    names = {*draw(st.sets(st.sampled_from(sorted(DECLARED)), max_size=4)), "prompt"}
    if rarely(draw, 21):
        names.remove("prompt")
    if rarely(draw, 21):
        names.add(draw(st.text(max_size=12)))
    chosen = [draw(tensors(name)) for name in sorted(names)]
    if chosen and rarely(draw, 21):
        chosen.append(draw(st.sampled_from(chosen)))  # the same input twice
    for name, datatype, shape, content in chosen:
        made.inputs.add(name=name, datatype=datatype, shape=shape)
        made.raw_input_contents.append(content)
    if rarely(draw, 16):
        _misplace(draw, made)
    for name in draw(st.sets(st.sampled_from(["previews", "wish", 'a"b', ""]), max_size=2)):
        _add_parameter(draw, made.parameters[name])
    if rarely(draw, 3):
        made.parameters["health"].bool_param = True
        if rarely(draw, 4):
            _add_parameter(draw, made.parameters["health"])
    if draw(st.booleans()):
        made.outputs.extend(messages.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in OUTPUTS)
        if rarely(draw, 16):
            made.outputs.add(name=draw(st.text(max_size=12)))
    return made.SerializeToString()


def _add_parameter(draw: st.DrawFn, parameter: Any) -> None:
    """A value of any of the types that Triton hands on: true and false mostly."""
    if not rarely(draw, 6):
        parameter.bool_param = draw(st.booleans())
    elif draw(st.booleans()):
        parameter.int64_param = draw(st.sampled_from([0, 1, -1, 2**63 - 1, -(2**63)]))
    else:
        parameter.string_param = draw(st.text(max_size=12))


def _misplace(draw: st.DrawFn, made: Any) -> None:
    """Contents that do not go with the inputs: too many, too few, or in the message's other place."""
    kind = draw(st.integers(0, 2))
    if kind == 0:
        made.raw_input_contents.append(draw(st.binary(max_size=20)))
    elif kind == 1 and made.raw_input_contents:
        del made.raw_input_contents[-1]
    elif kind == 2 and made.inputs:
        del made.raw_input_contents[:]
        made.inputs[0].contents.bytes_contents.extend(draw(st.lists(st.binary(max_size=12), max_size=3)))
        made.inputs[-1].contents.int64_contents.extend(draw(st.lists(st.integers(-9, 9), max_size=3)))


@st.composite
def damaged(draw: st.DrawFn, model: str) -> bytes:
    """A request with bytes that were changed, cut off or added; or bytes that were never one."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=60))
    content = bytearray(draw(requests(model))[:4000])
    for _ in range(draw(st.integers(1, 4))):
        if content:
            content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.integers(0, len(content)))]) if draw(st.booleans()) else bytes(content)


@st.composite
def fuzzed(draw: st.DrawFn, model: str) -> Fuzzed:
    content = draw(damaged(model)) if rarely(draw, 10) else draw(requests(model))
    hangs_up_after = draw(st.sampled_from([0, 1])) if rarely(draw, 30) else None
    timeout_s = 0.003 if rarely(draw, 40) else 30.0
    return Fuzzed(content, hangs_up_after, timeout_s)
