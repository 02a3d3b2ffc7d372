"""Published trainings: what the planner is calibrated on (two of them for each GPU), and what it is checked against.

Step times are the papers' own, or follow from their tokens a second. What a paper does not say is an assumption, and
named beside the run.
"""

from dataclasses import dataclass, replace

from model.parallel.plan.engines import MEGATRON
from model.parallel.plan.hardware import GPUS, Gpu
from model.parallel.plan.layout import Layout
from model.parallel.plan.shape import ModelShape
from model.parallel.plan.step_time import step_time


@dataclass(frozen=True)
class PublishedRun:
    """One measured training. `calibrates` says whether a constant was fitted to it."""

    name: str
    source: str
    shape: ModelShape
    layout: Layout
    gpu: Gpu
    step_s: float
    calibrates: bool = False
    memory_gib: float | None = None
    """Its published peak on one GPU."""

    @property
    def predicted_s(self) -> float:
        return step_time(self.shape, self.layout, self.gpu).total

    @property
    def error(self) -> float:
        """Relative: 0.1 is predicted 10% too slow."""
        return self.predicted_s / self.step_s - 1


_GPT = {"gated": False, "tied": True, "sequence": 2048}
MT_NLG = ModelShape("MT-NLG 530B", 105, 20480, 4 * 20480, 128, 128, 160, 51_200, **_GPT)
GPT_175B = ModelShape("GPT-3 175B", 96, 12288, 4 * 12288, 96, 96, 128, 51_200, **_GPT)
LLAMA_8B = ModelShape("Llama 3 8B", 32, 4096, 14336, 32, 8, 128, 128_256, 8192)
LLAMA_70B = ModelShape("Llama 3 70B", 80, 8192, 28672, 64, 8, 128, 128_256, 8192)
LLAMA_405B = ModelShape("Llama 3.1 405B", 126, 16384, 53248, 128, 8, 128, 128_256, 8192)

_A100 = GPUS["a100"]
_H100 = replace(GPUS["h100"], hbm_bytes_per_s=2.4e12, memory_gib=95)
"""torchtitan's: limited to 500 W, with 2.4 TB/s."""

_MT_NLG = "Smith et al. 2022 (arXiv 2201.11990), section 2.4; attention kept in memory, all activations computed again"
_MEGASCALE = (
    "Jiang et al. 2024 (NSDI'24, arXiv 2402.15627), table 2; tensor 8, pipeline 8 with 6 chunks; micro-batch 1 assumed"
)
_TITAN = "torchtitan, docs/performance.md; as many micro-batches as stages, its default then, assumed"
_TITAN_A100 = "torchtitan, docs/performance.md at 0413364"
_TITAN_TP = "torchtitan, benchmarks of asynchronous tensor parallelism, June 2025"


def _mt_nlg(servers: int, step_s: float, *, calibrates: bool = False) -> PublishedRun:
    data = servers * 8 // (8 * 35)
    layout = Layout(8, 35, data, 1, 1920 // data, recompute="full", fused_attention=False, engine=MEGATRON)
    return PublishedRun(f"530B on {8 * servers} A100", _MT_NLG, MT_NLG, layout, _A100, step_s, calibrates)


def _split(layout: Layout) -> Layout:
    """With norms and residuals split, as all but the oldest of them."""
    return replace(layout, engine=MEGATRON, sequence_parallel=True)


def _megascale(gpus: int, batch: int, step_s: float, *, ours: bool = True) -> PublishedRun:
    data = gpus // 64
    layout = _split(Layout(8, 8, data, 1, batch // data, virtual=6, overlap_tensor=ours, overlap_data=ours))
    who = "MegaScale" if ours else "Megatron-LM"
    shape = replace(GPT_175B, parallel_block=ours)
    return PublishedRun(f"175B on {gpus} A100, {who}", _MEGASCALE, shape, layout, _A100, step_s)


def _titan(
    shape: ModelShape,
    layout: Layout,
    tokens_per_s: float,
    what: str,
    source: str,
    gpu: Gpu,
    *,
    calibrates: bool = False,
    memory_gib: float | None = None,
) -> PublishedRun:
    """From tokens a second of each GPU."""
    step_s = layout.batch * shape.sequence / layout.gpus / tokens_per_s
    name = f"{shape.name} on {layout.gpus} {gpu.name.upper()}, {what}"
    return PublishedRun(name, source, shape, _split(layout), gpu, step_s, calibrates, memory_gib)


def _fsdp(data: int, micro_batch: int, tensor: int = 1, **more: object) -> Layout:
    return Layout(tensor, 1, data, micro_batch, 1, zero=3, **more)  # pyright: ignore[reportArgumentType]


RUNS: tuple[PublishedRun, ...] = (
    _mt_nlg(280, 60.1, calibrates=True),
    _mt_nlg(350, 50.2),
    _mt_nlg(420, 44.4),
    _megascale(256, 768, 32.0),
    _megascale(1024, 768, 8.9),
    _megascale(3072, 6144, 23.66),
    _megascale(6144, 6144, 12.21),
    _megascale(8192, 6144, 9.56),
    _megascale(12288, 6144, 6.34),
    _megascale(3072, 6144, 29.02, ours=False),
    _megascale(12288, 6144, 8.57, ours=False),
    _titan(LLAMA_8B, _fsdp(64, 1, recompute="selective"), 2973, "FSDP", _TITAN_A100, _A100),
    _titan(LLAMA_70B, _fsdp(64, 1, recompute="full"), 331, "FSDP", _TITAN_A100, _A100, calibrates=True),
    _titan(LLAMA_8B, _fsdp(8, 2, recompute="selective"), 6667, "compiled", _TITAN, _H100, calibrates=True, memory_gib=77.0),
    _titan(LLAMA_8B, _fsdp(128, 2, recompute="selective"), 6514, "compiled", _TITAN, _H100, memory_gib=62.0),
    _titan(LLAMA_8B, _fsdp(8, 2, recompute="selective", fp8=True), 8532, "compiled, fp8", _TITAN, _H100),
    _titan(LLAMA_8B, _fsdp(128, 2, recompute="selective", fp8=True), 8380, "compiled, fp8", _TITAN, _H100),
    _titan(LLAMA_70B, _fsdp(32, 16, 8, recompute="full"), 597.3, "tensor 8", _TITAN_TP, _H100),
    _titan(
        LLAMA_70B, _fsdp(32, 16, 8, recompute="full", overlap_tensor=True), 652.4, "tensor 8 overlapped", _TITAN_TP, _H100
    ),
    _titan(LLAMA_70B, _fsdp(32, 16, 8, recompute="full", fp8=True), 829, "tensor 8, fp8", _TITAN, _H100, memory_gib=71.9),
    _titan(
        LLAMA_70B, _fsdp(32, 16, 8, recompute="full", fp8=True, overlap_tensor=True), 876, "tensor 8 overlapped, fp8",
        _TITAN, _H100, calibrates=True,
    ),
    _titan(
        LLAMA_405B, Layout(8, 8, 8, 4, 8, recompute="full", zero=3, overlap_tensor=True, fp8=True), 100, "1F1B, fp8",
        _TITAN, _H100, memory_gib=82.5,
    ),
    _titan(
        LLAMA_405B, Layout(8, 8, 8, 4, 8, virtual=2, recompute="full", zero=3, overlap_tensor=True, fp8=True), 128,
        "interleaved, fp8", _TITAN, _H100, memory_gib=72.7,
    ),
    _titan(LLAMA_405B, _fsdp(16, 2, 8, recompute="full"), 109, "tensor 8", _TITAN_A100, _H100),
)  # fmt: skip
