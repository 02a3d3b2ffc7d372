"""GPUs and the links between them: data sheets, and a few constants that were calibrated on published trainings.

A matrix multiplication reaches `matmul_efficiency` of the peak, everything else moves bytes at `HBM_EFFICIENCY` of the
memory's bandwidth. Both stand for what a good training gets, not for what one kernel can. The calibration, and every
published run that was not part of it, are in `published.py`.
"""

from dataclasses import dataclass

HBM_EFFICIENCY = 0.8
LINK_EFFICIENCY = 0.75
"""Of a link's bandwidth that collectives reach."""
FP8_SPEEDUP = 1.6
"""Of the blocks' matrix multiplications with their scaling and casts; the data sheets promise 2."""


@dataclass(frozen=True)
class Gpu:
    """One GPU in a node of eight."""

    name: str
    bf16_flops: float
    """Dense, per second."""
    memory_gib: float
    hbm_bytes_per_s: float
    nvlink_bytes_per_s: float
    """To all others of the node together, in one direction."""
    network_bytes_per_s: float
    """To other nodes, in one direction."""
    matmul_efficiency: float
    usd_per_hour: float
    """An assumption, to be overridden: what clouds ask differs by a factor of three."""
    per_node: int = 8


GPUS: dict[str, Gpu] = {
    "a100": Gpu("a100", 312e12, 80, 2.039e12, 300e9, 25e9, matmul_efficiency=0.635, usd_per_hour=1.5),
    "h100": Gpu("h100", 989e12, 80, 3.35e12, 450e9, 50e9, matmul_efficiency=0.47, usd_per_hour=2.5),
    "h200": Gpu("h200", 989e12, 141, 4.8e12, 450e9, 50e9, matmul_efficiency=0.47, usd_per_hour=3.5),
}
"""By name, from NVIDIA's data sheets (SXM, dense) with 200 Gb/s of network for each A100 and 400 Gb/s for each H100. The
H100's efficiency is that of cards limited to 500 W, as the runs that it was calibrated on; at 700 W it is higher."""
