"""What computes a graph: the CPU, or a GPU by CUDA or TensorRT, where onnxruntime was built for it."""

from pathlib import Path
from typing import Any

import onnxruntime

from .binding import BoundGraph

_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"
_TENSORRT = ("TensorrtExecutionProvider", {"trt_int8_enable": "1", "trt_fp16_enable": "1"})
"""INT8 for what the graphs quantize, which TensorRT takes from their Q/DQ pairs; half precision for the rest."""
PROVIDERS: dict[str, tuple[Any, ...]] = {"cpu": (), "cuda": (_CUDA,), "tensorrt": (_TENSORRT, _CUDA)}
"""By their names in the settings; the CPU computes whatever another one does not."""


class ProviderError(ValueError):
    """What is to compute a package is unknown, or cannot compute here."""


def load_graph(path: Path, threads: int, provider: str = "cpu") -> onnxruntime.InferenceSession | BoundGraph:
    """One graph on `cpu`, with `threads` for an operator, on `cuda` or `tensorrt`, or `auto`: CUDA where there is one.

    Raises `ProviderError` for a provider that onnxruntime does not have here, or has and cannot start. `auto` is content
    with the CPU then.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A spinning pool takes the cores from the other models of the server while this one has nothing to do.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Where a processor has no VNNI, sums of products of 8 bits overflow 16: slower products that do not.
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=_chosen(provider))
    refuse_fallback(session, provider)
    return session if session.get_providers()[0] == _CPU else BoundGraph(session, "cuda")


def refuse_fallback(session: onnxruntime.InferenceSession, provider: str) -> None:
    """Raise `ProviderError` where a session came to be without a provider that was asked for by its name.

    That onnxruntime was built for a GPU does not say that there is one: without, it warns and takes the CPU.
    """
    there = session.get_providers()
    absent = [name for name in _names(PROVIDERS.get(provider, ())) if name not in there]
    if absent:
        raise ProviderError(
            f"onnxruntime has {absent[0]} but could not start it, and computes with {', '.join(there)}: look into the log "
            "for the driver or library that it misses, or set export.provider=cpu"
        )


def _names(wanted: tuple[Any, ...]) -> list[str]:
    return [one if isinstance(one, str) else one[0] for one in wanted]


def _chosen(provider: str) -> list[Any]:
    available = onnxruntime.get_available_providers()
    if provider == "auto":
        provider = "cuda" if _CUDA in available else "cpu"
    if provider not in PROVIDERS:
        raise ProviderError(f"there is no provider '{provider}'; there are auto, {', '.join(PROVIDERS)}")
    wanted = PROVIDERS[provider]
    missing = [name for name in _names(wanted) if name not in available]
    if missing:
        raise ProviderError(
            f"onnxruntime has no {missing[0]} here, only {', '.join(available)}: set export.provider=cpu, or install "
            "onnxruntime-gpu in its place"
        )
    return [*wanted, _CPU]
